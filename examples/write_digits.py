"""Write scikit-learn's handwritten digits as two parquet files, a small data set to try everything on.

`train.parquet` holds 1297 images and `test.parquet` the other 500, each with the columns `image` (16x16 pixels, 8-bit
greyscale PNG, enlarged from 8x8) and `label` (the digit). No download is needed.

    python examples/write_digits.py digits
"""

import argparse
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ModuleNotFoundError:
    raise SystemExit('the digits are those of scikit-learn: pip install "dinov2_hf[quickstart]"') from None

NUM_TEST_IMAGES = 500
IMAGE_SIZE = 16
LARGEST_GREY = 16  # scikit-learn's greys count the black pixels of a 4x4 block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, help="folder to write to; made if it does not exist")
    out_dir = parser.parse_args().out_dir

    digits = load_digits()
    greys = np.rint(digits.images * (255 / LARGEST_GREY)).astype(np.uint8)
    train_rows, test_rows = train_test_split(
        np.arange(len(greys)), test_size=NUM_TEST_IMAGES, random_state=0, stratify=digits.target
    )
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(name) for name in digits.target_names])}
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    for name, rows in (("train", train_rows), ("test", test_rows)):
        size = (IMAGE_SIZE, IMAGE_SIZE)
        images = [Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC) for grey in greys[rows]]
        split = datasets.Dataset.from_dict({"image": images, "label": digits.target[rows]}, features=features)
        path = out_dir / f"{name}.parquet"
        split.to_parquet(path)
        print(f"{path}: {len(split)} images")


if __name__ == "__main__":
    main()
