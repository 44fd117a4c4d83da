"""Runs a curation: every stage or one step, in this process or with others. Then it publishes the result."""

import dataclasses
import json
import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import yaml

from ..data import own_max_image_pixels
from ..output_folders import write_text
from ..public_names import without_secrets
from .arguments import LAUNCH_FIELDS, CurationArguments
from .changed_stages import remove_changed, remove_changed_in_store
from .checks_before_work import check_models
from .curation_folder import RECIPE_FILE, mark_output, writing_to_output
from .executors import PlannedStage, run_collective, run_stage, start_pool
from .increments import sources_came
from .plan import chosen_stages, plan
from .publishing import publish
from .run_context import Curation, checksums_of_files, opened_store
from .storage.source_listing import LISTING, StoredListings


@own_max_image_pixels()
def curate(
    arguments: CurationArguments, stage: str | None = None, *, rank: int | None = None, world_size: int | None = None
) -> Curation:
    """Run a curation, or one step of it: finished parts are kept, missing parts are made.

    Args:
        arguments: the arguments of the curation.
        stage: a name of `STEPS` or of a stage; None: all.
        rank, world_size: the part of one of several launches; needs `stage`, the name of a single stage. If Accelerate
            or torchrun launches the processes, they share the shards of all stages and wait for each other.

    Raises:
        ValueError: an error of the user, raised before any work if possible.
    """
    if not arguments.output_dir:
        raise ValueError("output_dir is not given.")
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size must both be given: the number of a launch, and how many there are.")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but must be from 0 to world_size - 1 ({world_size - 1}).")
        if stage is None:
            raise ValueError("rank needs stage: independent launches cannot wait for each other between stages.")
    if arguments.executor != "in_process":
        from .cluster_executors import check_executor

        check_executor(arguments)
    opened_store.cache_clear()
    checksums_of_files.cache_clear()
    launch = _Launch(rank, world_size, arguments)
    with launch.writing_to_output(stage):
        return _run(arguments, launch, stage, alone=rank is not None)


def _run(arguments: CurationArguments, launch: "_Launch", stage: str | None, *, alone: bool) -> Curation:
    listing = Path(arguments.output_dir) / LISTING
    curation, stages = plan(launch.arguments, StoredListings(listing) if alone else None)
    chosen = chosen_stages(stages, stage, alone=alone)
    check_models(curation, {one.name for one in chosen if one.folder.absent()})
    if launch.is_writer:
        mark_output(arguments)
    if launch.is_first:
        _make_room(stages, arguments, alone=alone)
    launch.wait()
    for earlier in stages[: stages.index(chosen[-1]) + 1]:
        earlier.folder.open()
    if launch.is_writer:  # not for a refused run
        curation.sources.store(listing, is_sole_writer=not alone)
    if launch.is_first:
        _note_recipe(arguments, curation.output_dir)
    if launch.is_writer:
        _begin_from_store(stages, chosen)
    launch.wait()
    if arguments.executor != "in_process":
        from .cluster_executors import run_on_cluster

        finish = partial(publish, curation) if chosen[-1].name == "report" else None
        run_on_cluster(chosen, arguments, finish=finish)
        _remove_kept(chosen)
        return curation
    with start_pool(arguments.num_processes) if arguments.num_processes > 1 else nullcontext() as pool:
        for one in chosen:
            if one.collective and launch.is_joint:
                run_collective(one, is_main=launch.is_first, verify=arguments.verify)
            else:
                run_stage(
                    one,
                    pool=pool,
                    rank=launch.rank,
                    world_size=launch.world_size,
                    verify=arguments.verify,
                    progress=arguments.progress and launch.is_first,
                )
            launch.wait()
    if launch.is_first and not alone:
        _remove_kept(chosen)
    if chosen[-1].name == "report" and launch.is_first and not chosen[-1].folder.missing():
        publish(curation)
    launch.wait()
    return curation


