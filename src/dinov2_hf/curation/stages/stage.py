"""A stage of a curation: a function, and what the plan, the report and the records must know about it."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa

from ...named_objects import Registry, did_you_mean
from ..arguments import CurationArguments
from ..run_context import Curation
from ..storage.dropped_images import Dropped, write_dropped
from ..storage.manifests import UnfinishedShard


POOL = "the pool that is left"
NAMED_STAGES = Registry(
    "stage",
    places=dict.fromkeys(("semdedup", "density_pruning", "balance"), "dinov2_hf.curation.stages.concept_pruning"),
)
_MADE: dict[tuple[str, str], "Stage"] = {}


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage, and what the plan, the report and the records must know about it. It is pickled by the name of its
    module, which another process imports.

    Attributes:
        name: the name of its folder, for `--stage`, and in the records and the report.
        function: `function(curation, shard, *, ...)`, see `stage`.
        title: of a stage that drops images: what the report calls the images that it leaves.
        after: the stage that it follows, in a curation whose recipe names it.
        needs: stages whose files it reads, if the curation has them; `POOL` is the last stage that drops images.
        step: the value of `--stage` that runs it, beside its name.
        writes_left: its own files tell the stages that follow which images it leaves.
        collective: it has one shard, which all processes of a launch make together (`torch.distributed`).
        num_shards: the number of its shards; `shard.rows_of(n)` is the part of one.
        by_source: its shards are the `pieces` of the sources, and each depends on its source and on `reads` alone. So
            they stay when other sources come or go. They count rows within their source (`piece.rows`).
        reads: gives, for the number of a shard, bytes that tell what it reads of stages that look at several sources.
            A stage that has `reads` keeps the shards that read the same, even if it is not by source.
        is_wanted: whether a curation has this stage.
        config: plain values that decide what it writes, beside those that its function reads.
        given: keyword arguments that are fixed.
    """

    name: str
    function: Callable
    title: str | None = None
    after: str = "relative_deduplicate"
    needs: Sequence[str] = (POOL,)
    step: str = ""
    writes_left: bool = False
    collective: bool = False
    num_shards: Callable[[Curation], int] = lambda curation: 1
    by_source: bool = False
    reads: Callable[[Curation, int], bytes] | None = None
    is_wanted: Callable[[Curation], bool] = lambda curation: True
    config: Callable[[Curation], Mapping[str, Any]] = lambda curation: {}
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def thins(self) -> bool:
        """Whether the pool that is left after it is what it does not drop."""
        return self.title is not None and not self.writes_left

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """What its function reads, by name: fields of the recipe, and options of its own."""
        parameters = inspect.signature(self.function).parameters.values()
        return {one.name: one for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in self.given}

    def values(self, arguments: CurationArguments, options: Mapping[str, Any]) -> dict[str, Any]:
        """The values of its `parameters`, from the recipe's fields, from `options`, or from the function's defaults.

        Raises:
            ValueError: there is no such option, or one that must be given is missing.
        """
        own = [name for name in self.parameters if not hasattr(arguments, name)]
        for name in options:
            if name not in own:
                raise ValueError(f"the stage {self.name!r} has no option {name!r}.{did_you_mean(name, own)}")
        found = {}
        for name, parameter in self.parameters.items():
            found[name] = options[name] if name in options else getattr(arguments, name, parameter.default)
            if found[name] is inspect.Parameter.empty:
                raise ValueError(
                    f"the stage {self.name!r} needs the option {name!r}: give it in the recipe, `stages`."
                )
        return found

    def write(self, curation: Curation, values: Mapping[str, Any], shard: UnfinishedShard) -> None:
        """Write a shard, with the records of what it drops and with what is left of the pool."""
        found = self.function(curation, shard, **self.given, **values)
        if self.title is None or not shard.is_kept:
            return
        if self.thins:
            _write_left(self.name, curation, found, shard)
        parts = [found] if isinstance(found, Dropped | pa.Table) else found
        write_dropped((table for part in parts for table in curation.records(self.name, part)), shard.folder)

    def inputs(self, curation: Curation, known: Sequence[str], rank: int) -> str:
        """The hash of everything that a shard is made of, for a stage that keeps shards.

        Args:
            known: for each shard, what is known of it before any stage has run.
        """
        reads = b"" if self.reads is None else self.reads(curation, rank)
        return hashlib.blake2b(known[rank].encode() + reads, digest_size=8).hexdigest()

    def __reduce__(self):
        return _imported, (self.function.__module__, self.function.__qualname__, self.name)


def stage(name: str, **facts: Any) -> Callable[[Callable], Stage]:
    """Make a stage of a function `function(curation, shard, *, ...)`.

    The function writes files to `shard.folder` and sets `shard.rows`. Its keyword arguments are what it reads: fields
    of the recipe by their names, or options of its own, which the recipe gives with its name
    (`stages: [{my_module:semdedup: {threshold: 0.9}}]`). The stage is made again when one of them changes. If it has a
    `title`, the function returns what it drops, one `Dropped` or several. The rest of the pool is left after it.

    Args:
        name, facts: as in `Stage`.
    """

    def made(function: Callable) -> Stage:
        found = Stage(name, function, **facts)
        _MADE[f"{function.__module__}:{function.__qualname__}", name] = found
        return found

    return made


def image_shards(curation: Curation) -> int:
    """The number of shards of every stage that reads images or vectors of all sources together."""
    return curation.num_shards


def source_shards(curation: Curation) -> int:
    """A shard for each of the `pieces` of the sources."""
    return len(curation.pieces)


def find_stage(name: str) -> Stage:
    """The stage that a recipe names, as `package.module:function`.

    Raises:
        ValueError: there is no such stage.
    """
    found = NAMED_STAGES.find(name)
    if not isinstance(found, Stage):
        raise ValueError(
            f"`stages` names {name!r}, which is a {type(found).__name__}, but must be a stage: put `@stage(...)` of"
            " dinov2_hf.curation above the function."
        )
    return found


def _imported(module: str, function: str, name: str) -> Stage:
    import_module(module)
    return _MADE[f"{module}:{function}", name]


def _write_left(name: str, curation: Curation, dropped: Dropped, shard: UnfinishedShard) -> None:
    """`kept.npy`, the row ids that are left, ascending, and `kept_rows.npy`, their rows among the vectors of `embed`.

    Raises:
        ValueError: the stage drops an image twice, or one that was not left.
    """
    row_ids, rows = curation.left()
    gone, times = np.unique(dropped.row_ids, return_counts=True)
    wrong = gone[(times > 1) | ~np.isin(gone, row_ids)]
    if len(wrong):
        raise ValueError(
            f"the stage {name!r} drops {len(wrong)} images that are not in the pool that is left, or drops them twice"
            f" (row ids {', '.join(map(str, wrong[:5]))}): each image of the pool is dropped once at most."
        )
    stays = ~np.isin(row_ids, gone)
    np.save(shard.folder / "kept.npy", row_ids[stays])
    np.save(shard.folder / "kept_rows.npy", rows[stays])
    shard.rows = int(stays.sum())
