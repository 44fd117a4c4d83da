"""`dinov2-hf features`."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from .options import add_max_image_pixels, at_least, given, refuse


def features(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Features of every image of a dataset to one file or folder."""
    from ..devices import find_device
    from ..feature_kinds import FEATURE_FUNCTIONS, KINDS_OF_LAST_LAYERS

    parser.add_argument("model", help="model folder, run folder or Hub id of any vision transformer")
    parser.add_argument("--data", required=True, help="images: a folder, parquet, a saved dataset, tars or a Hub name")
    parser.add_argument("--split", default="train", help="where the data has splits (default: train)")
    parser.add_argument("--output", required=True, help="*.parquet, *.npy, or a folder for `datasets.load_from_disk`")
    parser.add_argument(
        "--kind", default="cls", choices=tuple(FEATURE_FUNCTIONS),
        help="final-normed CLS token, mean patch, patches as a grid, CLS tokens of the last blocks (and mean patch)",
    )  # fmt: skip
    parser.add_argument("--num_layers", type=at_least(1), help="blocks of the kinds last_layers... (default: 4)")
    add_max_image_pixels(parser)
    parser.add_argument("--image_column", help="(default: the first one that holds images)")
    parser.add_argument(
        "--keep_columns", nargs="*", metavar="COLUMN",
        help="what to copy into a table (default: all columns but images); without names, none",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=at_least(1), default=64, help="images in a forward pass (default: 64)")
    parser.add_argument(
        "--num_workers", type=at_least(0), default=0, help="processes that decode images (default: 0)"
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the written features")
    parser.add_argument("--device", help="(default: the first accelerator, or the CPU)")
    parser.add_argument("--bf16", action="store_true", help="run the network under bf16 autocast")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at the output")

    def run(
        model: str, data: str, split: str, output: str, kind: str, num_layers, image_column, batch_size, num_workers,
        device, bf16, overwrite, **options: Any,
    ) -> None:  # fmt: skip
        import torch
        from transformers.utils import logging as transformers_logging

        from ..data import find_image_column, load_image_dataset
        from ..feature_files import check_output, write_features
        from ..features import FeatureExtractor
        from ..model_source import find_model
        from .backbone import describe_processing, load_backbone

        # Mistakes first, then what takes long.
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
            extractor, dataset, output, kind=kind, overwrite=overwrite, sources=sources,
            **given(num_layers=num_layers), **options,
        )  # fmt: skip
        print(f"{kind}: {written.rule}; {describe_processing(image_processor)}")
        print(f"{output}: {written.num_rows} rows of shape {written.shape}")
        for row, reason in written.undecodable_rows.items():
            print(f"row {row} has no feature, since its image cannot be decoded: {reason}", file=sys.stderr)

    return run
