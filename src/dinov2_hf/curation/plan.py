"""The stages of a curation in their order: which of them it has, and the arguments of each."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from .arguments import STEPS, CurationArguments
from .checks_before_work import check_sizes, refuse_unnamed_descriptor
from .embedders import refuse_untrusted
from .executors import PlannedStage
from .filters import planned_filters
from .report.numbers import report
from .run_context import Curation
from .stages.build import build
from .stages.concepts import concepts
from .stages.deduplicate import deduplicate, drop_curated_copies, drop_leaks, relative_deduplicate
from .stages.embed import EMBED, RETRIEVAL_EMBED, specs_of
from .stages.hash_deduplicate import hash_deduplicate
from .stages.index import BENCHMARKS_INDEX, COPIES_INDEX, RETRIEVAL_INDEX, SURVIVORS_INDEX
from .stages.ingest import ingest
from .stages.search import (
    search_benchmarks,
    search_copies,
    search_curated_copies,
    search_leaks,
    search_retrieval,
    search_survivors,
)
from .stages.select import assign_clusters_of_pool, kmeans, retrieve, sample_hierarchy, select_all
from .stages.stage import POOL, Stage, find_stage
from .storage.code_fingerprints import code_fingerprint
from .storage.dataset_files import dataset_features
from .storage.manifests import StageFolder, hash_of
from .storage.remote_stages import RemoteStages
from .storage.source_listing import StoredListings


STAGES = (
    ingest, hash_deduplicate, *EMBED,
    *COPIES_INDEX, search_copies, deduplicate, search_curated_copies, drop_curated_copies,
    *BENCHMARKS_INDEX, search_benchmarks, *SURVIVORS_INDEX, search_survivors, relative_deduplicate, search_leaks,
    *RETRIEVAL_EMBED, *RETRIEVAL_INDEX, search_retrieval, kmeans, assign_clusters_of_pool,
    retrieve, sample_hierarchy, select_all,
    drop_leaks, build, concepts, report,
)  # fmt: skip


def plan(arguments: CurationArguments, listings: StoredListings | None = None) -> tuple[Curation, list[PlannedStage]]:
    """The stages that these arguments ask for.

    Args:
        listings: earlier listings of the sources, if the sources need not be listed again.

    Raises:
        ValueError: a source, a filter, an embedder or a stage cannot be used.
    """
    # Progress bars of several processes would overwrite each other in a terminal, so the stage shows one bar.
    alone = arguments.num_processes == 1 and arguments.executor == "in_process"
    curation = Curation(dataclasses.replace(arguments, progress=arguments.progress and alone), listings=listings)
    dataset_features(curation)  # finds a wrong column now
    planned_filters(arguments)
    for spec in specs_of(arguments):
        refuse_untrusted(spec, trust_torchscript=arguments.trust_torchscript)
    refuse_unnamed_descriptor(curation)
    check_sizes(curation)
    store = None if arguments.stages_url is None else RemoteStages(arguments.stages_url)
    planned: list[PlannedStage] = []
    for stage, options in _in_order(arguments):
        if stage.is_wanted(curation):
            planned.append(dataclasses.replace(_planned(stage, options, curation, planned), store=store))
    return curation, planned


def _in_order(arguments: CurationArguments) -> list[tuple[Stage, Mapping[str, Any]]]:
    """All stages with their options. Each stage of the recipe comes after the stage that it follows."""
    order: list[tuple[Stage, Mapping[str, Any]]] = [(stage, {}) for stage in STAGES]
    named: list[Stage] = []
    for name, options in arguments.named_stages:
        found = find_stage(name)
        names = [stage.name for stage, _ in order]
        if found.name in names or found.after not in names:
            problem = "which there is already" if found.name in names else f"after {found.after!r}, which there is not"
            raise ValueError(f"stages has {name!r}, a stage {found.name!r} {problem}; there are {', '.join(names)}.")
        place = len(names) - names[::-1].index(found.after)
        while order[place : place + 1] and order[place][0] in named and order[place][0].after == found.after:
            place += 1  # in the order of the recipe
        order.insert(place, (found, options))
        named.append(found)
    return order


def _planned(
    stage: Stage, options: Mapping[str, Any], curation: Curation, earlier: list[PlannedStage]
) -> PlannedStage:
    values = stage.values(curation.arguments, options)
    pool = [one for one in earlier if one.folder.title is not None][-1:] if POOL in stage.needs else []
    needs = [one for one in earlier if one.name in stage.needs or one in pool]
    config, inputs, kept_by = {**values, **stage.config(curation)}, None, None
    if stage not in STAGES:
        config["code"] = code_fingerprint(stage.function)
    if stage.by_source or stage.reads is not None:
        alone = {one.name: one.folder.kept_by for one in needs if one.folder.kept_by is not None}
        kept_by = {**config, "after": alone}
        known = [hash_of(kept_by)] * stage.num_shards(curation)
    if stage.by_source:
        sources = curation.sources.describe()
        known = [hash_of([kept_by, sources[piece.source], piece.rows]) for piece in curation.pieces]
        config |= {"sources": sources, "rows": "within their source"}  # earlier versions numbered rows globally
    folder = StageFolder(
        curation.output_dir / "stages" / stage.name,
        stage.num_shards(curation),
        {**config, "after": {one.name: one.folder.config_hash for one in needs}},
        stage.title,
        stage.thins,
        kept_by,
        stage.by_source,
    )
    if kept_by is not None:
        inputs = partial(stage.inputs, curation.until_now(), known)
    write_shard = partial(stage.write, curation.until_now(), values)
    curation.folders[stage.name] = folder
    return PlannedStage(folder, write_shard, tuple(needs), stage.collective, stage.step, inputs)


def chosen_stages(stages: list[PlannedStage], name: str | None, *, alone: bool = False) -> list[PlannedStage]:
    """The stages of a step, or all.

    Args:
        alone: the name is that of one stage, not of a step, because independent launches cannot wait for each other
            between the stages of a step.

    Raises:
        ValueError: there is no such step in this curation.
    """
    if name is None:
        return stages
    found = [stage for stage in stages if name == stage.name or (name == stage.step and not alone)]
    if not found:
        known = dict.fromkeys([*STEPS, *(stage.name for stage in stages)])
        raise ValueError(f"stage is {name!r}, which is not a stage of this curation; there are {', '.join(known)}.")
    return found
