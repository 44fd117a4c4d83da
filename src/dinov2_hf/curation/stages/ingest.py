"""The first stage: every image is read and decoded once, and gets a row of facts or a reason why not.

A shard is a range of the numbering of all rows (`sources.OpenSources`).
"""

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from tqdm.auto import tqdm

from ...data.decoding.file_content import outside_path
from ...data.decoding.rgb import decode_image
from ...data.decoding.size_limits import UndecodableImage
from ..algorithms.image_hashes import content_hash, perceptual_hash
from ..arguments import CurationArguments
from ..image_filters import ImageFilter, file_reason, filter_reasons, load_filter, size_reason
from ..model_filters import ClassifierFilter
from ..run_context import Curation
from ..storage.dropped_images import DroppedImage, write_dropped
from ..storage.image_reading import UnreadableFile, read_image_file, refuse_unread
from ..storage.manifests import UnfinishedShard, shard_range


IMAGES_SCHEMA = pa.schema(
    {
        "row_id": pa.int64(),
        "id": pa.string(),
        "path": pa.string(),  # of the file, where there is one
        "source": pa.int32(),  # number of the source
        "width": pa.int32(),
        "height": pa.int32(),
        "num_bytes": pa.int64(),
        "content_hash": pa.binary(16),
        "perceptual_hash": pa.uint64(),
    }
)
QUALITY_COLUMNS = ["width", "height", "num_bytes"]
FILTER_BATCH_SIZE = 32


def ingest_shard(
    curation: Curation,
    rank: int,
    world_size: int,
    shard: UnfinishedShard,
) -> None:
    """Read a range of rows: `images.parquet` holds the facts of those kept, `dropped.parquet` the others.

    Only the pool is filtered. Benchmark and curated images are decoded and hashed: they count, and are taken, as they
    are.
    """
    arguments, sources = curation.arguments, curation.sources
    rows = shard_range(len(sources), rank, world_size)
    filters = load_filters(arguments)
    kept, dropped, waiting = [], [], []

    def drop(facts: dict, reason: str) -> None:
        source = sources.sources[facts["source"]].name
        dropped.append(DroppedImage(facts["row_id"], facts["id"], facts["path"], source, "ingest", reason))

    def finish_waiting() -> None:
        for (facts, _), reason in zip(waiting, filter_reasons(filters, [image for _, image in waiting]), strict=True):
            if reason is None:
                kept.append(facts)
            else:
                drop(facts, reason)
        waiting.clear()

    for row_id in tqdm(rows, desc=f"ingest {rank + 1}/{world_size}", unit="image", disable=not arguments.progress):
        source, _ = sources.locate(row_id)
        value = sources.image(row_id)
        path = value and value["path"]
        path = path and (outside_path(path) or path)
        facts = {"row_id": row_id, "id": sources.image_id(row_id), "path": path, "source": source}
        is_filtered = sources.roles[source] == "uncurated"
        image, reason = _read(value, arguments, facts, is_filtered)
        if reason is not None:
            drop(facts, reason)
        elif filters and is_filtered:
            waiting.append((facts, image))
            if len(waiting) == FILTER_BATCH_SIZE:
                finish_waiting()
        else:
            kept.append(facts)
    finish_waiting()
    kept.sort(key=lambda facts: facts["row_id"])
    parquet.write_table(pa.Table.from_pylist(kept, schema=IMAGES_SCHEMA), shard.folder / "images.parquet")
    write_dropped(dropped, shard.folder)
    shard.rows = len(kept)


def quality_of(images: pa.Table) -> np.ndarray:
    """What "best quality" goes by, (n,) float64: pixels, and among images of equally many the bytes of the file.

    Args:
        images: `QUALITY_COLUMNS` of them.
    """
    pixels = images["width"].to_numpy().astype(np.float64) * images["height"].to_numpy()
    return pixels + images["num_bytes"].to_numpy() / 2**40


def _read(
    value: dict, arguments: CurationArguments, facts: dict, is_filtered: bool
) -> tuple[Image.Image | None, str | None]:
    """The picture and the reason to drop it, of which one is None; fills in the facts."""
    try:
        content = read_image_file(value)
        if is_filtered:
            reason = file_reason(len(content), min_bytes=arguments.min_bytes, max_bytes=arguments.max_bytes)
            if reason is not None:
                return None, reason
        image = decode_image(content)
    except UnreadableFile as error:
        refuse_unread(facts["id"], str(error), skip_unreadable=arguments.skip_unreadable)
        return None, f"cannot be read: {error}"
    except UndecodableImage as error:
        return None, f"cannot be decoded: {error}"
    if is_filtered:
        reason = size_reason(*image.size, min_side=arguments.min_side, max_aspect_ratio=arguments.max_aspect_ratio)
        if reason is not None:
            return None, reason
    facts.update(
        width=image.width,
        height=image.height,
        num_bytes=len(content),
        content_hash=content_hash(content),
        perceptual_hash=perceptual_hash(image),
    )
    return image, None


def load_filters(arguments: CurationArguments) -> list[ImageFilter]:
    """The filters that these arguments name, and the classifier for unsafe images."""
    filters = [load_filter(name) for name in arguments.filters]
    if arguments.nsfw_model is not None:
        filters.append(
            ClassifierFilter(arguments.nsfw_model, arguments.nsfw_label, arguments.nsfw_threshold, arguments.device)
        )
    return filters
