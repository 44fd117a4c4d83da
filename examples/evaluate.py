"""
k-NN classification with the frozen features of any model (paper, section 7).

    python examples/evaluate.py --model outputs/cifar10/model \
        --bank_data cifar10/train.parquet --eval_data cifar10/test.parquet

`--untrained` gives the model fresh weights and `--pixels` takes no model but the pixels themselves: what training must
be compared with. Both data arguments are what `--train_data` of `pretrain.py` can be, with labels.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoImageProcessor, AutoModel

import dinov2_hf  # noqa: F401  (registers the Auto classes)
from dinov2_hf.data import find_image_column, load_image_dataset
from dinov2_hf.evaluation.knn import evaluate_knn
from dinov2_hf.training.distributed import cpu_supports_bfloat16


class Pixels(torch.nn.Module):
    """The pixels of an image as its feature, in the form of a model."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(0))  # says which device to use

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=pixel_values.flatten(1).unsqueeze(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a name on the Hub; also gives the image processor")
    parser.add_argument("--untrained", action="store_true", help="the model's configuration with fresh weights")
    parser.add_argument("--pixels", action="store_true", help="pixels in place of features")
    parser.add_argument("--bank_data", required=True, help="labelled images to compare with")
    parser.add_argument("--bank_split", default="train")
    parser.add_argument("--eval_data", required=True, help="labelled images to classify")
    parser.add_argument("--eval_split", default="test")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20, 100, 200])
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--output", type=Path, help="JSON file for the accuracies")
    args = parser.parse_args()

    bank = load_image_dataset(args.bank_data, split=args.bank_split)
    queries = load_image_dataset(args.eval_data, split=args.eval_split)
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(args.model)
    if args.untrained:
        model = AutoModel.from_config(model.config)
    if args.pixels:
        model = Pixels()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_supports_bfloat16()
    accuracies = evaluate_knn(
        model,
        bank,
        queries,
        AutoImageProcessor.from_pretrained(args.model),
        image_column=find_image_column(queries),
        label_column=args.label_column,
        ks=args.k,
        batch_size=args.batch_size,
        device=device,
        autocast_dtype=torch.bfloat16 if bf16 and not args.pixels else None,
        progress=True,
    )
    for name, accuracy in accuracies.items():
        print(f"{name:16} {accuracy:.4f}")
    if args.output:
        args.output.write_text(json.dumps(accuracies, indent=2) + "\n")


if __name__ == "__main__":
    main()
