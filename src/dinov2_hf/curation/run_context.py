"""What the stages of one curation share: its arguments, its sources, and where each stage keeps its files."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from .arguments import CurationArguments
from .dropped_images import DROPPED_SCHEMA
from .embeddings import ChosenRows, EmbeddingStore
from .manifests import StageFolder
from .sources import OpenSources


# A shard of so many photographs takes minutes to decode and describe on one core.
IMAGES_PER_SHARD = 5000


@dataclass
class Curation:
    """One curation, as its stages see it; goes to other processes by pickling, without what it has opened.

    Attributes:
        arguments: what it was told.
        folders: of the stages, by name, in their order.
    """

    arguments: CurationArguments
    folders: dict[str, StageFolder] = field(default_factory=dict)

    @cached_property
    def sources(self) -> OpenSources:
        return OpenSources(self.arguments.sources)

    @property
    def num_shards(self) -> int:
        return self.arguments.num_shards or max(1, -(-len(self.sources) // IMAGES_PER_SHARD))

    @property
    def output_dir(self) -> Path:
        return Path(self.arguments.output_dir)

    def __getstate__(self) -> dict:
        return {"arguments": self.arguments, "folders": self.folders}

    # --- what finished stages left

    def images(self, columns: list[str]) -> pa.Table:
        """Columns of `ingest` for all images that can be read, in the order of their row ids."""
        return pa.concat_tables(
            [parquet.read_table(path, columns=columns) for path in self.folders["ingest"].files("images.parquet")]
        )

    def array(self, stage: str, name: str) -> np.ndarray:
        """An array that a stage of one shard wrote."""
        return np.load(self.folders[stage].shard(0) / f"{name}.npy")

    def vectors(self, stage: str, role: str) -> EmbeddingStore | None:
        """The vectors that a stage made of the images of a role; None where there are none."""
        pattern = f"shard-*/{role}.npy"
        folder = self.folders[stage].path
        return EmbeddingStore(folder, pattern) if any(folder.glob(pattern)) else None

    def pool_vectors(self, stage: str) -> EmbeddingStore:
        """The vectors of the pool.

        Raises:
            ValueError: there are none, since every image was dropped.
        """
        vectors = self.vectors(stage, "uncurated")
        if vectors is None:
            raise ValueError(
                f"no image of the pool is left after stage {stage!r}: dropped.parquet in the folders of"
                f" {self.output_dir / 'stages'} says why."
            )
        return vectors

    def survivors(self) -> np.ndarray:
        """Row ids of the pool that are left after both deduplications, ascending."""
        last = "relative_deduplicate" if "relative_deduplicate" in self.folders else "deduplicate"
        return self.array(last, "kept")

    @property
    def retrieval_stage(self) -> str:
        """The stage whose vectors serve retrieval and clustering."""
        return "retrieval_embed" if "retrieval_embed" in self.folders else "embed"

    def candidates(self) -> tuple[ChosenRows, np.ndarray]:
        """The vectors of the pool that is left, and their row ids."""
        store = self.pool_vectors(self.retrieval_stage)
        ids = store.ids
        rows = np.flatnonzero(np.isin(ids, self.survivors()))
        if not len(rows):
            raise ValueError(
                "nothing of the pool is left after deduplication: the benchmarks, or copies, swallow it; see the"
                f" similarities in {self.output_dir / 'stages'}, and raise benchmark_threshold (now"
                f" {self.arguments.benchmark_threshold}) if they are no copies."
            )
        return ChosenRows(store, rows), ids[rows]

    def dropped(
        self,
        stage: str,
        row_ids: np.ndarray,
        reasons: str | list[str],
        others: np.ndarray | None = None,
        similarities: np.ndarray | None = None,
    ) -> pa.Table:
        """Records of images that a stage drops, as a table of `DROPPED_SCHEMA`.

        Args:
            row_ids, reasons: of the images; one reason may stand for all.
            others: row ids of those they repeat.
            similarities: to those.
        """
        facts = self.images(["row_id", "id", "source"])
        all_rows = facts["row_id"].to_numpy()
        places = pa.array(np.searchsorted(all_rows, row_ids))
        names = pa.array([source.name for source in self.sources.sources], pa.string())
        count = len(row_ids)
        none = pa.nulls(count, pa.string())
        columns = {
            "row_id": pa.array(row_ids, pa.int64()),
            "id": facts["id"].take(places),
            "source": names.take(facts["source"].take(places).combine_chunks()),
            "stage": pa.array([stage] * count, pa.string()),
            "reason": pa.array([reasons] * count if isinstance(reasons, str) else reasons, pa.string()),
            "duplicate_of": none if others is None else facts["id"].take(pa.array(np.searchsorted(all_rows, others))),
            "similarity": pa.nulls(count, pa.float32())
            if similarities is None
            else pa.array(similarities, pa.float32()),
        }
        return pa.table(columns, schema=DROPPED_SCHEMA)


def file_fingerprint(path: str) -> str:
    """Changes with name, size or time of a file, or of the files of a folder; the name itself if it is neither."""
    root = Path(path).expanduser()
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    digest = hashlib.blake2b(path.encode(), digest_size=8)
    for file in files:
        if file.exists():
            status = file.stat()
            digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
