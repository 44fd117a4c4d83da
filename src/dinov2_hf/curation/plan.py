"""The stages of a curation, in their order, and how they are run."""

import dataclasses
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..data import own_max_image_pixels
from ..output_folders import write_text
from ..public_names import without_secrets
from .arguments import LAUNCH_FIELDS, STAGE_GROUPS, CurationArguments
from .checks_before_work import check_models, check_sizes
from .embedders import PERCEPTUAL, kind_of_embedder, refuse_untrusted
from .executors import Stage, remove_changed, run_collective, run_stage, start_pool
from .image_filters import load_filter
from .output_folder import RECIPE_FILE, mark_output, writing_to_output
from .publishing import publish
from .report.summary import report_shard
from .run_context import Curation, opened_store
from .stages.deduplicate import deduplicate_shard, relative_deduplicate_shard
from .stages.embed import embed_shard, fit_descriptor_shard
from .stages.hash_deduplication import hash_deduplicate_shard
from .stages.ingest import ingest_shard
from .stages.search import (
    fill_index_shard,
    merge_index_shard,
    search_benchmarks_shard,
    search_copies_shard,
    search_retrieval_shard,
    train_index_shard,
)
from .stages.select import (
    assign_clusters_shard,
    kmeans_shard,
    retrieve_shard,
    sample_hierarchy_shard,
    select_all_shard,
)
from .storage.dataset_files import build_shard, dataset_features
from .storage.file_fingerprints import file_fingerprint
from .storage.manifests import StageFolder


ROWS_OF_INDEX_PART = 1_000_000


def plan(arguments: CurationArguments) -> tuple[Curation, list[Stage]]:
    """The stages that these arguments ask for.

    Raises:
        ValueError: a source or an embedder cannot be used.
    """
    # Bars of several processes in one terminal would overwrite each other: there the stage shows one.
    alone = arguments.num_processes == 1 and arguments.executor == "in_process"
    curation = Curation(dataclasses.replace(arguments, progress=arguments.progress and alone))
    planner = _Planner(curation)
    planner.add_all()
    return curation, planner.stages


