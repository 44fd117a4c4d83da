"""Which copies an embedder finds when few pairs of unlike photographs may pass for copies; run by `curation.py`.

The photographs are shuffled. To those that are not held out the embedder is fitted, as to a pool. Of each that is held
out every transform of `planted_copies` makes a copy, which is compared with all photographs. The threshold is what a
given share of the unlike pairs exceeds; recall is the share of copies above it. Images a second are those of one
thread, from files to vectors, in turn with `perceptual`: the ratio says more than either.

Two that lost can be named as `--embedder recall_of_copies:last_layer` (of the same network: ImageNet features as they
are usually taken) and `recall_of_copies:pdq` (needs pdqhash; of the eight turns of a copy the nearest counts).
"""

import argparse
import time
from collections.abc import Callable
from functools import cache

import datasets
import numpy as np
import torch
from planted_copies import THRESHOLDS, TRANSFORMS
from torch import nn
from torchvision.transforms import v2
from tqdm.auto import tqdm

from dinov2_hf.curation.embedders import fitted_module, load_embedder
from dinov2_hf.curation.pixels import reduction
from dinov2_hf.data import decode_image


BATCH = 32
ROUNDS = 5  # of the measurement of speed


def run(args: argparse.Namespace) -> dict:
    """Recall of each transform at the threshold, and recall and false rate at those of curation."""
    torch.set_num_threads(1)
    files = datasets.Dataset.from_parquet(args.images)
    files = files.cast_column(args.image_column, datasets.Image(decode=False))[:][args.image_column]
    order = np.random.default_rng(0).permutation(len(files))
    embed = embedder(args.embedder)
    speeds = images_per_second({args.embedder: embed, "perceptual": embedder("perceptual")}, files)
    photographs = [decode_image(files[row]) for row in order]
    held_out = photographs[-args.held_out :]
    given = in_batches(embed, photographs, "Photographs")
    last = fitted_to(args.embedder, given[: -args.held_out])
    originals = last(given)
    own, unlike = {}, []
    for name, transform in TRANSFORMS.items():
        copies = last(in_batches(embed, [transform(image) for image in held_out], name))
        similar = similarities(originals, copies)
        own_rows = np.arange(len(files) - args.held_out, len(files)), np.arange(args.held_out)
        own[name] = similar[own_rows]
        similar[own_rows] = -np.inf
        unlike.append(similar[similar > -np.inf])
    unlike = np.sort(np.concatenate(unlike))
    threshold = float(unlike[-int(args.false_rate * len(unlike)) - 1])
    every = np.concatenate(list(own.values()))
    return {
        "embedder": args.embedder,
        "photographs": len(files),
        "held_out": args.held_out,
        "unlike_pairs": len(unlike),
        "threshold_at_false_rate": {str(args.false_rate): threshold},
        "recall": float((every > threshold).mean()),
        "recall_of_transforms": {name: float((cosines > threshold).mean()) for name, cosines in own.items()},
        "at_thresholds_of_curation": {
            str(at): {"recall": float((every > at).mean()), "false_pairs": int((unlike > at).sum())}
            for at in THRESHOLDS
        },
        "images_per_second": speeds,
        "speed_over_perceptual": speeds[args.embedder] / speeds["perceptual"],
    }


def embedder(spec: str) -> Callable:
    """A function from images, decoded or not, to what the embedder gives for them, before it is fitted."""
    model = load_embedder(spec, batch_size=BATCH, trust_torchscript=True)  # named by hand
    return lambda images: model([{"image": image} for image in images]).values


def fitted_to(spec: str, given: torch.Tensor) -> Callable:
    """From what an embedder gives to vectors, (n, turns, D) of unit length."""
    module = fitted_module(spec)
    last = nn.Identity() if module is None else module().fit(given)
    num_turns = 8 if spec.endswith(":pdq") else 1

    def in_last_form(given: torch.Tensor) -> np.ndarray:
        vectors = last(given).unflatten(1, (num_turns, -1))
        return nn.functional.normalize(vectors, dim=-1).numpy()

    return in_last_form


def similarities(originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """(originals, copies): of an original as it is with the turn of a copy that is most similar."""
    return np.max([originals[:, 0] @ copies[:, turn].T for turn in range(copies.shape[1])], axis=0)


def in_batches(embed: Callable, images: list, description: str) -> torch.Tensor:
    parts = range(0, len(images), BATCH)
    return torch.cat([embed(images[begin : begin + BATCH]) for begin in tqdm(parts, desc=description)])


def images_per_second(embedders: dict[str, Callable], files: list[dict]) -> dict[str, float]:
    """By CPU time, the median of rounds in which all of them take the same files."""
    seconds, size = {name: [] for name in embedders}, min(BATCH, len(files))
    for number in range(ROUNDS + 1):
        some = [files[place % len(files)] for place in range(number * size, (number + 1) * size)]
        for name, embed in embedders.items():
            began = time.process_time()
            embed([decode_image(file, reduction=reduction) for file in some])
            seconds[name].append(time.process_time() - began)
    return {name: size / float(np.median(times[1:])) for name, times in seconds.items()}  # the first warms up


@cache
def _classifier() -> tuple[nn.Module, Callable]:
    from timm import create_model

    from dinov2_hf.curation.algorithms.efficientnet_descriptor import weights

    network = create_model("tf_efficientnet_lite0", num_classes=1000)
    network.load_state_dict(dict(zip(network.state_dict(), weights().values(), strict=True)))
    steps = [v2.ToImage(), v2.Resize((224, 224), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    return network.eval(), v2.Compose([*steps, v2.Normalize([0.5] * 3, [0.5] * 3)])


def last_layer(images: list) -> torch.Tensor:
    """The mean of the last layer over a picture of 224 x 224 pixels."""
    network, transform = _classifier()
    with torch.inference_mode():
        return network.forward_features(torch.stack([transform(image) for image in images])).mean(dim=(2, 3))


def pdq(images: list) -> np.ndarray:
    """256 signs of each of the eight turns of a picture: their cosine is 1 - distance / 128."""
    from pdqhash import compute_dihedral

    bits = np.stack([np.concatenate(compute_dihedral(np.asarray(image))[0]) for image in images])
    return bits.astype(np.float32) * 2 - 1
