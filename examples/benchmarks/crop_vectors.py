"""Vectors of real pictures for the benchmark of curation: features of random crops of photographs.

A few thousand photographs give a million vectors with the structure of real ones: crops of one photograph, crops of
like photographs, and all others.
"""

from pathlib import Path

import datasets
import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from dinov2_hf.curation.storage.embeddings import EmbeddingStore, write_shard
from dinov2_hf.features import image_features


CROP_AREA = (0.1, 1.0)
SHARD_ROWS = 100_000
BATCH = 1000


@torch.inference_mode()
def crop_store(folder: Path, images: list[str], model_name: str, num_rows: int, image_column: str) -> EmbeddingStore:
    """CLS tokens of `num_rows` random crops, as many of each image as of any other, in random order.

    Args:
        folder: for the shards.
        images: parquet files.
        model_name: folder or Hub name of a network for square images.
        num_rows: n.
    """
    torch.manual_seed(0)
    model, processor = AutoModel.from_pretrained(model_name).eval(), AutoImageProcessor.from_pretrained(model_name)
    side, crop = model.config.image_size, v2.RandomResizedCrop(model.config.image_size, scale=CROP_AREA)
    sources = [datasets.Dataset.from_parquet(path).select_columns(image_column) for path in images]
    photographs = datasets.concatenate_datasets([each.cast_column(image_column, datasets.Image()) for each in sources])
    crops = np.empty((num_rows, 3, side, side), np.uint8)
    places = np.random.default_rng(0).permutation(num_rows)
    for number, photograph in enumerate(tqdm(photographs[image_column], desc="Crops", unit="image")):
        picture = TF.pil_to_tensor(photograph.convert("RGB"))
        for place in places[number :: len(photographs)]:
            crops[place] = crop(picture)
    for start in tqdm(range(0, num_rows, SHARD_ROWS), desc="Features", unit="shard"):
        stop = min(start + SHARD_ROWS, num_rows)
        features = []
        for begin in range(start, stop, BATCH):
            pixels = torch.from_numpy(crops[begin : min(begin + BATCH, stop)])
            pixels = TF.normalize(TF.to_dtype(pixels, scale=True), processor.image_mean, processor.image_std)
            with torch.autocast("cpu", torch.bfloat16):
                features.append(image_features(model, pixels).float().numpy())
        write_shard(folder, f"{start // SHARD_ROWS:05d}", np.concatenate(features), np.arange(start, stop))
    return EmbeddingStore(folder)
