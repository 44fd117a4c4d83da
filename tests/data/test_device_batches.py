"""Batches as the network gets them: what remains of the augmentation is done, whoever made them."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from datasets import Dataset

from dinov2_hf import DINOv2Config
from dinov2_hf.data import build_batches
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from tests.data.conftest import noise_image


NETWORK = DINOv2Config(image_size=16, patch_size=4)
RECIPE = PreTrainingArguments(
    train_data="", local_crop_size=8, num_local_crops=3, per_device_train_batch_size=4, dataloader_num_workers=0
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset.from_dict({"image": [noise_image(seed, 8, 8).resize((40, 30), 3) for seed in range(8)]})


def first_batches(dataset, num_batches=3, **values):
    own = {name: values.pop(name) for name in ("start_sample", "crops_dtype") if name in values}
    return list(islice(build_batches(dataset, replace(RECIPE, **values), NETWORK, **own), num_batches))


@pytest.mark.parametrize("augmentation", ["multi_crop", "device"])
def test_workers_and_a_later_start_change_nothing(dataset, augmentation):
    expected = first_batches(dataset, augmentation=augmentation)
    with_workers = first_batches(dataset, augmentation=augmentation, dataloader_num_workers=2)
    resumed = first_batches(dataset, 2, augmentation=augmentation, start_sample=4)
    for found, those in ((with_workers, expected), (resumed, expected[1:])):
        for (batch, report), (other, other_report) in zip(found, those, strict=True):
            assert report == other_report
            assert batch.keys() == other.keys()
            for name, value in batch.items():
                assert torch.equal(value, other[name]), name


def test_both_augmentations_give_the_same_crops(dataset):
    """From one seed, to rounding: what the device does is what a worker would have done."""
    for (batch, _), (other, _) in zip(
        first_batches(dataset), first_batches(dataset, augmentation="device"), strict=True
    ):
        assert batch.keys() == other.keys()
        for name in ("global_crops", "local_crops"):
            assert batch[name].dtype == other[name].dtype == torch.float32
            levels = (batch[name] - other[name]).abs() * 255 * 0.225
            assert levels.mean() < 1.5
            assert levels.quantile(0.99) < 10
        assert torch.equal(batch["masked_indices"], other["masked_indices"])


@pytest.mark.parametrize("augmentation", ["multi_crop", "device"])
def test_crops_are_rounded_at_the_very_end(dataset, augmentation):
    exact = first_batches(dataset, augmentation=augmentation)
    rounded = first_batches(dataset, augmentation=augmentation, crops_dtype=torch.bfloat16)
    for (batch, _), (other, _) in zip(exact, rounded, strict=True):
        for name, value in batch.items():
            expected = value.bfloat16() if name in ("global_crops", "local_crops") else value
            assert other[name].dtype == expected.dtype, name
            assert torch.equal(other[name], expected), name


def test_crops_are_normalised(dataset):
    """By mean and deviation of the recipe, channel by channel."""
    ((plain, _),) = first_batches(dataset, 1, image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0])
    mean, std = [0.2, 0.5, 0.7], [0.1, 0.3, 0.5]
    ((batch, _),) = first_batches(dataset, 1, image_mean=mean, image_std=std)
    for name in ("global_crops", "local_crops"):
        assert 0 <= plain[name].min() < 0.2 < 0.8 < plain[name].max() <= 1
        expected = (plain[name] - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(batch[name], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", ["multi_crop", "device"])
def test_a_gpu_gets_the_same_batches(dataset, augmentation):
    recipe = replace(RECIPE, augmentation=augmentation)
    on_gpu = islice(build_batches(dataset, recipe, NETWORK, device="cuda"), 5)
    on_cpu = first_batches(dataset, 5, augmentation=augmentation)
    for (batch, report), (other, other_report) in zip(on_gpu, on_cpu, strict=True):
        assert report == other_report
        for name, value in batch.items():
            assert value.device.type == "cuda"
            torch.testing.assert_close(value.cpu(), other[name], atol=0.05, rtol=0)
