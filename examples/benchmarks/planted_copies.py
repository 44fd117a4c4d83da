"""Copies of known images, made by known transforms: which of them an embedder finds; run by `curation.py`.

For each transform, every original is compared with every copy. Recall is the share of copies whose similarity to
their own original exceeds the threshold; precision, among all pairs that exceed it, the share that are copies, which
falls as originals are added. `nearest_is_own` is the share of copies that no other original is more similar to.
Deduplication of the originals alone should drop none: `wrongly_dropped` counts.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torchvision.transforms.v2 import functional as F
from tqdm.auto import tqdm

from dinov2_hf.curation.algorithms.deduplication import Edges, connected_components
from dinov2_hf.curation.algorithms.perceptual_descriptor import PatchSums, PerceptualDescriptor
from dinov2_hf.curation.embedders import load_embedder


THRESHOLDS = (0.6, 0.45)


def jpeg(quality: int) -> Callable:
    def transform(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return transform


def resized(factor: float) -> Callable:
    return lambda image: image.resize([max(8, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)


def cropped(area: float) -> Callable:
    """The middle, moved by a third of the room there is."""

    def transform(image: Image.Image) -> Image.Image:
        width, height = (round(side * area**0.5) for side in image.size)
        left, top = (image.width - width) // 3, (image.height - height) // 3
        return image.crop((left, top, left + width, top + height))

    return transform


def recoloured(image: Image.Image) -> Image.Image:
    image = F.adjust_contrast(F.adjust_brightness(image, 1.3), 0.75)
    return F.adjust_hue(F.adjust_saturation(image, 1.6), 0.05)


def with_text(image: Image.Image) -> Image.Image:
    """Two lines of letters with an outline, the taller a sixth of the height, as on pictures that are passed on."""
    image, size = image.copy(), image.height / 6
    draw = ImageDraw.Draw(image)
    for text, y, part in (("WHEN YOU SEE IT", 0.03, 1.0), ("follow for more", 0.85, 0.6)):
        draw.text(
            (image.width * 0.05, image.height * y),
            text,
            "white",
            None,
            font_size=size * part,
            stroke_width=2,
            stroke_fill="black",
        )
    return image


def with_emoji(image: Image.Image) -> Image.Image:
    """A yellow face over a twelfth of the area."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    side = (image.width * image.height / 12) ** 0.5
    x, y = image.width * 0.6, image.height * 0.15

    def box(left, top, right, bottom):
        return (x + left * side, y + top * side, x + right * side, y + bottom * side)

    draw.ellipse(box(0, 0, 1, 1), fill="#ffcc22", outline="#996600", width=2)
    draw.ellipse(box(0.25, 0.28, 0.38, 0.45), fill="black")
    draw.ellipse(box(0.62, 0.28, 0.75, 0.45), fill="black")
    draw.arc(box(0.2, 0.3, 0.8, 0.82), 20, 160, fill="black", width=max(2, round(side / 16)))
    return image


def with_border(image: Image.Image) -> Image.Image:
    return ImageOps.expand(image, border=round(0.1 * min(image.size)), fill="white")


def rotated(degrees: float) -> Callable:
    return lambda image: image.rotate(degrees, Image.Resampling.BICUBIC, expand=degrees % 90 == 0)


TRANSFORMS = {
    "JPEG, quality 90": jpeg(90),
    "JPEG, quality 60": jpeg(60),
    "JPEG, quality 30": jpeg(30),
    "resized to 1/2": resized(0.5),
    "resized to 1/4": resized(0.25),
    "cropped to 80% of the area": cropped(0.8),
    "cropped to 50% of the area": cropped(0.5),
    "flipped": ImageOps.mirror,
    "recoloured": recoloured,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "blurred, radius 2": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "text over it": with_text,
    "emoji over it": with_emoji,
    "white border of 10%": with_border,
    "rotated by 5 degrees": rotated(5),
    "rotated by 15 degrees": rotated(15),
    "rotated by 90 degrees": rotated(90),
}


def run(args: argparse.Namespace) -> dict:
    """Precision and recall of each transform at each threshold."""
    table = datasets.Dataset.from_parquet(args.images)
    originals = [image.convert("RGB") for image in table[: args.originals][args.image_column]]
    began = time.perf_counter()
    embed, vectors = embedder(args.embedder, originals)
    copied = originals[: args.copied]
    found = {}
    for name, transform in tqdm(TRANSFORMS.items(), desc="Transforms"):
        similarities = vectors @ embed([transform(image) for image in copied]).T
        own = similarities.argmax(axis=0) == np.arange(len(copied))
        found[name] = {
            "nearest_is_own": float(own.mean()),
            **{str(threshold): precision_and_recall(similarities, threshold) for threshold in THRESHOLDS},
        }
    apart = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    return {
        "embedder": args.embedder if args.embedder == "perceptual" else Path(args.embedder).name,
        "originals": len(originals),
        "copied": len(copied),
        "transforms": found,
        "similarity_of_different_originals": {
            "mean": float(apart.mean()),
            "99.9%": float(np.quantile(apart, 0.999)),
            "most": float(apart.max()),
            "pairs": len(apart),
            **{f"pairs_above_{threshold}": int((apart > threshold).sum()) for threshold in THRESHOLDS},
            **{f"wrongly_dropped_at_{threshold}": wrongly_dropped(vectors, threshold) for threshold in THRESHOLDS},
        },
        "seconds": time.perf_counter() - began,
    }


def embedder(spec: str, originals: list[Image.Image]) -> tuple[Callable, np.ndarray]:
    """A function from images to unit vectors, and the vectors of the originals."""
    if spec == "perceptual":
        sums = PatchSums()
        of_originals = torch.cat([sums([image]) for image in tqdm(originals, desc="Originals")])
        descriptor = PerceptualDescriptor().fit(of_originals)
        return lambda images: descriptor.describe(images).numpy(), descriptor(of_originals).numpy()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_embedder(spec, batch_size=32, trust_torchscript=True, device=device)  # named by hand

    def embed(images: list[Image.Image]) -> np.ndarray:
        vectors = model([{"image": image} for image in images]).values.numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return embed, embed(originals)


def wrongly_dropped(vectors: np.ndarray, threshold: float) -> int:
    rows, others = np.nonzero(np.triu(vectors @ vectors.T > threshold, 1))
    edges = Edges(rows, others, np.ones(len(rows), np.float32))
    return len(vectors) - len(np.unique(connected_components(edges, len(vectors))))


def precision_and_recall(similarities: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Of (originals, copies) cosines, where copy i is one of original i; precision is None where nothing is found."""
    above = similarities > threshold
    right = int(np.diagonal(above).sum())
    return {
        "recall": right / above.shape[1],
        "precision": right / int(above.sum()) if above.any() else None,
        "wrong_pairs": int(above.sum()) - right,
    }
