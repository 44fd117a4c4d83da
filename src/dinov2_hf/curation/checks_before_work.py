"""Checks before the first image is read: models and filters on a picture, the device, sizes.

Some stages run last, after hours. A model that fails there wastes all of this time.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from ..data import max_image_pixels
from ..devices import find_device
from .algorithms.index_settings import IndexSettings
from .arguments import CurationArguments
from .embedders import kind_of_embedder
from .filters import Columns, FilterChain, planned_filters
from .run_context import Curation
from .stages.embed import load_embedder_of
from .storage.precomputed_vectors import PrecomputedVectors
from .storage.published_images import load_face_blur


# Limits of the perceptual descriptor. Of 499,500 pairs of unlike photographs, 4 exceed 0.6 and 33 exceed 0.45
# (docs/curation_scale.md). At these limits one image in six has a false copy, and one in eight a false benchmark.
PERCEPTUAL_FALSE_COPIES = 4 / 499_500
PERCEPTUAL_FALSE_BENCHMARKS = 33 / 499_500
MOST_PERCEPTUAL = 20_000
MOST_PERCEPTUAL_BENCHMARK = 2_000


def check_models(curation: Curation, unfinished: set[str]) -> None:
    """Check that the models, filters and vectors of these stages work on a picture.

    Raises:
        ValueError: one of them fails, or the device cannot be used.
    """
    arguments = curation.arguments
    if arguments.executor in ("slurm", "ray"):  # the accelerators are on other machines
        arguments = dataclasses.replace(arguments, device="cpu")
    find_device(arguments.device)
    picture = _picture()
    if "ingest" in unfinished:
        _check_filters(arguments, curation, picture)
    for stage, field in (("describe", "embedder"), ("retrieval_describe", "retrieval_embedder")):
        spec = getattr(arguments, field)
        if stage in unfinished and spec is not None:
            _check_embedder(field, spec, arguments, curation, picture)
    if unfinished & {"build", "report"} and arguments.face_model is not None:
        with _named("face_"):
            load_face_blur(arguments)(picture)


def refuse_unnamed_descriptor(curation: Curation) -> None:
    """Refuse the perceptual descriptor as a default beyond its limits, unless it is named.

    Raises:
        ValueError: no embedder is named, and the pool or the benchmarks are large, or images are chosen by meaning.
    """
    arguments = curation.arguments
    if arguments.embedder is not None:
        return
    pool, benchmarks = curation.sources.rows_of("uncurated"), curation.sources.rows_of("benchmark")
    default = "embedder is not given; the default, the perceptual descriptor, finds copies"
    if pool > MOST_PERCEPTUAL:
        each = PERCEPTUAL_FALSE_COPIES * pool
        problem = (
            f"in pools of up to {MOST_PERCEPTUAL:,} images, but in this of {pool:,} an image has about {each:.1g}"
        )
        problem += " neighbours above 0.6 that are none"
    elif benchmarks > MOST_PERCEPTUAL_BENCHMARK:
        each = PERCEPTUAL_FALSE_BENCHMARKS * benchmarks
        problem = f"of up to {MOST_PERCEPTUAL_BENCHMARK:,} benchmark images, but of these {benchmarks:,} an image is"
        problem += f" above 0.45 to about {each:.1g} that it has nothing to do with"
    elif arguments.how_selected != "all" and arguments.retrieval_embedder is None:
        problem = "and knows nothing of what is to be seen, but images are to be chosen by that: name a model, also as"
        problem += " --retrieval_embedder"
    else:
        return
    raise ValueError(
        f"{default} {problem}; name one (--embedder: efficientnet_lite0, SSCD, a model, vectors), or --embedder"
        " perceptual if you want it all the same. docs/curation_scale.md has what was measured."
    )


def check_sizes(curation: Curation) -> None:
    """Check the numbers of clusters and neighbours, as far as possible before images are dropped.

    Raises:
        ValueError: a number exceeds the number of images of the pool.
    """
    arguments, sources = curation.arguments, curation.sources
    pool, asked = sources.rows_of("uncurated"), {}
    if arguments.how_selected == "hierarchical":
        asked["hierarchy"] = arguments.hierarchy[0]
    for mode, num_neighbors in arguments.modes_of_sources.values():
        if mode == "sample":
            asked["retrieval_num_neighbors"] = max(num_neighbors, asked.get("retrieval_num_neighbors", 0))
        else:
            asked["num_clusters"] = arguments.num_clusters
    for field, number in asked.items():
        if number > pool:
            raise ValueError(f"{field} is {number}, but the pool has only {pool} images: take fewer.")
    if arguments.index is not None:
        IndexSettings(arguments.index)


@contextmanager
def _named(role: str) -> Iterator[None]:
    """Turn errors about a model or label into errors about the field of the recipe that names it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{role}{error}" if str(error).startswith(("model is", "label is")) else str(error)
        ) from error


def _check_filters(arguments: CurationArguments, curation: Curation, picture: Image.Image) -> None:
    facts = {"row_id": 0, "id": curation.sources.image_id(0), "path": None, "num_bytes": 1}
    facts |= {"width": picture.width, "height": picture.height}
    columns = Columns(curation.sources, [facts])
    for planned in planned_filters(arguments):
        with _named("nsfw_" if planned.options.get("model") == arguments.nsfw_model else ""):
            FilterChain([planned], arguments.device)([picture], lambda places: columns)


def _check_embedder(
    field: str, spec: str, arguments: CurationArguments, curation: Curation, picture: Image.Image
) -> None:
    if kind_of_embedder(spec) == "precomputed":
        PrecomputedVectors(spec, curation.sources)
        return
    device = str(find_device(arguments.device))
    try:
        embedder = load_embedder_of(arguments, spec, device=device)
    except Exception as error:  # a file of weights, or code in it, can raise anything
        reason = " ".join(str(error).split())
        if reason.startswith("embedder is"):
            raise ValueError(f"{field}{reason.removeprefix('embedder')}") from error
        raise ValueError(f"{field} is {spec!r}, which cannot be loaded: {reason}") from error
    try:
        vectors = embedder([{"image": picture}]).values
    except Exception as error:  # a network of the user can fail in any way
        reason = " ".join(str(error).split())
        raise ValueError(f"{field} is {spec!r}, which fails on a test picture: {reason}") from error
    if vectors.ndim != 2 or not vectors.isfinite().all():
        found = "numbers that are not finite" if vectors.ndim == 2 else f"vectors of shape {tuple(vectors.shape[1:])}"
        raise ValueError(
            f"{field} is {spec!r}, which gives {found} for a test picture, but one finite vector for each image is"
            " needed."
        )


def _picture() -> Image.Image:
    """
    A picture of noise, so that no network takes it for an empty picture. It is wider than high, as most photographs
    are, and has no more pixels than images may have here.
    """
    width = min(320, math.isqrt(max_image_pixels()))
    size = (max(1, width * 3 // 4), width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
