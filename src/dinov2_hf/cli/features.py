"""`dinov2-hf features`."""

import argparse
import sys
from collections.abc import Callable
from typing import Any


def features(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Features of every image of a dataset to one file or folder."""
    from ..features import FEATURE_FUNCTIONS

    parser.add_argument("model", help="model folder or Hub id of any vision transformer")
    parser.add_argument("--data", required=True, help="images: a folder, parquet, a saved dataset, tars or a Hub name")
    parser.add_argument("--split", default="train", help="where the data has splits (default: train)")
    parser.add_argument("--output", required=True, help="*.parquet, *.npy, or a folder for `datasets.load_from_disk`")
    parser.add_argument(
        "--kind", default="cls", choices=tuple(FEATURE_FUNCTIONS),
        help="final-normed CLS token, mean patch, patches as a grid, CLS tokens of the last blocks (and mean patch)",
    )  # fmt: skip
    parser.add_argument("--num_layers", type=int, default=4, help="blocks of last_layers... (default: 4)")
    parser.add_argument("--image_column", help="(default: the only one that holds images, or is named like one)")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode images (default: 0)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the written features")
    parser.add_argument("--device", help="(default: the first accelerator, or the CPU)")
    parser.add_argument("--bf16", action="store_true", help="run the network under bf16 autocast")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at the output")

    def run(
        model: str, data: str, split: str, output: str, image_column, device, bf16, overwrite, **options: Any
    ) -> None:
        import torch

        from ..data import find_image_column, load_image_dataset
        from ..feature_files import check_output, write_features
        from .backbone import load_backbone

        sources = [data, model]
        check_output(output, overwrite=overwrite, sources=sources)  # before anything is loaded
        dataset = load_image_dataset(data, split=split, image_column=image_column)
        network, image_processor = load_backbone(model)
        written = write_features(
            network,
            dataset,
            image_processor,
            output,
            overwrite=overwrite,
            sources=sources,
            image_column=find_image_column(dataset, image_column),
            device=device or (torch.accelerator.current_accelerator(check_available=True) or "cpu"),
            autocast_dtype=torch.bfloat16 if bf16 else None,
            progress=True,
            **options,
        )
        print(f"{output}: {written.num_rows} rows of shape {written.shape}")
        for row, reason in written.undecodable_rows.items():
            print(f"row {row} has no feature, since its image cannot be decoded: {reason}", file=sys.stderr)

    return run
