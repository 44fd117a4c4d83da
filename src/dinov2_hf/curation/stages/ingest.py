"""The first stage reads and decodes every image once, and writes a row of facts, or the reason why the image goes.

A shard is a piece of one source and counts rows within it, so what was read stays valid when other sources come or go.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ...progress import Progress
from .. import pixels
from ..arguments import CurationArguments
from ..embedders import kind_of_embedder
from ..filters import FILTERS, Columns, FilterChain, planned_filters
from ..run_context import Curation, Piece
from ..storage.code_fingerprints import fingerprint_of_named
from ..storage.dropped_images import DROPPED_SCHEMA
from ..storage.file_fingerprints import file_fingerprint
from ..storage.image_reading import refuse_failures, refuse_unread
from ..storage.manifests import UnfinishedShard
from .embed import embedder_at_work, roles_of, what_decides_vectors, workers_of
from .first_pass import ReadImage, read_images
from .first_vectors import FirstVectors
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
BATCH_SIZE = 32  # images whose pictures are in memory together


def _what_decides(curation: Curation) -> dict[str, Any]:
    texts = [option for _, given in curation.arguments.named_filters for option in given.values()]
    files = [text for text in [curation.arguments.nsfw_model, *texts] if isinstance(text, str)]
    decoding = pixels.what_decides(curation.arguments, curation.arguments.copy_embedder)
    code = [fingerprint_of_named(FILTERS, name) for name, _ in curation.arguments.named_filters]
    return {"files_of_filters": [file_fingerprint(path) for path in files], "code_of_filters": code, **decoding}


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
    """Read a piece of a source: `images.parquet` has the facts of images that are kept, `scores.parquet` the scores.

    Only the pool is filtered. Benchmark and curated images are decoded and hashed, and are used as they are.
    """
    arguments, sources = curation.arguments, curation.sources
    piece = curation.pieces[shard.rank]
    sources.refuse_changed(piece.row_ids)
    source, is_pool = sources.sources[piece.source], sources.roles[piece.source] == "uncurated"
    chain = FilterChain(planned_filters(arguments) if is_pool else [], arguments.device)
    vectors = _vectors_to_make(curation, piece)
    kept, scored, dropped, seen = [], [], [], set()
    num_failed = 0

    def drop(facts: dict, reason: str) -> None:
        dropped.append({**facts, "row_id": facts["row"], "source": source.name, "stage": "ingest", "reason": reason})

    def fail(facts: dict, reason: str) -> None:
        drop(facts, reason)
        nonlocal num_failed
        num_failed += 1
        last, rate = f"{facts['id']} {reason}", arguments.max_failure_rate
        refuse_failures(num_failed, len(piece.rows), source.name, last, max_failure_rate=rate)

    def filtered(readable: list[tuple[dict, ReadImage]]) -> list[tuple[dict, ReadImage]]:
        facts, images = [fact for fact, _ in readable], [found.image for _, found in readable]
        scores, reasons = chain(images, lambda places: Columns(sources, [facts[place] for place in places]))
        for fact, score, reason in zip(facts, scores, reasons, strict=True):
            scored.append({"row": fact["row"], **score})
            if reason is not None:
                drop(fact, reason)
        return [one for one, reason in zip(readable, reasons, strict=True) if reason is None]

    batches = read_images(
        sources, piece.row_ids, batch_size=BATCH_SIZE,
        is_reduced=pixels.is_reduced(arguments, arguments.copy_embedder),
        **_how_to_read(arguments, vectors, reads_pixels=any(planned.reads_pixels for planned, _ in chain.filters)),
    )  # fmt: skip
    with Progress(
        total=len(piece.row_ids), desc=f"ingest {shard.label}", unit="image", disable=not arguments.progress
    ) as bar:
        for batch in batches:
            readable = []
            for found in batch:
                row = found.row_id - piece.begin
                facts = {"row_id": found.row_id, "row": row, "id": sources.image_id(found.row_id), **found.facts}
                if found.reason is None:
                    readable.append((facts, found))
                elif found.is_unreadable:
                    refuse_unread(facts["id"], found.reason, skip_unreadable=arguments.skip_unreadable)
                    fail(facts, f"cannot be read: {found.reason}")
                else:
                    fail(facts, f"cannot be decoded: {found.reason}")
            if chain.filters and readable:
                readable = filtered(readable)
            kept += [facts for facts, _ in readable]
            if vectors is not None:
                vectors.add(_worth_a_vector(readable, seen, arguments) if is_pool else _with_rows(readable))
            bar.update(len(batch))
    if vectors is not None:
        vectors.save(shard.folder, what_decides_vectors(arguments.copy_embedder, arguments))
    kept.sort(key=lambda facts: facts["row"])
    parquet.write_table(pa.Table.from_pylist(kept, schema=IMAGES_SCHEMA), shard.folder / "images.parquet")
    names = [planned.name for planned in planned_filters(arguments)]
    if names:
        schema = pa.schema({"row": pa.int64(), **dict.fromkeys(names, pa.float64())})
        parquet.write_table(pa.Table.from_pylist(scored, schema=schema), shard.folder / "scores.parquet")
    shard.rows = len(kept)
    return pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA)


def quality_of(images: pa.Table) -> np.ndarray:
    """What "best quality" compares, (n,) float64: the pixels, and the bytes of the file if these are equal.

    Args:
        images: a table with `QUALITY_COLUMNS`.
    """
    pixels = images["width"].to_numpy().astype(np.float64) * images["height"].to_numpy()
    return pixels + images["num_bytes"].to_numpy() / 2**40


def _vectors_to_make(curation: Curation, piece: Piece) -> FirstVectors | None:
    """Takes the vectors of the images of a piece; None if none are wanted that an embedder makes of RGB pictures."""
    arguments, role = curation.arguments, curation.sources.roles[piece.source]
    if role not in roles_of(curation, "embedder") or kind_of_embedder(arguments.copy_embedder) == "precomputed":
        return None
    embedder = embedder_at_work(arguments, arguments.copy_embedder)
    return FirstVectors(embedder) if embedder.extractor.num_channels == 3 else None


def _how_to_read(arguments: CurationArguments, vectors: FirstVectors | None, *, reads_pixels: bool) -> dict[str, Any]:
    """How many processes read images, and what comes from them."""
    num_workers = workers_of(arguments)["num_workers"]
    # What a model has put on a GPU cannot be used in other processes, so pictures come from them in that case.
    elsewhere = vectors is not None and num_workers > 0 and vectors.embedder.extractor.num_workers > 0
    return {
        "num_workers": num_workers,
        "process": vectors.process if elsewhere else None,
        "keeps_images": reads_pixels or (vectors is not None and not elsewhere),
    }


def _with_rows(readable: list[tuple[dict, ReadImage]]) -> list[tuple[int, ReadImage]]:
    return [(facts["row"], found) for facts, found in readable]


def _worth_a_vector(
    readable: list[tuple[dict, ReadImage]], seen: set, arguments: CurationArguments
) -> list[tuple[int, ReadImage]]:
    """The images without copies of earlier ones, which `hash_deduplicate` drops; `seen` has the earlier hashes."""
    chosen = []
    for facts, found in readable:
        of_image = set()
        if arguments.representative == "smallest_id" and arguments.deduplicate_content:
            of_image.add(facts["content_hash"])
        if arguments.representative == "smallest_id" and arguments.perceptual_hash_distance is not None:
            of_image.add(int(facts["perceptual_hash"]))
        if not of_image & seen:
            chosen.append((facts["row"], found))
        seen |= of_image
    return chosen
