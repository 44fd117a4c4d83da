"""Vectors of real pictures for the benchmark of curation: features of random crops of photographs.

A few thousand photographs give a million vectors with the structure of real ones: crops of one photograph, crops of
like photographs, and all others. The features are those of a network, or need none: how much a crop's quarters have of
each of 96 of its small patches (Coates et al. 2011).
"""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from dinov2_hf.curation.storage.embeddings import EmbeddingStore, write_shard
from dinov2_hf.features import image_features


CROP_AREA = (0.1, 1.0)
SHARD_ROWS = 100_000
BATCH = 1000
# Of the features without a network: pixels of a crop, of a patch, and numbers of patches.
SIDE, PATCH, LEARNED_FROM, WORDS = 20, 5, 100_000, 96


@torch.inference_mode()
def crop_store(
    folder: Path, images: list[str], model_name: str | None, num_rows: int, image_column: str
) -> EmbeddingStore:
    """Features of `num_rows` random crops, as many of each image as of any other, in random order.

    Args:
        folder: for the shards.
        images: parquet files.
        model_name: folder or Hub name of a network for square images, whose CLS tokens are taken; None: none.
        num_rows: n.
    """
    torch.manual_seed(0)
    side, features = (SIDE, None) if model_name is None else network(model_name)
    crop = v2.RandomResizedCrop(side, scale=CROP_AREA)
    sources = [datasets.Dataset.from_parquet(path).select_columns(image_column) for path in images]
    photographs = datasets.concatenate_datasets([each.cast_column(image_column, datasets.Image()) for each in sources])
    crops = np.empty((num_rows, 3, side, side), np.uint8)
    places = np.random.default_rng(0).permutation(num_rows)
    for number, photograph in enumerate(tqdm(photographs[image_column], desc="Crops", unit="image")):
        picture = TF.pil_to_tensor(photograph.convert("RGB"))
        for place in places[number :: len(photographs)]:
            crops[place] = crop(picture)
    features = features or patch_words(torch.from_numpy(crops[:10_000]))
    for start in tqdm(range(0, num_rows, SHARD_ROWS), desc="Features", unit="shard"):
        stop = min(start + SHARD_ROWS, num_rows)
        batches = (torch.from_numpy(crops[begin : min(begin + BATCH, stop)]) for begin in range(start, stop, BATCH))
        vectors = torch.cat([features(batch) for batch in batches]).numpy()
        write_shard(folder, f"{start // SHARD_ROWS:05d}", vectors, np.arange(start, stop))
    return EmbeddingStore(folder)


def network(name: str) -> tuple[int, Callable[[Tensor], Tensor]]:
    """The side of its crops, and its features of (b, 3, side, side) uint8."""
    model, processor = AutoModel.from_pretrained(name).eval(), AutoImageProcessor.from_pretrained(name)

    def features(crops: Tensor) -> Tensor:
        pixels = TF.normalize(TF.to_dtype(crops, scale=True), processor.image_mean, processor.image_std)
        with torch.autocast("cpu", torch.bfloat16):
            return image_features(model, pixels).float()

    return model.config.image_size, features


def patch_words(sample: Tensor) -> Callable[[Tensor], Tensor]:
    """(b, 384) features of (b, 3, 20, 20) uint8, learned from a sample of such: of each quarter, the mean response to
    96 whitened patches."""
    patches = patches_of(sample[:: max(1, len(sample) // 1000)]).flatten(0, 1)
    patches = patches[torch.randperm(len(patches))[:LEARNED_FROM]]
    mean = patches.mean(dim=0)
    values, axes = torch.linalg.eigh(torch.cov((patches - mean).T))
    whitening = axes * (values + 0.1).rsqrt() @ axes.T
    words = F.normalize((patches[torch.randperm(len(patches))[:WORDS]] - mean) @ whitening, dim=1)
    half = (SIDE - PATCH + 1) // 2

    def responses(crops: Tensor) -> Tensor:
        found = ((patches_of(crops) - mean) @ (whitening @ words.T)).clamp(min=0)
        return found.unflatten(1, (2, half, 2, half)).mean(dim=(2, 4)).flatten(1)

    of_sample = responses(sample)
    center, spread = of_sample.mean(dim=0), of_sample.std(dim=0) + 1e-6
    return lambda crops: (responses(crops) - center) / spread


def patches_of(crops: Tensor) -> Tensor:
    """(b, 256, 75) patches of crops, each of mean 0 and of a spread near 1."""
    patches = F.unfold(crops.float() / 255, PATCH).transpose(1, 2)
    return (patches - patches.mean(dim=2, keepdim=True)) / (patches.var(dim=2, keepdim=True) + 0.01).sqrt()
