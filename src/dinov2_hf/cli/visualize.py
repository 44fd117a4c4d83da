"""`dinov2-hf visualize`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from transformers.utils import logging as transformers_logging

from ..atomic_files import new_file
from ..data import (
    UndecodableImage,
    describe_row,
    find_image_column,
    image_decoder,
    load_image_dataset,
    set_max_image_pixels,
)
from ..devices import find_device
from ..features import FeatureExtractor, require_column
from ..model_source import find_model
from ..options import given, refuse
from ..pictures.attention_maps import attention_maps, draw_attention_maps
from ..pictures.nearest_images import check_num_neighbors, draw_nearest_images, nearest_images, square_picture
from ..pictures.patch_matching import draw_patch_matches, match_patches
from ..pictures.patch_pca import save_patch_pca
from ..pictures.seen_images import prepare_pictures
from ..value_ranges import AT_LEAST_ONE, NOT_NEGATIVE
from .backbone import load_backbone
from .user_words import flags_for


# Options of each kind of picture beyond those of all; the others would be ignored.
OPTIONS = {
    "pca": ("image_size", "foreground"),
    "attention": ("image_size", "layer"),
    "matching": ("image_size", "foreground", "max_matches"),
    "neighbors": ("num_neighbors", "label_column", "batch_size", "num_workers"),
}
NUM_IMAGES = 8
NUM_NEIGHBORS = 7


def visualize(
    model: str,
    *,
    kind: Annotated[str, tuple(OPTIONS)],
    output: Path,
    overwrite: bool = False,
    images: list[Path] | None = None,
    data: str | None = None,
    split: str | None = None,
    rows: list[int] | None = None,
    image_column: str | None = None,
    max_image_pixels: Annotated[int | None, AT_LEAST_ONE] = None,
    title: str | None = None,
    device: str | None = None,
    image_size: int | None = None,
    foreground: bool | None = None,
    layer: int | None = None,
    max_matches: Annotated[int | None, AT_LEAST_ONE] = None,
    num_neighbors: Annotated[int | None, AT_LEAST_ONE] = None,
    label_column: str | None = None,
    batch_size: Annotated[int | None, AT_LEAST_ONE] = None,
    num_workers: Annotated[int | None, NOT_NEGATIVE] = None,
) -> dict[str, str]:
    """Draw what a model sees: patch PCA, attention maps, patch matching, nearest neighbours.

    Args:
        model: any vision transformer: model folder, run folder, checkpoint of a run, Hub id, or file of the original.
        kind: pca: patches coloured by their principal components; attention: of the CLS token, head by head; matching:
            like parts of two images; neighbors: images and the most similar ones of --data.
        output: PNG file.
        overwrite: replace a file that is there.
        images: image files.
        data: images: a folder, parquet, a saved dataset, tars or a Hub name.
        split: of --data, if it has splits (default: train).
        rows: of --data (default: the first 8, or 2).
        image_column: of --data (default: the only one that holds images, or is named like one).
        max_image_pixels: skip images of more pixels (default: 178956970, as Pillow does).
        title: a line above the pictures.
        device: (default: the first accelerator, or the CPU).
        image_size: side of the square to see, in pixels; larger is finer (default: the model's).
        foreground: pca, matching: the object only, by the first component (default: only of matching).
        layer: attention: number of the block, from 0 (default: the last).
        max_matches: matching: lines to draw (default: 24).
        num_neighbors: neighbors: of each image (default: 7).
        label_column: neighbors: of --data, to be written below the images.
        batch_size: neighbors: images in a forward pass (default: 64).
        num_workers: neighbors: processes that decode images (default: 0).
    """
    set_max_image_pixels(max_image_pixels)
    device = find_device(device)
    options = given(
        image_size=image_size, foreground=foreground, layer=layer, max_matches=max_matches,
        num_neighbors=num_neighbors, label_column=label_column, batch_size=batch_size, num_workers=num_workers,
    )  # fmt: skip
    refuse(options.keys() - OPTIONS[kind], f"`--kind` is {kind}")
    if output.suffix.lower() != ".png":
        raise ValueError(f"`--output` is {output}, but must end in .png.")
    if data is None:
        refuse(given(split=split, rows=rows, image_column=image_column), "`--data` is not given")
        if images is None or kind == "neighbors":
            wanted = "`--data`, the images to search," if kind == "neighbors" else "`--images` or `--data`"
            raise ValueError(f"`--kind` is {kind}, for which {wanted} must be given.")
    elif images is not None and kind != "neighbors":
        raise ValueError(f"`--images` and `--data` are given, but `--kind` is {kind}: leave one of them out.")
    elif images is not None:
        refuse(given(rows=rows), "`--images` are given")
    if kind == "matching" and len(images or rows or (0, 0)) != 2:
        raise ValueError(f"`--kind` is matching, which takes 2 images, but there are {len(images or rows)}.")
    model = str(find_model(model))
    with new_file(output, overwrite=overwrite, sources=[*(images or ()), *given(data=data).values()]) as partial:
        collection = None
        if data is not None:
            collection = load_collection(data, split or "train", image_column)
        if data is not None and images is None:
            rows = checked_rows(rows, len(collection[0]), 2 if kind == "matching" else NUM_IMAGES)
        if kind == "neighbors":
            with flags_for(k="num_neighbors"):
                num_others = len(collection[0]) - (images is None)
                check_num_neighbors(options.get("num_neighbors", NUM_NEIGHBORS), num_others)
        transformers_logging.disable_progress_bar()
        network, image_processor = load_backbone(model)
        network.to(device)
        pictures = read_images(network, images, collection, rows)
        if kind == "neighbors":
            options |= {"collection": collection, "rows": rows}
        with flags_for(k="num_neighbors"):
            DRAW[kind](network, image_processor, pictures, partial, title=title, **options)
    print(output)
    return {"output": str(output)}


def load_collection(data: str, split: str, image_column: str | None):
    """A dataset and its column of images."""
    dataset = load_image_dataset(data, split=split, image_column=image_column)
    return dataset, find_image_column(dataset, image_column)


def checked_rows(rows: list[int] | None, num_rows: int, default: int) -> list[int]:
    rows = list(range(min(default, num_rows))) if rows is None else rows
    outside = [row for row in rows if not 0 <= row < num_rows]
    if outside:
        raise ValueError(f"`--rows` holds {outside[0]}, but the data has the rows 0 to {num_rows - 1}.")
    return rows


def read_images(network, files: list[Path] | None, collection, rows: list[int] | None) -> list:
    """Decoded images of files, or of rows of a collection."""
    decode = image_decoder(getattr(network.config, "num_channels", 3))
    missing = [str(file) for file in files or () if not file.exists()]
    if missing:
        raise ValueError(f"there is no file {missing[0]}; name the images to draw.")
    values = files if files is not None else [collection[0][row][collection[1]] for row in rows]
    names = files if files is not None else [describe_row(value, row) for value, row in zip(values, rows, strict=True)]
    decoded = []
    for name, value in zip(names, values, strict=True):
        try:
            decoded.append(decode(value))
        except UndecodableImage as reason:
            raise ValueError(f"{name} cannot be decoded: {reason}.") from None
    return decoded


def draw_pca(network, image_processor, images, output: Path, *, title, **options: Any) -> None:
    save_patch_pca(network, images, image_processor, output, title=title, **options)


def draw_attention(network, image_processor, images, output: Path, *, title, image_size=None, **options: Any) -> None:
    pixel_values, pictures = prepare_pictures(network, images, image_processor, image_size)
    draw_attention_maps(pictures, attention_maps(network, pixel_values, **options), output, title)


def draw_matching(network, image_processor, images, output: Path, *, title, image_size=None, **options: Any) -> None:
    pixel_values, pictures = prepare_pictures(network, images, image_processor, image_size)
    draw_patch_matches(tuple(pictures), match_patches(network, pixel_values, **options), output, title)


def draw_neighbors(
    network, image_processor, images, output: Path, *, title, collection, rows, num_neighbors=NUM_NEIGHBORS,
    label_column=None, **extraction: Any,
) -> None:  # fmt: skip
    dataset, image_column = collection
    if label_column is not None:
        require_column(dataset, label_column, "label_column")
    extractor = FeatureExtractor(network, image_processor, image_column=image_column, progress=True, **extraction)
    searched = extractor.features(dataset, skip_undecodable=True)
    for row, reason in searched.undecodable_rows.items():
        print(f"row {row} is not searched, since its image cannot be decoded: {reason}", file=sys.stderr)
    queries = replace(extractor, progress=False).features([{image_column: image} for image in images]).values
    own_places = None if rows is None else torch.searchsorted(searched.rows, torch.tensor(rows)).tolist()
    found = nearest_images(queries, searched.values, num_neighbors, own_places)
    found_rows = searched.rows[found.rows].tolist()
    neighbors = [
        [square_picture(image) for image in read_images(network, None, collection, of_query)]
        for of_query in found_rows
    ]
    labels = None
    if label_column is not None:
        feature, values = dataset.features[label_column], dataset[label_column]
        word = feature.int2str if hasattr(feature, "int2str") else str
        own = ["query"] * len(images) if rows is None else [word(values[row]) for row in rows]
        labels = [
            [mine, *(word(values[row]) for row in of_query)] for mine, of_query in zip(own, found_rows, strict=True)
        ]
    pictures = [square_picture(image) for image in images]
    draw_nearest_images(pictures, neighbors, found.similarities, output, labels=labels, title=title)


DRAW = {"pca": draw_pca, "attention": draw_attention, "matching": draw_matching, "neighbors": draw_neighbors}
