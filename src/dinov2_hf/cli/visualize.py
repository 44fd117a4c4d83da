"""`dinov2-hf visualize`."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .options import add_max_image_pixels, given, refuse
from .protocol_options import flags_for


# Options of each kind of picture beyond those of all; the others would be ignored.
OPTIONS = {
    "pca": ("image_size", "foreground"),
    "attention": ("image_size", "layer"),
    "matching": ("image_size", "foreground", "max_matches"),
    "neighbors": ("num_neighbors", "label_column", "batch_size", "num_workers"),
}
NUM_IMAGES = 8
NUM_NEIGHBORS = 7


def visualize(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Pictures of what a model sees: patch PCA, attention maps, patch matching, nearest neighbours."""
    parser.add_argument("model", help="model folder or Hub id of any vision transformer")
    parser.add_argument(
        "--kind", required=True, choices=tuple(OPTIONS),
        help="pca: patches coloured by their principal components; attention: of the CLS token, head by head;"
        " matching: like parts of two images; neighbors: images and the most similar ones of --data",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--images", type=Path, nargs="+", help="image files")
    parser.add_argument("--data", help="images: a folder, parquet, a saved dataset, tars or a Hub name")
    parser.add_argument("--split", help="of --data, where it has splits (default: train)")
    parser.add_argument("--rows", type=int, nargs="+", help=f"of --data (default: the first {NUM_IMAGES}, or 2)")
    parser.add_argument(
        "--image_column", help="of --data (default: the only one that holds images, or is named like one)"
    )
    add_max_image_pixels(parser)
    parser.add_argument("--title", help="a line above the pictures")
    parser.add_argument("--device", help="(default: the first accelerator, or the CPU)")
    parser.add_argument(
        "--image_size", type=int, help="side of the square to see, in pixels; larger is finer (default: the model's)"
    )
    parser.add_argument(
        "--foreground", action=argparse.BooleanOptionalAction, default=None,
        help="pca, matching: the object only, by the first component (default: only of matching)",
    )  # fmt: skip
    parser.add_argument("--layer", type=int, help="attention: number of the block, from 0 (default: the last)")
    parser.add_argument("--max_matches", type=int, help="matching: lines to draw (default: 24)")
    parser.add_argument("--num_neighbors", type=int, help=f"neighbors: of each image (default: {NUM_NEIGHBORS})")
    parser.add_argument("--label_column", help="neighbors: of --data, to be written below the images")
    parser.add_argument("--batch_size", type=int, help="neighbors: images in a forward pass (default: 64)")
    parser.add_argument("--num_workers", type=int, help="neighbors: processes that decode images (default: 0)")

    def run(
        model: str, kind: str, output: Path, overwrite: bool, images, data, split, rows, image_column, title, device,
        **options: Any,
    ) -> None:  # fmt: skip
        from transformers.utils import logging as transformers_logging

        from ..atomic_files import new_file
        from ..devices import find_device
        from ..model_source import find_model
        from ..pictures.nearest_images import check_num_neighbors
        from .backbone import load_backbone

        device = find_device(device)
        options = given(**options)
        refuse({name: value for name, value in options.items() if name not in OPTIONS[kind]}, f"`--kind` is {kind}")
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
        for name, least in (("batch_size", 1), ("num_workers", 0), ("num_neighbors", 1), ("max_matches", 1)):
            if options.get(name, least) < least:
                raise ValueError(f"`--{name}` is {options[name]}, but must be at least {least}.")
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

    return run


def load_collection(data: str, split: str, image_column: str | None):
    """A dataset and its column of images."""
    from ..data import find_image_column, load_image_dataset

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
    from ..data import UndecodableImage, image_decoder

    decode = image_decoder(getattr(network.config, "num_channels", 3))
    missing = [str(file) for file in files or () if not file.exists()]
    if missing:
        raise ValueError(f"there is no file {missing[0]}; name the images to draw.")
    values = files if files is not None else [collection[0][row][collection[1]] for row in rows]
    names = files if files is not None else [f"row {row}" for row in rows]
    decoded = []
    for name, value in zip(names, values, strict=True):
        try:
            decoded.append(decode(value))
        except UndecodableImage as reason:
            raise ValueError(f"{name} cannot be decoded: {reason}.") from None
    return decoded


def draw_pca(network, image_processor, images, output: Path, *, title, **options: Any) -> None:
    from ..pictures.patch_pca import save_patch_pca

    save_patch_pca(network, images, image_processor, output, title=title, **options)


def draw_attention(network, image_processor, images, output: Path, *, title, image_size=None, **options: Any) -> None:
    from ..pictures.attention_maps import attention_maps, draw_attention_maps
    from ..pictures.seen_images import prepare_pictures

    pixel_values, pictures = prepare_pictures(network, images, image_processor, image_size)
    draw_attention_maps(pictures, attention_maps(network, pixel_values, **options), output, title)


def draw_matching(network, image_processor, images, output: Path, *, title, image_size=None, **options: Any) -> None:
    from ..pictures.patch_matching import draw_patch_matches, match_patches
    from ..pictures.seen_images import prepare_pictures

    pixel_values, pictures = prepare_pictures(network, images, image_processor, image_size)
    draw_patch_matches(tuple(pictures), match_patches(network, pixel_values, **options), output, title)


def draw_neighbors(
    network, image_processor, images, output: Path, *, title, collection, rows, num_neighbors=NUM_NEIGHBORS,
    label_column=None, **extraction: Any,
) -> None:  # fmt: skip
    from ..features import FeatureExtractor, require_column
    from ..pictures.nearest_images import draw_nearest_images, nearest_images, square_picture

    dataset, image_column = collection
    if label_column is not None:
        require_column(dataset, label_column, "label_column")
    extractor = FeatureExtractor(network, image_processor, image_column=image_column, progress=True, **extraction)
    features = extractor.features(dataset).values
    queries = replace(extractor, progress=False).features([{image_column: image} for image in images]).values
    found = nearest_images(queries, features, num_neighbors, rows)
    neighbors = [
        [square_picture(image) for image in read_images(network, None, collection, of_query)]
        for of_query in found.rows.tolist()
    ]
    labels = None
    if label_column is not None:
        feature, values = dataset.features[label_column], dataset[label_column]
        word = feature.int2str if hasattr(feature, "int2str") else str
        own = ["query"] * len(images) if rows is None else [word(values[row]) for row in rows]
        labels = [
            [mine, *(word(values[row]) for row in of_query)]
            for mine, of_query in zip(own, found.rows.tolist(), strict=True)
        ]
    pictures = [square_picture(image) for image in images]
    draw_nearest_images(pictures, neighbors, found.similarities, output, labels=labels, title=title)


DRAW = {"pca": draw_pca, "attention": draw_attention, "matching": draw_matching, "neighbors": draw_neighbors}
