import pytest
import torch
from datasets import Dataset, Features, Image

from dinov2_hf.data.collator import PreTrainingCollator
from dinov2_hf.data.multi_crop import MultiCropTransform
from dinov2_hf.data.pretraining_images import PreTrainingImages, PreTrainingStream
from dinov2_hf.data.sample_order import SampleKey
from tests.data.conftest import encode, noise_image


TRANSFORM = MultiCropTransform(global_crop_size=16, local_crop_size=8, num_local_crops=2)
COLLATOR = PreTrainingCollator(4)


def test_a_sample_is_a_function_of_its_key(dataset):
    images = PreTrainingImages(dataset, "image", TRANSFORM)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = images[SampleKey(2, seed=2**64 - 1)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again, other = images[SampleKey(2, seed=2**64 - 1)], images[SampleKey(2, seed=8)]
    assert torch.equal(first.local_crops, again.local_crops)
    assert not torch.equal(first.local_crops, other.local_crops)
    assert first.row_id == "row 2 (2.png)"
    assert first.seed == 2**64 - 1
    assert first.skipped == ()


def test_a_broken_image_is_replaced_and_recorded(dataset):
    images = PreTrainingImages(dataset, "image", TRANSFORM)
    samples = [images[SampleKey(17, seed)] for seed in range(6)]
    for sample in samples:
        assert sample.skipped[0].row_id == "row 17 (17.png)"
        assert "not an image" in sample.skipped[0].reason
    assert len({sample.row_id for sample in samples}) > 3
    again = images[SampleKey(17, 0)]
    assert (again.row_id, again.skipped) == (samples[0].row_id, samples[0].skipped)


def test_only_the_image_column_is_read():
    # The other column's files are missing, which would be an error if they were read.
    features = Features({"image": Image(), "annotation": Image()})
    rows = {"image": [encode(noise_image(0))], "annotation": ["not/there.png"]}
    images = PreTrainingImages(Dataset.from_dict(rows, features=features), "image", TRANSFORM)
    assert images[SampleKey(0, 0)].skipped == ()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("batch_size", {"batch_size": 0}),
        ("shuffle_buffer_size", {"shuffle_buffer_size": 0}),
        ("start_batch", {"start_batch": -1}),
        ("rank", {"rank": 1}),
    ],
)
def test_impossible_streams_are_refused(stream, name, settings):
    with pytest.raises(ValueError, match=name):
        PreTrainingStream(stream, "image", TRANSFORM, **{"batch_size": 2, "seed": 0, **settings})
