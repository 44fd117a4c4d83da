"""The last stages: the images that were chosen, as parquet files that `load_dataset` reads."""

import hashlib
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from pyarrow import parquet
from tqdm.auto import tqdm

from ...data.decoding.size_limits import UndecodableImage
from ...data.reading.row_paths import holds_files
from ..algorithms.image_hashes import content_hash
from ..run_context import Curation
from .dropped_images import DroppedImage, write_dropped
from .image_reading import UnreadableFile, read_image_file, refuse_unread
from .manifests import MANIFEST, UnfinishedShard, shard_range
from .published_images import load_face_blur, published_content


# Rows are written in groups of so many: readers hold a group in memory.
ROW_GROUP_IMAGES = 100


def dataset_features(curation: Curation) -> datasets.Features:
    """The columns of the dataset."""
    kept = curation.sources.column_features(curation.arguments.keep_columns)
    own = {
        "image": datasets.Image(),
        "id": datasets.Value("string"),
        "source": datasets.Value("string"),
        "origin": datasets.Value("string"),
        "retrieved_for": datasets.Sequence(datasets.Value("string")),
        "times_retrieved": datasets.Value("int64"),
    }
    taken = sorted(set(kept) & set(own))
    if taken:
        raise ValueError(f"keep_columns has {taken[0]!r}, which is a column of every curated dataset.")
    return datasets.Features({**own, **kept})


def chosen_rows(curation: Curation) -> pa.Table:
    """The rows of the dataset: those selected from the pool, then those of the curated sources that are included.

    Of a curated source those that `hash_deduplicate` and, where they were embedded, `embed` left.
    """
    selected = parquet.read_table(curation.folders["select"].shard(0) / "selected.parquet")
    if curation.arguments.accounting == "multiset":
        repeated = np.repeat(np.arange(len(selected)), selected["times_retrieved"].to_numpy())
        selected = selected.take(repeated)
    curated = curation.array("hash_deduplicate", "curated")
    if curation.arguments.how_selected == "retrieval":
        embedded = curation.vectors(curation.retrieval_stage, "curated")
        curated = np.empty(0, np.int64) if embedded is None else embedded.ids
    included = [
        np.intersect1d(curated, np.asarray(curation.sources.range_of(number)))
        for number, (role, source) in enumerate(curation.arguments.sources)
        if role == "curated" and curation.arguments.includes(source)
    ]
    rows = np.concatenate([np.empty(0, np.int64), *included]).astype(np.int64)
    as_they_are = pa.table(
        {"row_id": rows, "times_retrieved": np.zeros(len(rows), np.int64), "retrieved_for": [[]] * len(rows)},
        schema=selected.schema,
    )
    return pa.concat_tables([selected, as_they_are])


def build_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Write a range of the chosen rows to `00000.parquet`, `00001.parquet`, ... of `rows_per_file` rows each.

    `written.npy` has their row ids, `dropped.parquet` those that could not be read again.
    """
    arguments, sources = curation.arguments, curation.sources
    chosen = chosen_rows(curation)
    if not len(chosen):
        raise ValueError(
            "no image is left for the dataset: dropped.parquet in the folders of"
            f" {curation.output_dir / 'stages'} says why."
        )
    rows = shard_range(len(chosen), rank, world_size)
    features = dataset_features(curation)
    blur = load_face_blur(arguments)
    part = chosen.slice(rows.start, len(rows)).to_pylist()
    facts = curation.facts([row["row_id"] for row in part], ["id", "path", "content_hash"])
    ids, paths, hashes = (facts[name].to_pylist() for name in ("id", "path", "content_hash"))
    before = chosen["row_id"][rows.start - 1].as_py() if rows.start else None
    dropped, written, writer, batch, in_file = [], [], None, [], 0
    files = 0

    def flush() -> None:
        nonlocal writer, files, in_file
        if not batch:
            return
        if writer is None:
            writer = parquet.ParquetWriter(shard.folder / f"{files:05d}.parquet", features.arrow_schema)
            files += 1
        writer.write_table(_encoded(batch, features))
        in_file += len(batch)
        batch.clear()
        if in_file >= arguments.rows_per_file:
            writer.close()
            writer, in_file = None, 0

    bar = tqdm(range(len(rows)), desc=f"build {rank + 1}/{world_size}", unit="image", disable=not arguments.progress)
    try:
        for place in bar:
            row = part[place]
            number, _ = sources.locate(row["row_id"])
            source = sources.sources[number].name
            try:
                content = read_image_file(sources.image(row["row_id"]))
                if content_hash(content) != hashes[place]:
                    raise UndecodableImage("the file is not the one that was read first")
                content = published_content(
                    content, image_format=arguments.image_format, blur=blur, strip_metadata=arguments.strip_metadata
                )
            except (UndecodableImage, UnreadableFile) as error:  # it was there when it was ingested
                refuse_unread(ids[place], str(error), skip_unreadable=arguments.skip_unreadable)
                # Repeats of a multiset follow each other, and are dropped as one.
                if row["row_id"] != (part[place - 1]["row_id"] if place else before):
                    reason = f"cannot be read again: {error}"
                    dropped.append(DroppedImage(row["row_id"], ids[place], paths[place], source, "build", reason))
                continue
            batch.append(
                {
                    "image": {"bytes": content, "path": None},
                    "id": ids[place],
                    "source": source,
                    "origin": "pool" if sources.roles[number] == "uncurated" else "curated",
                    "retrieved_for": [sources.sources[other].name for other in row["retrieved_for"]],
                    "times_retrieved": row["times_retrieved"],
                    **sources.values(row["row_id"], arguments.keep_columns),
                }
            )
            written.append(row["row_id"])
            if len(batch) >= min(ROW_GROUP_IMAGES, arguments.rows_per_file - in_file):
                flush()
        flush()
    finally:
        if writer is not None:
            writer.close()
    write_dropped(dropped, shard.folder)
    np.save(shard.folder / "written.npy", np.array(written, dtype=np.int64))
    shard.rows = len(written)


def built_files(curation: Curation) -> list[Path]:
    """The parquet files of all build shards, in order."""
    return [path for shard in curation.folders["build"].shards() for path in sorted(shard.glob("[0-9]*.parquet"))]


def content_fingerprint(curation: Curation) -> str:
    """Tells datasets apart: changes with any byte of the files of all build shards."""
    digest = hashlib.blake2b(digest_size=8)
    for shard in curation.folders["build"].shards():
        files = json.loads((shard / MANIFEST).read_text())["files"]
        digest.update("".join(f"{name} {files[name]['checksum']}\n" for name in sorted(files)).encode())
    return digest.hexdigest()


def _encoded(rows: list[dict], features: datasets.Features) -> pa.Table:
    """Rows as a table, their types and their `datasets` features in its schema."""
    columns = {name: [row[name] for row in rows] for name in features}
    # Files are there as they are stored; encoding them would need the library of their kind.
    for name in (name for name, feature in features.items() if not holds_files(feature)):
        columns[name] = features.encode_column(columns[name], name)
    return pa.table(columns, schema=features.arrow_schema)


def read_report(curation: Curation, stage: str) -> dict:
    """`report.json` of a stage of one shard; empty where there is none."""
    path = curation.folders[stage].shard(0) / "report.json" if stage in curation.folders else None
    return json.loads(path.read_text()) if path and path.exists() else {}
