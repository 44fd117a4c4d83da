"""The common context of the stages of one curation: arguments, sources, and results of earlier stages."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..data import set_max_image_pixels
from .algorithms.unit_vectors import ChosenRows, UnitVectors, shard_range
from .arguments import CurationArguments
from .storage.dropped_images import DROPPED_SCHEMA, ROWS_AT_ONCE, Dropped, read_dropped
from .storage.embeddings import EmbeddingStore
from .storage.manifests import StageFolder
from .storage.source_listing import StoredListings
from .storage.sources import OpenSources, reopened


# Decoding and describing a shard of this many photographs takes minutes on one core.
IMAGES_PER_SHARD = 5000
# A process maps the vectors of all shards, and each map keeps a file open.
MOST_SHARDS = 1000


@dataclass(frozen=True)
class Piece:
    """A range of the rows of one source: a shard of the stages that read images. It does not depend on other sources.

    Attributes:
        source: number of the source.
        begin: the row id of the first row of the source.
        rows: rows within the source.
    """

    source: int
    begin: int
    rows: range

    @property
    def row_ids(self) -> range:
        return range(self.begin + self.rows.start, self.begin + self.rows.stop)


@dataclass
class Curation:
    """One curation, as its stages see it. It is pickled for other processes, without its open files.

    Attributes:
        arguments: its arguments.
        folders: folders of the stages, by name, in their order; a stage sees those before it.
        listings: listings of sources that another process stored.
    """

    arguments: CurationArguments
    folders: dict[str, StageFolder] = field(default_factory=dict)
    listings: StoredListings | None = None

    @cached_property
    def sources(self) -> OpenSources:
        set_max_image_pixels(self.arguments.max_image_pixels)  # every process that reads images runs this line
        return reopened(tuple(self.arguments.sources), self.listings)

    @cached_property
    def pieces(self) -> list[Piece]:
        """The shards of all sources in their order. Each source has the number of shards that it would have alone."""
        found = []
        for number in range(len(self.sources.sources)):
            rows = self.sources.range_of(number)
            shards = min(self._shards_for(len(rows)), len(rows))
            found += [Piece(number, rows.start, shard_range(len(rows), rank, shards)) for rank in range(shards)]
        return found

    @property
    def num_shards(self) -> int:
        """The number of shards of stages that read the images or vectors of all sources together."""
        return self._shards_for(len(self.sources))

    def _shards_for(self, num_images: int) -> int:
        return self.arguments.num_shards or min(max(1, -(-num_images // IMAGES_PER_SHARD)), MOST_SHARDS)

    @property
    def output_dir(self) -> Path:
        return Path(self.arguments.output_dir)

    def until_now(self) -> "Curation":
        """A copy with the stages so far, for the next stage."""
        seen = Curation(self.arguments, dict(self.folders))
        seen.sources = self.sources
        return seen

    def __getstate__(self) -> dict:
        listings = self.sources.stored if "sources" in self.__dict__ else self.listings
        return {"arguments": self.arguments, "folders": self.folders, "listings": listings}

    # --- what finished stages left

    def images(self, columns: list[str]) -> pa.Table:
        """Columns of `ingest`, also `row_id` and `source`, for all images that can be read, in the order of their row
        ids; texts as in `facts`.
        """
        tables = [self.images_of(shard, columns) for shard in range(len(self.pieces))]
        return pa.concat_tables(tables).cast(_with_large_strings(tables[0].schema))

    def images_of(self, shard: int, columns: list[str], filters: list | None = None) -> pa.Table:
        """As `images`, for one shard; `filters` apply to columns of its file, as in `parquet.read_table`."""
        piece, path = self.pieces[shard], self.folders["ingest"].shard(shard) / "images.parquet"
        read = dict.fromkeys(["row", *(name for name in columns if name not in ("row_id", "source"))])
        table = parquet.read_table(path, columns=list(read), filters=filters)
        table = table.append_column("row_id", pa.array(table["row"].to_numpy() + piece.begin, pa.int64()))
        table = table.append_column("source", pa.repeat(pa.scalar(piece.source, pa.int32()), len(table)))
        return table.select(columns)

    def facts(self, row_ids: np.ndarray, columns: list[str]) -> pa.Table:
        """Columns of `ingest` for some images, in their order. Only the shards of these images are read.

        Args:
            row_ids: row ids of images that `ingest` kept, in any order, also repeated.

        Returns:
            A table with the same number of rows; texts are `large_string`, which has no limit of 2 GiB.
        """
        wanted, places = np.unique(np.asarray(row_ids, dtype=np.int64), return_inverse=True)
        shards = self.shards_of(wanted)
        types = {one.name: one.type for one in parquet.read_schema(self.folders["ingest"].shard(0) / "images.parquet")}
        types |= {"row_id": pa.int64(), "source": pa.int32()}
        tables = [_with_large_strings(pa.schema({name: types[name] for name in columns})).empty_table()]
        for shard in np.unique(shards).tolist():
            table = self.images_of(shard, ["row_id", *columns])
            inside = wanted[np.searchsorted(shards, shard) : np.searchsorted(shards, shard, side="right")]
            table = table.take(np.searchsorted(table["row_id"].to_numpy(), inside)).select(columns)
            tables.append(table.cast(tables[0].schema))
        return pa.concat_tables(tables).take(places)

    def shards_of(self, row_ids: np.ndarray) -> np.ndarray:
        """The shard of each of some images, (n,)."""
        return np.searchsorted([piece.row_ids.start for piece in self.pieces], row_ids, side="right") - 1

    def dropped(self, stage: str) -> Iterator[pa.Table]:
        """The images that a finished stage dropped, as tables of `DROPPED_SCHEMA`, in parts."""
        folder = self.folders[stage]
        for rank, path in enumerate(folder.files("dropped.parquet")):
            for table in read_dropped(path):
                yield _shifted(table, self.pieces[rank].begin) if folder.by_source else table

    def array(self, stage: str, name: str) -> np.ndarray:
        """An array that a stage of one shard wrote, as a memory map: each of many shards reads its own part."""
        return np.load(self.folders[stage].shard(0) / f"{name}.npy", mmap_mode="r")

    def checksums(self, stage: str, name: str) -> tuple[str | None, ...]:
        """Of the file of this name of every shard of a finished stage; None where a shard has none."""
        folder = self.folders[stage]
        return checksums_of_files(folder.path, folder.num_shards, folder.config_hash, name)

    def vectors(self, stage: str, role: str) -> EmbeddingStore | None:
        """The vectors that a stage made of the images of a role; None if there are none."""
        pattern, folder = f"shard-*/{role}.npy", self.folders[stage]
        return opened_store(folder.path, pattern, folder.config_hash) if any(folder.path.glob(pattern)) else None

    def pool_vectors(self, stage: str = "embed") -> EmbeddingStore:
        """The vectors of the pool.

        Raises:
            ValueError: there are none, because every image was dropped.
        """
        vectors = self.vectors(stage, "uncurated")
        if vectors is None:
            raise self.nothing_left(stage)
        return vectors

    def nothing_left(self, stage: str) -> ValueError:
        """The error for a pool that is empty after a stage."""
        return ValueError(
            f"no image of the pool is left after stage {stage!r}: dropped.parquet in the folders of"
            f" {self.output_dir / 'stages'} says why."
        )

    def left(self) -> tuple[np.ndarray, np.ndarray]:
        """(m,) row ids of the remaining pool, ascending, and (m,) their rows among the vectors of `embed`.

        An image that replaced another has the row of that image's vector, so the rows need not ascend.
        """
        thinned = next((name for name in reversed(self.folders) if self.folders[name].thins), None)
        if thinned is not None:
            return self.array(thinned, "kept"), self.array(thinned, "kept_rows")
        row_ids = self.pool_vectors().ids
        rows = np.argsort(row_ids)
        return row_ids[rows], rows

    def included_rows(self) -> list[range]:
        """The row ids of each curated source whose own images go into the dataset."""
        return [self.sources.range_of(number) for number in self.arguments.included_curated]

    def source_numbers(self, row_ids: np.ndarray) -> np.ndarray:
        """The number of the source of each row, (n,)."""
        return np.searchsorted(self.sources.starts, row_ids, side="right") - 1

    def curated_left(self) -> np.ndarray:
        """Row ids, ascending, of the curated images that can be read and have the needed vectors."""
        row_ids = self.array("hash_deduplicate", "curated")
        stages = {"embed"} if self.arguments.compares_curated else set()
        if self.arguments.how_selected == "retrieval":
            stages.add(self.retrieval_stage)
        for stage in stages:
            store = self.vectors(stage, "curated")
            row_ids = np.intersect1d(row_ids, np.empty(0, np.int64) if store is None else store.ids)
        return np.asarray(row_ids)

    def included_vectors(self) -> tuple[np.ndarray, UnitVectors | None]:
        """(c,) row ids of the curated images that go into the dataset, and their vectors of `embed`, or None."""
        store = self.vectors("embed", "curated")
        if store is None:
            return np.empty(0, np.int64), None
        wanted = [np.asarray(rows) for rows in self.included_rows()]
        rows = np.flatnonzero(np.isin(store.ids, np.intersect1d(np.concatenate(wanted), self.curated_left())))
        return store.ids[rows], ChosenRows(store, rows)

    @property
    def retrieval_stage(self) -> str:
        """The stage whose vectors serve retrieval and clustering."""
        return "retrieval_embed" if "retrieval_embed" in self.folders else "embed"

    def candidates(self) -> tuple[np.ndarray, UnitVectors]:
        """(m,) row ids of the remaining pool, and their vectors.

        Raises:
            ValueError: no image is left.
        """
        row_ids, rows = self.left()
        if not len(rows):
            raise ValueError(
                "nothing of the pool is left after deduplication: all images were dropped as copies or benchmarks;"
                f" see the similarities in {self.output_dir / 'stages'}, and raise benchmark_threshold (now"
                f" {self.arguments.benchmark_threshold}) if they are not copies."
            )
        store = self.pool_vectors(self.retrieval_stage)
        if self.retrieval_stage == "embed":
            return row_ids, ChosenRows(store, rows)
        places = np.flatnonzero(np.isin(store.ids, row_ids))  # the images that were left then, some without a vector
        return store.ids[places], ChosenRows(store, places)

    def records(self, stage: str, dropped: Dropped | pa.Table) -> Iterator[pa.Table]:
        """The images that a stage drops, as tables of `DROPPED_SCHEMA` with at most `ROWS_AT_ONCE` rows."""
        if isinstance(dropped, pa.Table):
            yield dropped
            return
        row_ids, reasons, similarities = dropped.row_ids, dropped.reasons, dropped.similarities
        names = pa.array([source.name for source in self.sources.sources], pa.string())
        repeated = None if dropped.others is None else self.facts(dropped.others, ["id"])["id"]
        for start in range(0, len(row_ids), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            facts = self.facts(row_ids[part], ["id", "path", "source"])
            count = len(facts)
            columns = {
                "row_id": pa.array(row_ids[part], pa.int64()),
                "id": facts["id"],
                "path": facts["path"],
                "source": names.take(facts["source"].combine_chunks()),
                "stage": pa.repeat(stage, count),
                "reason": pa.repeat(reasons, count) if isinstance(reasons, str) else pa.array(reasons[part]),
                "duplicate_of": pa.nulls(count) if repeated is None else repeated[part],
                "similarity": pa.nulls(count) if similarities is None else pa.array(similarities[part]),
            }
            yield pa.table(columns).cast(DROPPED_SCHEMA)


@lru_cache(maxsize=8)
def opened_store(folder: Path, pattern: str, config_hash: str) -> EmbeddingStore:
    """The vectors of a finished stage. A process that makes many shards opens them only once.

    `plan.curate` empties this cache, because a stage may have been made again.
    """
    return EmbeddingStore(folder, pattern)


@lru_cache(maxsize=8)
def checksums_of_files(folder: Path, num_shards: int, config_hash: str, name: str) -> tuple[str | None, ...]:
    """Of a finished stage; a process that makes many shards reads the manifests once. Emptied as `opened_store`."""
    return tuple(StageFolder(folder, num_shards, {}).checksums(name))


def _with_large_strings(schema: pa.Schema) -> pa.Schema:
    return pa.schema({one.name: pa.large_string() if one.type == pa.string() else one.type for one in schema})


def _shifted(table: pa.Table, begin: int) -> pa.Table:
    """Records of a shard whose rows are numbered within its source, renumbered over all sources."""
    row_ids = pa.array(table["row_id"].to_numpy() + begin, pa.int64())
    return table.set_column(0, table.schema.field(0), row_ids)