class _Planner:
    """Collects the stages; each depends on those named and, through them, on all before."""

    def __init__(self, curation: Curation):
        self.curation = curation
        self.stages: list[Stage] = []

    def add(
        self, name: str, write_shard: Callable, needs: list[str], fields: str = "", *, sharded: bool = False,
        num_shards: int = 1, collective: bool = False, **config: Any,
    ) -> None:  # fmt: skip
        """Add a stage.

        Args:
            fields: names of arguments that decide what it writes.
            sharded: into as many shards as all stages that read images or vectors; otherwise into `num_shards`.
            config: what else does.
        """
        earlier = [stage for stage in self.stages if stage.name in needs]
        arguments = self.curation.arguments
        folder = StageFolder(
            self.curation.output_dir / "stages" / name,
            self.curation.num_shards if sharded else num_shards,
            {
                **{field: getattr(arguments, field) for field in fields.split()},
                **config,
                "after": {stage.name: stage.folder.config_hash for stage in earlier},
            },
        )
        self.curation.folders[name] = folder
        self.stages.append(Stage(folder, partial(write_shard, self.curation), tuple(earlier), collective))

    def add_all(self) -> None:
        arguments, sources = self.curation.arguments, self.curation.sources
        dataset_features(self.curation)  # a wrong column is found now
        for name in arguments.filters:
            load_filter(name)
        retrieval = arguments.retrieval_embedder or arguments.embedder
        is_one_embedder = retrieval == arguments.embedder
        for spec in (arguments.embedder, retrieval):
            refuse_untrusted(spec, trust_torchscript=arguments.trust_torchscript)
        check_sizes(self.curation)
        self.add(
            "ingest", ingest_shard, [],
            "min_side max_aspect_ratio min_bytes max_bytes max_image_pixels filters nsfw_model nsfw_label"
            " nsfw_threshold",
            sharded=True, sources=sources.describe(), nsfw_files=file_fingerprint(arguments.nsfw_model),
        )  # fmt: skip
        self.add(
            "hash_deduplicate", hash_deduplicate_shard, ["ingest"],
            "deduplicate_content perceptual_hash_distance representative",
        )  # fmt: skip
        if PERCEPTUAL in (arguments.embedder, retrieval):
            self.add("fit_descriptor", fit_descriptor_shard, ["hash_deduplicate"], "seed")
        has_benchmarks = bool(arguments.benchmarks)
        needs_queries = arguments.how_selected == "retrieval"
        roles = ["uncurated", *(["benchmark"] if has_benchmarks else [])]
        if is_one_embedder and needs_queries:
            roles.insert(1, "curated")
        self._add_embed("embed", arguments.embedder, roles, ["hash_deduplicate", "fit_descriptor"])
        self._add_index("copies", ["embed"])
        self.add(
            "search_copies", search_copies_shard, ["embed", "copies_merge_index"],
            "num_neighbors deduplication_threshold benchmark_threshold", sharded=True,
        )  # fmt: skip
        self.add(
            "deduplicate", deduplicate_shard, ["search_copies"],
            "deduplication_threshold representative split_chains",
        )  # fmt: skip
        last = "deduplicate"
        if has_benchmarks:
            self._add_index("benchmarks", ["embed"])
            self.add(
                "search_benchmarks", search_benchmarks_shard, [last, "benchmarks_merge_index"], "benchmark_threshold",
                sharded=True,
            )  # fmt: skip
            self.add("relative_deduplicate", relative_deduplicate_shard, ["search_benchmarks"], "benchmark_threshold")
            last = "relative_deduplicate"
        if not is_one_embedder and arguments.how_selected != "all":
            roles = ["uncurated", *(["curated"] if needs_queries else [])]
            self._add_embed("retrieval_embed", retrieval, roles, [last, "fit_descriptor"])
            last = "retrieval_embed"
        self._add_selection(last)
        self.add(
            "build", build_shard, ["select"],
            "keep_columns accounting image_format strip_metadata rows_per_file face_model face_label face_threshold",
            sharded=True,
            face_files=file_fingerprint(arguments.face_model),
            included=[
                source.name
                for role, source in arguments.sources
                if role == "curated" and arguments.includes(source)
            ],
        )  # fmt: skip
        self.add("report", report_shard, ["build"], "license")

    def _add_embed(self, name: str, spec: str, roles: list[str], needs: list[str]) -> None:
        config = {"embedder": spec, "roles": roles, "files": file_fingerprint(spec)}
        kind = kind_of_embedder(spec)
        fields = {"model": "feature_kind bf16", "torchscript": "torchscript_size bf16"}.get(kind, "")
        self.add(name, partial(embed_shard, name, spec, tuple(roles)), needs, fields, sharded=True, **config)

    def _add_index(self, of: str, needs: list[str]) -> None:
        self.add(f"{of}_train_index", partial(train_index_shard, of), needs, "index index_memory_gb index_probes seed")
        # Every part of an index has all its centroids in it: few parts, which take half a minute each.
        sources = self.curation.sources
        most = 1 if of == "benchmarks" else -(-sources.rows_of("uncurated") // ROWS_OF_INDEX_PART)
        num_shards = max(1, min(most, self.curation.num_shards))
        self.add(f"{of}_fill_index", partial(fill_index_shard, of), [f"{of}_train_index"], num_shards=num_shards)
        self.add(f"{of}_merge_index", partial(merge_index_shard, of), [f"{of}_fill_index"])

    def _add_selection(self, last: str) -> None:
        arguments = self.curation.arguments
        if arguments.how_selected == "all":
            self.add("select", select_all_shard, [last])
        elif arguments.how_selected == "hierarchical":
            self.add(
                "select", sample_hierarchy_shard, [last],
                "hierarchy hierarchy_resamplings kmeans_iterations target_size seed", collective=True,
            )  # fmt: skip
        else:
            curated = [source for role, source in arguments.sources if role == "curated"]
            modes = {source.name: list(arguments.retrieval_of(source)) for source in curated}
            needs = [last]
            if any(mode == "sample" for mode, _ in modes.values()):
                self._add_index("retrieval", [last])
                self.add(
                    "search_retrieval", search_retrieval_shard, ["retrieval_merge_index"], sharded=True, modes=modes
                )
                needs.append("search_retrieval")
            if any(mode == "cluster" for mode, _ in modes.values()):
                self.add("kmeans", kmeans_shard, [last], "num_clusters kmeans_iterations seed", collective=True)
                self.add("assign_clusters", assign_clusters_shard, ["kmeans"], sharded=True)
                needs.append("assign_clusters")
            self.add(
                "select", retrieve_shard, needs,
                "min_similarity min_cluster_queries images_per_cluster max_per_source seed", modes=modes,
            )  # fmt: skip


def chosen_stages(stages: list[Stage], name: str | None, *, alone: bool = False) -> list[Stage]:
    """The stages of a step, or all.

    Args:
        alone: the name is that of one stage, not of a step: launches that do not know each other cannot wait for each
            other between the stages of a step.

    Raises:
        ValueError: there is no such step in this curation.
    """
    if name is None:
        return stages
    names = (name,) if alone else STAGE_GROUPS.get(name, (name,))
    found = [stage for stage in stages if stage.name in names]
    if not found:
        known = [*STAGE_GROUPS, *(stage.name for stage in stages if stage.name not in STAGE_GROUPS)]
        raise ValueError(f"stage is {name!r}, which is no stage of this curation; there are {', '.join(known)}.")
    return found


@own_max_image_pixels()
def curate(
    arguments: CurationArguments, stage: str | None = None, *, rank: int | None = None, world_size: int | None = None
) -> Curation:
    """Run a curation, or one step of it: what is finished is left, what is missing is made.

    Args:
        arguments: what is wanted.
        stage: a name of `STAGE_GROUPS` or of a stage; None: all.
        rank, world_size: the part of one of several launches; needs `stage`, the name of a single one. Launched by
            Accelerate or torchrun, the processes share the shards of all stages and wait for each other.

    Raises:
        ValueError: a mistake of the user, before it costs anything where it can be known.
    """
    if not arguments.output_dir:
        raise ValueError("output_dir is not given.")
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size go together: the number of a launch, and how many there are.")
    if rank is not None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but must be from 0 to world_size - 1 ({world_size - 1}).")
        if stage is None:
            raise ValueError("rank needs stage: launches that do not know each other cannot wait between stages.")
    if arguments.executor != "in_process":
        from .cluster_executors import check_executor

        check_executor(arguments)
    opened_store.cache_clear()
    launch = _Launch(rank, world_size, arguments)
    with launch.writing_to_output(stage):
        return _run(arguments, launch, stage, alone=rank is not None)


def _run(arguments: CurationArguments, launch: "_Launch", stage: str | None, *, alone: bool) -> Curation:
    curation, stages = plan(launch.arguments)
    chosen = chosen_stages(stages, stage, alone=alone)
    check_models(curation, {one.name for one in chosen if one.folder.absent()})
    if launch.is_writer:
        mark_output(curation.output_dir)
    if launch.is_first and arguments.overwrite:
        remove_changed(stages)
    launch.wait()
    for earlier in stages[: stages.index(chosen[-1]) + 1]:
        earlier.folder.open()
    if launch.is_first:  # not of a run that is refused
        _note_recipe(arguments, curation.output_dir)
    if arguments.executor != "in_process":
        from .cluster_executors import run_on_cluster

        finish = partial(publish, curation) if chosen[-1].name == "report" else None
        run_on_cluster(chosen, arguments, finish=finish)
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
    if chosen[-1].name == "report" and launch.is_first and not chosen[-1].folder.missing():
        publish(curation)
    launch.wait()
    return curation


class _Launch:
    """Which of several processes this is, by its caller or by the environment that Accelerate and torchrun set."""

    def __init__(self, rank: int | None, world_size: int | None, arguments: CurationArguments):
        self.rank, self.world_size, self.state, self.arguments = rank or 0, world_size or 1, None, arguments
        if rank is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import PartialState

            # The others wait for stages of one shard, such as components of a billion images, for hours.
            self.state = PartialState(timeout=timedelta(days=7))
            self.rank, self.world_size = self.state.process_index, self.state.num_processes
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
        """Whether this process answers for the output folder: not one that waits for the first."""
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
    """What was asked for, for a later run: not what was asked of this launch, such as to overwrite."""
    values = without_secrets(json.loads(json.dumps(dataclasses.asdict(arguments), default=str)))
    for name in LAUNCH_FIELDS:
        del values[name]
    write_text(output_dir / RECIPE_FILE, yaml.safe_dump(values, sort_keys=False))
