import numpy as np
import pytest
import torch

from dinov2_hf.data.collator import PreTrainingCollator, PreTrainingSample, SkippedImage


def make_sample(number: int, num_local_crops: int = 3) -> PreTrainingSample:
    return PreTrainingSample(
        global_crops=number + torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 3, 8, 8),
        local_crops=torch.full((num_local_crops, 3, 4, 4), float(number)),
        row_id=f"row {number}",
        seed=100 + number,
        skipped=(SkippedImage(f"row {number + 50}", "empty"),) if number == 2 else (),
    )


@pytest.fixture
def collator() -> PreTrainingCollator:
    return PreTrainingCollator(2)


def test_names_shapes_and_types(collator):
    batch, _ = collator([make_sample(number) for number in range(5)])
    assert list(batch) == ["global_crops", "local_crops", "bool_masked_pos", "masked_indices", "masked_weights"]
    num_masked = int(batch["bool_masked_pos"].sum())
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "global_crops": ((2, 5, 3, 8, 8), torch.float32),
        "local_crops": ((3, 5, 3, 4, 4), torch.float32),
        "bool_masked_pos": ((10, 16), torch.bool),
        "masked_indices": ((num_masked,), torch.int64),
        "masked_weights": ((num_masked,), torch.float32),
    }


def test_crops_are_crop_major(collator):
    batch, _ = collator([make_sample(number) for number in range(5)])
    assert batch["global_crops"][:, :, 0, 0, 0].tolist() == [[0, 1, 2, 3, 4], [0.5, 1.5, 2.5, 3.5, 4.5]]


def test_indices_and_weights_follow_from_the_masks(collator):
    batch, _ = collator([make_sample(number) for number in range(5)])
    masks = batch["bool_masked_pos"]
    positions = [row * 16 + patch for row in range(10) for patch in range(16) if masks[row, patch]]
    assert batch["masked_indices"].tolist() == positions
    counts = masks.sum(dim=1)
    assert batch["masked_weights"].tolist() == pytest.approx([1 / int(counts[i // 16]) for i in positions])
    assert float(batch["masked_weights"].sum()) == pytest.approx(int((counts > 0).sum())) == pytest.approx(5)


def test_the_report_names_images_and_failures(collator):
    _, report = collator([make_sample(number) for number in range(4)])
    assert report.row_ids == ["row 0", "row 1", "row 2", "row 3"]
    assert report.skipped == [SkippedImage("row 52", "empty")]


def test_a_batch_is_a_function_of_its_samples(collator):
    first, _ = collator([make_sample(number) for number in range(4)])
    again, _ = collator([make_sample(number) for number in range(4)])
    other, _ = collator([make_sample(number) for number in range(1, 5)])
    assert torch.equal(first["bool_masked_pos"], again["bool_masked_pos"])
    assert not torch.equal(first["bool_masked_pos"], other["bool_masked_pos"])


def test_no_masks_and_no_local_crops():
    collator = PreTrainingCollator(2, mask_probability=0.0)
    batch, _ = collator([make_sample(number, num_local_crops=0) for number in range(2)])
    assert batch["local_crops"].shape == (0, 2, 3, 4, 4)
    assert batch["masked_indices"].shape == batch["masked_weights"].shape == (0,)


def test_impossible_settings_are_refused_at_once():
    with pytest.raises(ValueError, match="mask_probability"):
        PreTrainingCollator(2, mask_probability=-1)


def test_padded_batches_are_the_same_with_nothing_after_them(collator):
    """And all of one length, for a compiled step."""
    padded, lengths = PreTrainingCollator(2, pad_masked=True), set()
    for first in range(8):
        samples = [make_sample(number) for number in range(first, first + 5)]
        (batch, _), (expected, _) = padded(samples), collator(samples)
        num_masked = int(batch.pop("num_masked"))
        assert num_masked == len(expected["masked_indices"])
        lengths.add(len(batch["masked_indices"]))
        for name in ("masked_indices", "masked_weights"):
            assert batch[name][num_masked:].count_nonzero() == 0
            batch[name] = batch[name][:num_masked]
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], value) for name, value in expected.items())
    assert len(lengths) == 1


def all_masked(grid_size, num_masked, rng):
    return np.ones(grid_size, dtype=bool)


def test_masks_that_leave_no_room_for_padding_are_refused():
    collator = PreTrainingCollator(2, masks=f"{__name__}:all_masked", pad_masked=True)
    with pytest.raises(ValueError, match="all_masked hide 80 patches of a batch, but at most 25 were asked for"):
        collator([make_sample(number) for number in range(5)])
