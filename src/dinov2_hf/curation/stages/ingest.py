"""The first stage: every image is read and decoded once, and gets a row of facts or a reason why not.

A shard is a piece of one source, and counts rows within it: what was read stays when other sources come or go.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from ...data.decoding.file_content import outside_path
from ...data.decoding.rgb import decode_image, format_of
from ...data.decoding.undecodable import UndecodableImage
from ...data.reading.remote_files import is_url
from ...progress import Progress
from ...public_names import without_secrets
from ..algorithms.image_hashes import content_hash, perceptual_hash
from ..filters import FILTERS, Columns, FilterChain, planned_filters
from ..run_context import Curation
from ..storage.code_fingerprints import fingerprint_of_named
from ..storage.dropped_images import DROPPED_SCHEMA
from ..storage.file_fingerprints import file_fingerprint
from ..storage.image_reading import UnreadableFile, read_image_file, refuse_failures, refuse_unread
from ..storage.manifests import UnfinishedShard
from .stage import source_shards, stage


IMAGES_SCHEMA = pa.schema(
    {
        "row": pa.int64(),  # within the source
        "id": pa.string(),
        "path": pa.string(),  # of the file, where there is one
        "width": pa.int32(),
        "height": pa.int32(),
        "num_bytes": pa.int64(),
        "content_hash": pa.binary(16),
        "perceptual_hash": pa.uint64(),
        "format": pa.string(),  # of the file, as Pillow calls it
    }
)
QUALITY_COLUMNS = ["width", "height", "num_bytes"]
FILTER_BATCH_SIZE = 32


def _what_decides(curation: Curation) -> dict[str, Any]:
    texts = [option for _, given in curation.arguments.named_filters for option in given.values()]
    files = [text for text in [curation.arguments.nsfw_model, *texts] if isinstance(text, str)]
    code = [fingerprint_of_named(FILTERS, name) for name, _ in curation.arguments.named_filters]
    return {"files_of_filters": [file_fingerprint(path) for path in files], "code_of_filters": code}


@stage(
    "ingest",
    title="read and filtered",
    writes_left=True,
    needs=[],
    num_shards=source_shards,
    by_source=True,
    config=_what_decides,
)
def ingest(
    curation: Curation, shard: UnfinishedShard, *, min_side: int | None, max_aspect_ratio: float | None,
    min_bytes: int | None, max_bytes: int | None, max_image_pixels: int | None, filters: list,
    nsfw_model: str | None, nsfw_label: str, nsfw_threshold: float,
) -> pa.Table:  # fmt: skip
    """Read a piece of a source: `images.parquet` holds the facts of those kept, `scores.parquet` what filters said.

    Only the pool is filtered. Benchmark and curated images are decoded and hashed: they count, and are taken, as they
    are.
    """
    arguments, sources = curation.arguments, curation.sources
    piece = curation.pieces[shard.rank]
    sources.refuse_changed(piece.row_ids)
    source, is_pool = sources.sources[piece.source], sources.roles[piece.source] == "uncurated"
    chain = FilterChain(planned_filters(arguments), arguments.device)
    kept, scored, dropped, waiting = [], [], [], []
    num_failed = 0

    def drop(facts: dict, reason: str) -> None:
        dropped.append({**facts, "row_id": facts["row"], "source": source.name, "stage": "ingest", "reason": reason})

    def fail(facts: dict, reason: str) -> None:
        drop(facts, reason)
        nonlocal num_failed
        num_failed += 1
        last, rate = f"{facts['id']} {reason}", arguments.max_failure_rate
        refuse_failures(num_failed, len(piece.rows), source.name, last, max_failure_rate=rate)

    def finish_waiting() -> None:
        facts, images = [fact for fact, _ in waiting], [image for _, image in waiting]
        scores, reasons = chain(images, lambda places: Columns(sources, [facts[place] for place in places]))
        for fact, found, reason in zip(facts, scores, reasons, strict=True):
            scored.append({"row": fact["row"], **found})
            if reason is None:
                kept.append(fact)
            else:
                drop(fact, reason)
        waiting.clear()

    bar = Progress(piece.row_ids, desc=f"ingest {shard.label}", unit="image", disable=not arguments.progress)
    for row_id in bar:
        facts = {"row_id": row_id, "row": row_id - piece.begin, "id": sources.image_id(row_id), "path": None}
        try:
            value = sources.image(row_id)
            facts["path"] = _shown_path(value)
            image = _read(value, facts)
        except UnreadableFile as error:
            refuse_unread(facts["id"], str(error), skip_unreadable=arguments.skip_unreadable)
            fail(facts, f"cannot be read: {error}")
        except UndecodableImage as error:
            fail(facts, f"cannot be decoded: {error}")
        else:
            if chain.filters and is_pool:
                waiting.append((facts, image))
            else:
                kept.append(facts)
        if len(waiting) == FILTER_BATCH_SIZE:
            finish_waiting()
    if waiting:
        finish_waiting()
    kept.sort(key=lambda facts: facts["row"])
    parquet.write_table(pa.Table.from_pylist(kept, schema=IMAGES_SCHEMA), shard.folder / "images.parquet")
    names = [planned.name for planned, _ in chain.filters]
    if names:
        schema = pa.schema({"row": pa.int64(), **dict.fromkeys(names, pa.float64())})
        parquet.write_table(pa.Table.from_pylist(scored, schema=schema), shard.folder / "scores.parquet")
    shard.rows = len(kept)
    return pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA)


def quality_of(images: pa.Table) -> np.ndarray:
    """What "best quality" goes by, (n,) float64: pixels, and among images of equally many the bytes of the file.

    Args:
        images: `QUALITY_COLUMNS` of them.
    """
    pixels = images["width"].to_numpy().astype(np.float64) * images["height"].to_numpy()
    return pixels + images["num_bytes"].to_numpy() / 2**40


def _shown_path(value: Mapping[str, Any] | None) -> str | None:
    """The name of a file for records: without the mark of a forbidden one, and without what signs an address."""
    path = value and value["path"]
    if path is None:
        return None
    path = outside_path(path) or path
    return without_secrets(path) if is_url(path) else path


def _read(value: Mapping[str, Any] | None, facts: dict[str, Any]) -> Image.Image:
    """The picture; fills in the facts that its file tells."""
    content = read_image_file(value)
    image = decode_image(content)
    facts.update(
        width=image.width,
        height=image.height,
        num_bytes=len(content),
        content_hash=content_hash(content),
        perceptual_hash=perceptual_hash(image),
        format=format_of(content),
    )
    return image
