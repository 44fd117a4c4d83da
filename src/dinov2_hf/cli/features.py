"""`dinov2-hf features`."""

import sys
from dataclasses import asdict
from typing import Annotated, Any, Literal

from ..feature_kinds import FEATURE_FUNCTIONS, KINDS_OF_LAST_LAYERS
from ..options import given, refuse
from ..value_ranges import AT_LEAST_ONE, NOT_NEGATIVE


def features(
    model: str,
    *,
    data: str,
    output: str,
    split: str = "train",
    kind: Annotated[str, tuple(FEATURE_FUNCTIONS)] = "cls",
    num_layers: Annotated[int | None, AT_LEAST_ONE] = None,
    max_image_pixels: Annotated[int | None, AT_LEAST_ONE] = None,
    image_column: str | None = None,
    keep_columns: list[str] | None = None,
    batch_size: Annotated[int, AT_LEAST_ONE] = 64,
    num_workers: Annotated[int, NOT_NEGATIVE] = 0,
    dtype: Literal["float32", "float16"] = "float32",
    device: str | None = None,
    bf16: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the features of every image of a dataset to one file or folder.

    Args:
        model: any vision transformer: model folder, run folder, checkpoint of a run, Hub id, or file of the original.
        data: images: a folder, parquet, a saved dataset, tars or a Hub name.
        output: *.parquet, *.npy, or a folder for `datasets.load_from_disk`.
        split: of --data, if it has splits.
        kind: final-normed CLS token, mean patch, patches as a grid, CLS tokens of the last blocks (and mean patch).
        num_layers: blocks of the kinds last_layers... (default: 4).
        max_image_pixels: skip images of more pixels (default: 178956970, as Pillow does).
        image_column: (default: the first one that holds images).
        keep_columns: what to copy into a table (default: all but images, and `path`, the file); without names, none.
        batch_size: images in a forward pass.
        num_workers: processes that decode images.
        dtype: of the written features.
        device: (default: the first accelerator, or the CPU).
        bf16: run the network under bf16 autocast.
        overwrite: replace what is at the output.
    """
    # Imported here, because the help does not need it.
    import torch
    from transformers.utils import logging as transformers_logging

    from ..data import find_image_column, load_image_dataset, set_max_image_pixels
    from ..devices import find_device
    from ..feature_files import check_output, write_features
    from ..features import FeatureExtractor
    from ..model_source import find_model
    from .backbone import describe_processing, load_backbone

    # Checks first, then the long work.
    set_max_image_pixels(max_image_pixels)
    if kind not in KINDS_OF_LAST_LAYERS:
        refuse(given(num_layers=num_layers), f"`kind` is {kind}")
    device = find_device(device)
    sources = [data, find_model(model)]
    check_output(output, overwrite=overwrite, sources=sources)
    transformers_logging.disable_progress_bar()
    network, image_processor = load_backbone(model)
    dataset = load_image_dataset(data, split=split, image_column=image_column)
    extractor = FeatureExtractor(
        network,
        image_processor,
        image_column=find_image_column(dataset, image_column),
        batch_size=batch_size,
        device=device,
        autocast_dtype=torch.bfloat16 if bf16 else None,
        num_workers=num_workers,
        progress=True,
    )
    written = write_features(
        extractor,
        dataset,
        output,
        kind=kind,
        keep_columns=keep_columns,
        dtype=dtype,
        overwrite=overwrite,
        sources=sources,
        **given(num_layers=num_layers),
    )
    print(f"{kind}: {written.rule}; {describe_processing(image_processor)}")
    num_left_out = len(written.undecodable_rows)
    if output.lower().endswith(".npy") and num_left_out:  # row i of the file belongs to row i of the dataset
        rows = f"{written.num_rows + num_left_out} rows of shape {written.shape}, {num_left_out} of them NaN"
    else:
        rows = f"{written.num_rows} rows of shape {written.shape}"
    print(f"{output}: {rows}")
    for row, reason in written.undecodable_rows.items():
        print(f"row {row} has no feature, since its image cannot be decoded: {reason}", file=sys.stderr)
    return {"output": output, "kind": kind, **asdict(written)}
