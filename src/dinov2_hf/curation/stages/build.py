"""Reads the images that were chosen again, and writes them as the files of the dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ...data.decoding.undecodable import UndecodableImage
from ...progress import Progress
from ...public_names import without_secrets
from ..algorithms.image_hashes import content_hash
from ..run_context import Curation
from ..storage.dataset_files import DatasetWriter, dataset_features
from ..storage.dropped_images import Dropped
from ..storage.file_fingerprints import file_fingerprint
from ..storage.image_reading import UnreadableFile, read_image_file, refuse_unread
from ..storage.manifests import UnfinishedShard, checksum
from ..storage.published_images import load_face_blur, published_content
from ..storage.remote_dataset import SENT, RemoteDataset
from .stage import image_shards, stage


def chosen_rows(curation: Curation, accounting: str) -> pa.Table:
    """The rows of the dataset: those selected from the pool, then those of the curated sources that are included.

    The rows of a curated source are those of `Curation.curated_left`, without those that `drop_leaks` dropped.
    """
    selected = parquet.read_table(curation.folders["select"].shard(0) / "selected.parquet")
    if accounting == "multiset":
        repeated = np.repeat(np.arange(len(selected)), selected["times_retrieved"].to_numpy())
        selected = selected.take(repeated)
    curated = curation.curated_left()
    if "drop_leaks" in curation.folders:
        curated = np.setdiff1d(curated, curation.array("drop_leaks", "leaks"))
    included = [np.intersect1d(curated, np.asarray(rows)) for rows in curation.included_rows()]
    rows = np.concatenate([np.empty(0, np.int64), *included]).astype(np.int64)
    as_they_are = pa.table(
        {"row_id": rows, "times_retrieved": np.zeros(len(rows), np.int64), "retrieved_for": [[]] * len(rows)},
        schema=selected.schema,
    )
    return pa.concat_tables([selected, as_they_are])


def _what_decides(curation: Curation) -> dict[str, Any]:
    arguments = curation.arguments
    found = {"face_files": file_fingerprint(arguments.face_model), "included": arguments.included_names}
    if arguments.dataset_url is not None:
        found["dataset_url"] = without_secrets(arguments.dataset_url)
    return found


@stage("build", title="written", writes_left=True, num_shards=image_shards, config=_what_decides)
def build(
    curation: Curation, shard: UnfinishedShard, *, keep_columns: list[str], accounting: str, image_format: str | None,
    strip_metadata: bool, rows_per_file: int, face_model: str | None, face_label: str, face_threshold: float,
) -> Dropped:  # fmt: skip
    """Write a range of the chosen rows; `written.npy` has their row ids."""
    arguments, sources = curation.arguments, curation.sources
    chosen = chosen_rows(curation, accounting)
    if not len(chosen):
        raise ValueError(
            "no image is left for the dataset: dropped.parquet in the folders of"
            f" {curation.output_dir / 'stages'} says why."
        )
    rows = shard.rows_of(len(chosen))
    part = chosen.slice(rows.start, len(rows)).to_pylist()
    facts = curation.facts([row["row_id"] for row in part], ["id", "content_hash"]).to_pylist()
    blur = load_face_blur(arguments)
    before = chosen["row_id"][rows.start - 1].as_py() if rows.start else None
    reasons: dict[int, str] = {}
    written = []
    bar = Progress(part, desc=f"build {shard.label}", unit="image", disable=not arguments.progress)
    sent: list[dict[str, Any]] = []
    how = _sending(curation, shard, sent) if arguments.dataset_url is not None else {}
    with DatasetWriter(shard.folder, dataset_features(curation), rows_per_file, **how) as writer:
        for row, fact in zip(bar, facts, strict=True):
            row_id = row["row_id"]
            number, _ = sources.locate(row_id)
            try:
                content = read_image_file(sources.image(row_id))
                if content_hash(content) != fact["content_hash"]:
                    raise UndecodableImage("the file is not the one that was read first")
                content = published_content(
                    content, image_format=image_format, blur=blur, strip_metadata=strip_metadata
                )
            except (UndecodableImage, UnreadableFile) as error:  # it was there when it was ingested
                refuse_unread(fact["id"], str(error), skip_unreadable=arguments.skip_unreadable)
                if row_id != before:  # repeats of a multiset follow each other, and are dropped as one
                    reasons[row_id] = f"cannot be read again: {error}"
                continue
            finally:
                before = row_id
            writer.write(
                {
                    "image": {"bytes": content, "path": None},
                    "id": fact["id"],
                    "source": sources.sources[number].name,
                    "origin": "pool" if sources.roles[number] == "uncurated" else "curated",
                    "retrieved_for": [sources.sources[other].name for other in row["retrieved_for"]],
                    "times_retrieved": row["times_retrieved"],
                    **sources.values(row_id, keep_columns),
                }
            )
            written.append(row_id)
    if how:
        (shard.folder / SENT).write_text(json.dumps(sent, indent=1))
    np.save(shard.folder / "written.npy", np.array(written, dtype=np.int64))
    shard.rows = len(written)
    return Dropped(np.array(list(reasons), dtype=np.int64), list(reasons.values()))


def _sending(curation: Curation, shard: UnfinishedShard, sent: list[dict[str, Any]]) -> dict[str, Any]:
    """How a `DatasetWriter` names and sends its files; what was sent is added to a list."""
    place = RemoteDataset(curation.arguments)

    def send(path: Path) -> None:
        facts = {"name": path.name, "rows": parquet.read_metadata(path).num_rows, "bytes": path.stat().st_size}
        sent.append({**facts, "checksum": checksum(path)})
        place.send(path)

    return {"name": f"train-{shard.rank:05d}-{{:05d}}.parquet", "finished": send}