def _make_room(stages: list[PlannedStage], arguments: CurationArguments, *, alone: bool) -> None:
    """Remove stages of another configuration, here and in the store, if `overwrite` is set or sources were added."""
    store, overwrite = stages[0].store, arguments.overwrite
    here = {one.name: one.folder.record() for one in stages}
    # Independent launches cannot wait until one has removed old stages.
    goes_here = overwrite or (not alone and sources_came(stages, here, arguments.output_dir))
    if store is not None:
        there = store.records()
        if overwrite or (not alone and sources_came(stages, there, store.name, store.option)):
            remove_changed_in_store(stages, store, there)
        else:  # before anything is removed here
            for one in stages:
                one.folder.refuse_changes(there.get(one.name), store.name, store.option)
    if goes_here:
        remove_changed(stages)


def _begin_from_store(stages: list[PlannedStage], chosen: list[PlannedStage]) -> None:
    """Fetch from the store what the shards of the chosen stages do not fetch themselves: the stages before them, which
    other machines may have made, and stages that processes make together.
    """
    for one in stages[: stages.index(chosen[-1]) + 1]:
        if one.store is not None:
            one.store.open(one.folder)
    for one in stages[: stages.index(chosen[0])]:
        one.fetch()
        if one.folder.absent():  # what follows from it cannot be told
            break
    for one in chosen:
        if one.collective:
            one.fetch()


def _remove_kept(stages: list[PlannedStage]) -> None:
    """Remove results of an earlier run that no finished stage has reused, such as those of a removed source."""
    for stage in stages:
        stage.folder.remove_kept()
        if stage.store is not None:
            stage.store.remove_unused(stage.folder)


class _Launch:
    """Which of several processes this is, from its caller or from the environment of Accelerate and torchrun."""

    def __init__(self, rank: int | None, world_size: int | None, arguments: CurationArguments):
        self.rank, self.world_size, self.state, self.arguments = rank or 0, world_size or 1, None, arguments
        if rank is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import PartialState

            from ..devices import is_launched_on_cpus

            # The others wait for hours for stages of one shard, such as components of a billion images.
            self.state = PartialState(cpu=is_launched_on_cpus(), timeout=timedelta(days=7))
            self.rank, self.world_size = self.state.process_index, self.state.num_processes
            if self.world_size != int(os.environ["WORLD_SIZE"]):
                raise ValueError(
                    f"{os.environ['WORLD_SIZE']} processes were launched, but Accelerate connects {self.world_size} of"
                    " them, so each would curate everything; start them with `accelerate launch` or torchrun, or give"
                    " `rank` and `world_size`."
                )
            self.arguments = dataclasses.replace(
                arguments,
                device=arguments.device or str(self.state.device),
                progress=arguments.progress and self.rank == 0,
            )

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_joint(self) -> bool:
        """Whether the processes can wait for each other."""
        return self.state is not None

    @property
    def is_writer(self) -> bool:
        """Whether this process is responsible for the output folder, and does not only wait for the first."""
        return self.is_first or not self.is_joint

    def writing_to_output(self, stage: str | None) -> AbstractContextManager[None]:
        """Hold the output folder: alone, or as one of several launches that share a stage."""
        if not self.is_writer:
            return nullcontext()
        part = None if self.is_joint or self.world_size == 1 else f"{stage}.{self.rank}-of-{self.world_size}"
        return writing_to_output(self.arguments, part=part)

    def wait(self) -> None:
        if self.state is not None:
            self.state.wait_for_everyone()


def _note_recipe(arguments: CurationArguments, output_dir: Path) -> None:
    """Write the recipe for a later run, without options of this launch, such as `overwrite`."""
    values = without_secrets(json.loads(json.dumps(dataclasses.asdict(arguments), default=str)))
    for name in LAUNCH_FIELDS:
        del values[name]
    write_text(output_dir / RECIPE_FILE, yaml.safe_dump(values, sort_keys=False))
