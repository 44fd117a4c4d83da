"""Make a data set for copy detection out of any images.

`originals.parquet` holds half of the images; `queries.parquet` holds edited copies (cropped, mirrored, recoloured,
blurred and saved as poor JPEG, each at random) of some of them, and as many edited images of the other half, which are
copies of none of the originals and have no label.

    python examples/write_copies.py photographs copies --num_copies 200
    dinov2-hf evaluate --model outputs/model --protocol copy_detection --output_dir copies_evaluation \
        --train_data copies/originals.parquet --eval_data copies/queries.parquet
"""

import argparse
import io
from pathlib import Path

import datasets
import torch
from PIL import Image
from torchvision.transforms import v2

from dinov2_hf.data import decode_image, find_image_column, load_image_dataset


EDITS = v2.Compose(
    [
        v2.RandomResizedCrop(224, scale=(0.4, 1.0), ratio=(0.6, 1.7)),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(9, (0.5, 2.0))], p=0.3),
    ]
)


def edited(image: Image.Image) -> dict[str, bytes | None]:
    """A copy as JPEG of quality 20 to 80."""
    file = io.BytesIO()
    EDITS(image).save(file, "JPEG", quality=int(torch.randint(20, 81, ())))
    return {"bytes": file.getvalue(), "path": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="images: a folder, parquet, a saved dataset, tars or a Hub name")
    parser.add_argument("out_dir", type=Path, help="folder to write to; made if it does not exist")
    parser.add_argument("--split", default="train")
    parser.add_argument("--num_copies", type=int, default=200)
    args = parser.parse_args()

    images = load_image_dataset(args.data, split=args.split)
    column = find_image_column(images)
    half = len(images) // 2
    if not 1 <= args.num_copies <= half:
        raise SystemExit(f"error: num_copies is {args.num_copies}, but must be from 1 to {half}, half of the images.")
    torch.manual_seed(0)
    rows = torch.randperm(len(images)).tolist()
    originals = [{"image": images[row][column], "label": f"image {row}"} for row in rows[:half]]
    copied, others = rows[: args.num_copies], rows[half : half + args.num_copies]
    queries = [
        {"image": edited(decode_image(images[row][column])), "label": label}
        for row, label in (*((row, f"image {row}") for row in copied), *((row, None) for row in others))
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    args.out_dir.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    for name, split in (("originals", originals), ("queries", queries)):
        path = args.out_dir / f"{name}.parquet"
        datasets.Dataset.from_list(split, features=features).to_parquet(path)
        print(f"{path}: {len(split)} images")


if __name__ == "__main__":
    main()
