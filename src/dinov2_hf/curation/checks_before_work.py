"""What is tried before the first image is read: models and filters on a picture, the device, sizes.

Some stages come last, after hours. A model that fails there has cost them all.
"""

import dataclasses
import io
import math

import numpy as np
from PIL import Image

from ..data import max_image_pixels
from ..devices import find_device
from .algorithms.neighbors import IndexSettings
from .arguments import CurationArguments
from .embedders import PERCEPTUAL, PrecomputedVectors, kind_of_embedder, load_model_embedder
from .image_filters import filter_reasons
from .run_context import Curation
from .stages.ingest import load_filters
from .storage.published_images import load_face_blur


def check_models(curation: Curation, unfinished: set[str]) -> None:
    """That the models, filters and vectors of these stages work on a picture.

    Raises:
        ValueError: one does not, or the device cannot be used.
    """
    arguments = curation.arguments
    if arguments.executor in ("slurm", "ray"):  # their machines have the accelerators
        arguments = dataclasses.replace(arguments, device="cpu")
    find_device(arguments.device)
    picture = _picture()
    if "ingest" in unfinished:
        filter_reasons(load_filters(arguments), [picture])
    for stage, field in (("embed", "embedder"), ("retrieval_embed", "retrieval_embedder")):
        spec = getattr(arguments, field)
        if stage in unfinished and spec is not None:
            _check_embedder(field, spec, arguments, curation, picture)
    blur = load_face_blur(arguments) if unfinished & {"build", "report"} else None
    if blur is not None:
        blur(picture)


def check_sizes(curation: Curation) -> None:
    """What can be known of too many clusters or neighbours before images are dropped.

    Raises:
        ValueError: a number exceeds that of the images of the pool.
    """
    arguments, sources = curation.arguments, curation.sources
    pool, asked = sources.rows_of("uncurated"), {}
    if arguments.how_selected == "hierarchical":
        asked["hierarchy"] = arguments.hierarchy[0]
    if arguments.how_selected == "retrieval":
        for mode, num_neighbors in (arguments.retrieval_of(s) for role, s in arguments.sources if role == "curated"):
            if mode == "sample":
                asked["retrieval_num_neighbors"] = max(num_neighbors, asked.get("retrieval_num_neighbors", 0))
            else:
                asked["num_clusters"] = arguments.num_clusters
    for field, number in asked.items():
        if number > pool:
            raise ValueError(f"{field} is {number}, but the pool has only {pool} images: take fewer.")
    if arguments.index is not None:
        IndexSettings(arguments.index)


def _check_embedder(
    field: str, spec: str, arguments: CurationArguments, curation: Curation, picture: Image.Image
) -> None:
    kind = kind_of_embedder(spec)
    if kind == "precomputed":
        PrecomputedVectors(spec, curation.sources)
        return
    if spec == PERCEPTUAL:
        return
    try:
        embedder = load_model_embedder(
            spec,
            descriptor=None,
            feature_kind=arguments.feature_kind,
            torchscript_size=arguments.torchscript_size,
            batch_size=arguments.batch_size,
            trust_torchscript=arguments.trust_torchscript,
        )
    except Exception as error:  # whatever a file of weights, or code in one, raises
        reason = " ".join(str(error).split())
        if reason.startswith("embedder is"):
            raise ValueError(f"{field}{reason.removeprefix('embedder')}") from error
        raise ValueError(f"{field} is {spec!r}, which cannot be loaded: {reason}") from error
    try:
        _, vectors, _ = embedder.vectors(
            [{"image": {"bytes": _encoded(picture), "path": None}}],
            device=str(find_device(arguments.device)),
            bf16=arguments.bf16,
            num_workers=0,
            progress=False,
            description=field,
        )
    except Exception as error:  # a network of the user's can fail in any way
        reason = " ".join(str(error).split())
        raise ValueError(f"{field} is {spec!r}, which fails on a test picture: {reason}") from error
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        found = "numbers that are not finite" if vectors.ndim == 2 else f"vectors of shape {vectors.shape[1:]}"
        raise ValueError(
            f"{field} is {spec!r}, which gives {found} for a test picture, but one finite vector for each image is"
            " needed."
        )


def _picture() -> Image.Image:
    """
    Noise, so that no network takes it for an empty picture; wider than high, as most photographs are, and of no more
    pixels than images may have here.
    """
    width = min(320, math.isqrt(max_image_pixels()))
    size = (max(1, width * 3 // 4), width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
