"""Features of a picture and pictures of these features, without a browser."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..pictures.attention_maps import attention_maps, colour_map
from ..pictures.patch_pca import colours_of_features, patch_features
from ..pictures.patch_similarity import best_patches, draw_similarity, similarity_map
from ..pictures.seen_images import prepare_pictures


SIDE = 448  # side of the shown pictures, in pixels
MATCHES = 5


@dataclass(frozen=True)
class Sight:
    """
    One picture as the input of a model, with its features.

    Args:
        picture: the input crop, `SIDE` pixels wide.
        pixel_values: (1, 3, height, width).
        features: (h, w, D), features of its patches, float64.
    """

    picture: Image.Image
    pixel_values: Tensor
    features: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (h, w)."""
        return tuple(self.features.shape[:2])


def look(model: nn.Module, image_processor, image: Image.Image, image_size: int | None = None) -> Sight:
    """
    Run a model over one image.

    Args:
        image: an image of any size.
        image_size: side of the square input, a multiple of the patch size; `None`: as the image processor is
            configured.
    """
    pixel_values, (picture,) = prepare_pictures(model, [image], image_processor, image_size)
    height = round(SIDE * picture.height / picture.width)
    shown = picture.resize((SIDE, height), Image.Resampling.BICUBIC)
    return Sight(shown, pixel_values, patch_features(model, pixel_values)[0])


def pca_pictures(sights: Sequence[Sight]) -> list[Image.Image]:
    """The patch features of pictures as colours. Equal colours mean similar features, also across pictures.

    Pictures with different grids of patches have separate colours.
    """
    if len({sight.grid for sight in sights}) != 1:
        return [picture for sight in sights for picture in pca_pictures([sight])]
    colours = colours_of_features(torch.stack([sight.features for sight in sights]))
    return [_enlarged(own, sight) for own, sight in zip(colours, sights, strict=True)]


def attention_pictures(model: nn.Module, sight: Sight) -> list[tuple[Image.Image, str]]:
    """What the CLS token of the last block attends to: the mean of its heads, then each head, with names.

    Raises:
        ValueError: the model does not return attention over CLS, registers and patches.
    """
    heads = attention_maps(model, sight.pixel_values)[0]
    named = {"mean of heads": heads.mean(axis=0)} | {f"head {number}": head for number, head in enumerate(heads)}
    return [(_enlarged(colour_map(values), sight), name) for name, values in named.items()]


@dataclass(frozen=True)
class Comparison:
    """
    A patch and the patches that are similar to it.

    Args:
        own: its picture, coloured by the similarity to it, with the patch in a frame.
        other: another picture, coloured by the same scale, with its best matches in frames; `None` without one.
        matches: row, column and cosine of these matches.
        limits: the cosines that are shown as black and yellow.
    """

    own: Image.Image
    other: Image.Image | None
    matches: list[tuple[int, int, float]]
    limits: tuple[float, float]


def compare(sight: Sight, patch: tuple[int, int], other: Sight | None = None) -> Comparison:
    """
    The similarity of a patch of one picture to the patches of this and of another picture.

    Args:
        patch: row and column.
    """
    feature = sight.features[patch]
    inside = similarity_map(feature, sight.features)
    outside = similarity_map(feature, other.features) if other is not None else None
    # Without the patch itself, because its cosine of 1 would make the rest dark.
    rest = np.delete(inside.ravel(), patch[0] * inside.shape[1] + patch[1])
    values = np.concatenate([rest, outside.ravel() if outside is not None else []])
    limits = (float(values.min()), float(np.percentile(values, 99.5))) if len(values) else (0.0, 1.0)
    drawn, matches = None, []
    if outside is not None:
        places = best_patches(outside, MATCHES)
        matches = [(*place, float(outside[place])) for place in places]
        names = [str(number) for number in range(1, len(places) + 1)]
        drawn = draw_similarity(other.picture, outside, limits, places, names=names)
    return Comparison(draw_similarity(sight.picture, inside, limits, [patch]), drawn, matches, limits)


def _enlarged(colours: np.ndarray, sight: Sight) -> Image.Image:
    """Colours (h, w, 3) in [0, 1] as a picture of the size of the input, with patches as squares."""
    picture = Image.fromarray(np.rint(colours * 255).astype(np.uint8))
    return picture.resize(sight.picture.size, Image.Resampling.NEAREST)
