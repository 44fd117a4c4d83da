"""Segmentation by nearest patches: against a loop, on colours that can be told apart, and with bad input."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.evaluation.dense.segmentation_masks import MaskedImages
from dinov2_hf.evaluation.patch_knn import SOURCES, PatchesOfImage, evaluate_patch_knn, measure_patch_knn, patch_shares
from dinov2_hf.features import FeatureExtractor
from tests.evaluation.dense.data import banded_images, with_map


NAMES = ["red", "green", "blue"]


def masked(train: datasets.Dataset, test: datasets.Dataset, **options) -> MaskedImages:
    columns = {"image_column": "image", "num_channels": 3, "mask_column": "annotation"}
    return MaskedImages(train, test, **columns, ignore_index=255, do_reduce_labels=False, sources=SOURCES, **options)


def test_shares_of_a_patch():
    mask = torch.tensor([[0, 0, 1, 9], [0, 2, 9, 1], [9, 9, 2, 2], [9, 9, 2, 2]])
    shares = patch_shares(mask, 2, num_classes=3, ignore_index=9)
    assert shares[0].tolist() == [0.75, 0, 0.25]
    assert shares[1].tolist() == [0, 1, 0]
    assert shares[2].isnan().all()
    assert shares[3].tolist() == [0, 0, 1]


@torch.no_grad()
def test_against_a_loop_over_patches(extractor):
    """In float64, by the formula of the paper: every patch against every one of the bank."""
    train, test = banded_images(3), banded_images(2, seed=1, height=50, width=36)
    unlabelled = np.full((40, 48), 255, dtype=np.uint8)
    unlabelled[:, :16] = 1
    train = with_map(train, "annotation", unlabelled)
    masks, look = masked(train, test), PatchesOfImage(extractor, 32)
    bank, shares = [], []
    for image, mask in (masks.train[row] for row in range(3)):
        image, mask, features = look(image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor))
        assert mask.shape == (32, 40)
        for row in range(4):
            for column in range(5):
                pixels = mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten().tolist()
                counted = [pixel for pixel in pixels if pixel != 255]
                if counted:
                    bank.append(features[row, column].double())
                    shares.append([counted.count(number) / len(counted) for number in range(3)])
    assert len(bank) < 60
    correct = total = 0
    for image, mask in (masks.eval[row] for row in range(2)):
        image, mask, features = look(image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor))
        assert mask.shape == (48, 32)  # 44.4 and 32 in whole patches
        scores = torch.zeros(3, 6, 4, dtype=torch.float64)
        for row in range(6):
            for column in range(4):
                query = features[row, column].double()
                cosines = [(float(query @ key / query.norm() / key.norm()), place) for place, key in enumerate(bank)]
                nearest = sorted(cosines, reverse=True)[:7]
                weights = [np.exp(cosine / 0.02) for cosine, _ in nearest]
                for weight, (_, place) in zip(weights, nearest, strict=True):
                    scores[:, row, column] += weight / sum(weights) * torch.tensor(shares[place], dtype=torch.float64)
        pixels = torch.nn.functional.interpolate(scores[None], (48, 32), mode="bilinear")[0].argmax(dim=0)
        correct += int((pixels == mask).sum())
        total += mask.numel()
    metrics, _ = measure_patch_knn(extractor, masks, NAMES, image_size=32, k=7)
    assert metrics["patch_knn_pixel_accuracy"] == pytest.approx(correct / total, abs=1e-9)
    assert metrics.findings["num_bank_patches"] == len(bank)


def test_colours_are_told_apart(extractor, tmp_path):
    train, test = banded_images(8), banded_images(4, seed=1)
    metrics = evaluate_patch_knn(extractor, train, test, class_names=NAMES, output_dir=tmp_path)
    assert metrics["patch_knn_miou"] > 0.7  # 0.2 by chance
    assert 0 < metrics["patch_knn_miou_stderr"] < 0.1
    assert set(metrics) >= {f"patch_knn_iou_{name}" for name in NAMES}
    assert (tmp_path / "patch_knn.png").stat().st_size > 10_000
    assert evaluate_patch_knn(extractor, train, test, image_size=32)["patch_knn_miou"] == metrics["patch_knn_miou"]
    assert evaluate_patch_knn(extractor, train, test, k=10**6)["patch_knn_miou"] > 0.2  # as many as there are


def test_an_image_of_the_bank_finds_itself(extractor):
    data = banded_images(4, height=32, width=48)  # bands of whole patches
    assert evaluate_patch_knn(extractor, data, data, temperature=1e-4)["patch_knn_pixel_accuracy"] > 0.95


def test_a_class_that_the_bank_lacks_is_announced(extractor, caplog):
    data, other = banded_images(4), np.full((40, 48), 5, dtype=np.uint8)
    metrics = evaluate_patch_knn(extractor, data, with_map(data, "annotation", other))
    assert "no mask of the bank has LABEL_5; their IoU can only be 0" in caplog.text
    assert metrics["patch_knn_iou_LABEL_5"] == 0
    assert "patch_knn_iou_LABEL_4" not in metrics


def test_bad_input(extractor, model):
    data, unknown = banded_images(4), np.full((40, 48), 7, dtype=np.uint8)
    with pytest.raises(
        ValueError, match=r"row 1 of the evaluation data holds the numbers 7, but the classes \(`class_n"
    ):
        evaluate_patch_knn(extractor, data, with_map(data, "annotation", unknown), class_names=NAMES)
    with pytest.raises(ValueError, match="row 1 of the bank is 9 x 9, but its image is 40 x 48"):
        evaluate_patch_knn(extractor, with_map(data, "annotation", np.zeros((9, 9), dtype=np.uint8)), data)
    broken = [dict(row) for row in data]
    broken[2]["image"] = b"no image"
    with pytest.raises(ValueError, match=r"`image_column` 'image' of row 2 of the bank cannot be used"):
        evaluate_patch_knn(extractor, broken, data)
    one_class = [dict(row, annotation=Image.fromarray(np.zeros((40, 48), dtype=np.uint8))) for row in data]
    with pytest.raises(ValueError, match="of the bank has 1 classes besides `ignore_index` 255"):
        evaluate_patch_knn(extractor, one_class, data)
    with pytest.raises(ValueError, match="of the bank has 0 classes besides `ignore_index` 0"):
        evaluate_patch_knn(extractor, one_class, one_class, ignore_index=0)
    many = with_map(data, "annotation", np.full((40, 48), 5000, dtype=np.uint16))
    with pytest.raises(ValueError, match="holds the number 5000, but masks hold the numbers of at most 4096 classes"):
        evaluate_patch_knn(extractor, data, many)
    with pytest.raises(ValueError, match="mask_column='mask' is not a column"):
        evaluate_patch_knn(extractor, data, data, mask_column="mask")
    with pytest.raises(ValueError, match="`image_size` is 7, less than a patch"):
        evaluate_patch_knn(extractor, data, data, image_size=7)
    with pytest.raises(ValueError, match="`temperature` is 0; it must be above 0"):
        evaluate_patch_knn(extractor, data, data, temperature=0)
    uncropped = FeatureExtractor(model, DINOv2ImageProcessor(do_center_crop=False, size={"shortest_edge": 36}))
    with pytest.raises(ValueError, match="`image_size` is not given, and the image processor does not crop"):
        evaluate_patch_knn(uncropped, data, data)
    with torch.no_grad():
        model.layernorm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="the features of the bank has .* rows with NaN"):
        evaluate_patch_knn(extractor, data, data)


def test_checks_end_before_the_masks_are_read(extractor):
    broken = [dict(row, image=b"no image") for row in banded_images(2)]
    with extractor.only_checks():
        evaluate_patch_knn(extractor, broken, broken)
    with pytest.raises(ValueError, match="`image_size` is 7"), extractor.only_checks():
        evaluate_patch_knn(extractor, broken, broken, image_size=7)


def test_any_model_of_images(spread, tiny_config):
    tiny_config.num_register_tokens = 3
    extractor = FeatureExtractor(spread(DINOv2Model(tiny_config)), DINOv2ImageProcessor())
    metrics = evaluate_patch_knn(extractor, banded_images(4), banded_images(2, seed=1), image_size=32)
    assert metrics["patch_knn_miou"] > 0.5
