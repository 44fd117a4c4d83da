"""IoU, accuracies and standard errors against loops over pixels and over images."""

import math

import pytest
import torch

from dinov2_hf.evaluation.dense.mask_metrics import mask_counts, mask_metrics, miou_standard_error


@pytest.fixture
def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth and prediction of 3 images: class 4 is nowhere, class 3 is never right."""
    generator = torch.Generator().manual_seed(1)
    truth, prediction = (torch.randint(0, 5, (3, 9, 7), generator=generator) for _ in range(2))
    truth[truth == 4] = 255
    prediction[prediction == 4] = 0
    prediction[prediction == 3] = 1
    return truth, prediction


def test_metrics_against_a_loop(masks):
    hits, unions, of_truth = [0] * 5, [0] * 5, [0] * 5
    correct = total = 0
    for one, other in zip(*(mask.flatten().tolist() for mask in masks), strict=True):
        if one == 255:
            continue
        of_truth[one] += 1
        total += 1
        for number in {one, other}:
            unions[number] += 1
        if one == other:
            hits[one] += 1
            correct += 1
    metrics = mask_metrics("x", mask_counts(*masks, 5, ignore_index=255), ["a", "b", "c", "d", "e"])
    ious = [hits[number] / unions[number] for number in range(4)]
    assert ious[3] == 0
    assert metrics["x_miou"] == pytest.approx(sum(ious) / 4)
    assert metrics["x_pixel_accuracy"] == pytest.approx(correct / total)
    assert metrics["x_mean_accuracy"] == pytest.approx(sum(hits[n] / of_truth[n] for n in range(4)) / 4)
    assert metrics["x_iou_b"] == pytest.approx(ious[1])
    assert "x_iou_e" not in metrics


def test_the_standard_error_leaves_one_image_out_after_the_other(masks):
    counts = torch.stack([mask_counts(*pair, 5, ignore_index=255) for pair in zip(*masks, strict=True)])
    assert torch.equal(counts.sum(dim=0), mask_counts(*masks, 5, ignore_index=255))
    mious = []
    for left_out in range(3):
        others = [image for image in range(3) if image != left_out]
        counted = mask_counts(masks[0][others], masks[1][others], 5, ignore_index=255)
        mious.append(mask_metrics("x", counted, list("abcde"))["x_miou"])
    mean = sum(mious) / 3
    expected = math.sqrt(2 / 3 * sum((miou - mean) ** 2 for miou in mious))
    assert miou_standard_error(counts) == pytest.approx(expected)
    assert miou_standard_error(counts[:1].repeat(4, 1, 1)) == 0
    assert math.isnan(miou_standard_error(counts[:1]))
