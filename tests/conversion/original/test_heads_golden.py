"""
What the original's own heads computed from the files that these tests make, through a conversion.

The numbers are of its classes for linear classifiers and depth, and, for segmentation, of its backbone's intermediate
layers through PyTorch's batch norm and 1 x 1 convolution: the first three of the output, and the sum of all
magnitudes.
"""

import pytest
import torch
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from dinov2_hf.conversion.original.from_original import convert_from_original
from tests.conversion.original.layouts import (
    backbone_shapes,
    classifier_head,
    depth_head,
    fill,
    random_values,
    segmentation_head,
)


CLASSIFICATION = {
    (0, 1): (0.577378, 1.108199, 0.759190, 5.280323),
    (0, 4): (1.629263, -0.250840, 0.181730, 5.345741),
    (4, 1): (0.569282, 1.088705, 0.846912, 5.580534),
    (4, 4): (1.669961, -0.290647, -0.009392, 5.600739),
}
SEGMENTATION = {
    (0, 1): (0.173400, 0.189264, 0.841855, 79.257378),
    (0, 4): (0.225639, 0.264586, 0.319448, 89.122299),
    (4, 1): (0.148636, 0.191668, 0.691731, 75.902308),
    (4, 4): (0.167607, 0.229383, 0.202421, 87.195739),
}
DEPTH = {
    (0, 1): (4.715689, 4.715689, 4.748934, 3765.440695),
    (0, 4): (4.932347, 4.932347, 4.978794, 3899.899018),
    (4, 1): (4.723730, 4.723730, 4.753337, 3750.490879),
    (4, 4): (4.938140, 4.938140, 4.978985, 3900.404681),
}
CASES = [(num_registers, num_layers) for num_registers in (0, 4) for num_layers in (1, 4)]


def converted(auto_class, num_registers, head, tmp_path, **options):
    """The head on a backbone of 12 blocks, 32 wide, whose positions are stored for 5 x 5 patches."""
    backbone = fill(backbone_shapes(depth=12, num_registers=num_registers, grid_size=5))
    torch.save(backbone, tmp_path / "backbone.pth")
    torch.save(head, tmp_path / "head.pth")
    convert_from_original(
        tmp_path / "head.pth",
        tmp_path / "model",
        backbone=tmp_path / "backbone.pth",
        num_attention_heads=2,
        **options,
    )
    return auto_class.from_pretrained(tmp_path / "model").eval()


def compare(output, golden):
    found = [*output.flatten()[:3].tolist(), output.double().abs().sum().item()]
    # Rounding of the printed digits; the sum is of up to 768 numbers.
    assert found[:3] == pytest.approx(golden[:3], abs=1e-5)
    assert found[3] == pytest.approx(golden[3], rel=1e-6, abs=1e-5)


@pytest.fixture
def pixel_values():
    """2 images of 4 x 6 patches."""
    return random_values("images", (2, 3, 56, 84)) * 100


@torch.no_grad()
@pytest.mark.parametrize(("num_registers", "num_layers"), CASES)
def test_linear_classifiers(num_registers, num_layers, pixel_values, tmp_path):
    head = classifier_head((1 + num_layers) * 32, 5)
    model = converted(AutoModelForImageClassification, num_registers, head, tmp_path)
    compare(model(pixel_values).logits, CLASSIFICATION[num_registers, num_layers])


@torch.no_grad()
@pytest.mark.parametrize(("num_registers", "num_layers"), CASES)
def test_linear_segmentation(num_registers, num_layers, pixel_values, tmp_path):
    head = {"state_dict": segmentation_head(num_layers * 32, 5)}
    model = converted(AutoModelForSemanticSegmentation, num_registers, head, tmp_path)
    compare(model(pixel_values).logits, SEGMENTATION[num_registers, num_layers])


@torch.no_grad()
@pytest.mark.parametrize(("num_registers", "num_layers"), CASES)
def test_linear_depth(num_registers, num_layers, pixel_values, tmp_path):
    head = {"state_dict": depth_head(2 * num_layers * 32)}
    model = converted(AutoModelForDepthEstimation, num_registers, head, tmp_path, depth_range=(0.001, 10.0))
    compare(model(pixel_values).predicted_depth, DEPTH[num_registers, num_layers])
