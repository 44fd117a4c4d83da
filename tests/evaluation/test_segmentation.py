"""Segmentation: mIoU and windows against loops, a task that can be learned, the saved head, and bad masks."""

import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from transformers import AutoModelForSemanticSegmentation, Dinov2Config, Dinov2Model, ViTConfig, ViTModel, pipeline

from dinov2_hf import DINOv2Config, DINOv2ForSemanticSegmentation, DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.evaluation.dense.patch_features import depth_features, segmentation_features
from dinov2_hf.evaluation.dense.pixel_pairs import PixelNormalization
from dinov2_hf.evaluation.dense.segmentation_augmentation import SegmentationCrop
from dinov2_hf.evaluation.dense.segmentation_masks import decode_mask
from dinov2_hf.evaluation.dense.sliding_window import augmented_probabilities, sliding_window_logits, window_starts
from dinov2_hf.evaluation.segmentation import evaluate_segmentation
from dinov2_hf.features import FeatureExtractor
from tests.evaluation.dense.data import banded_images, with_map


NAMES = ["red", "green", "blue"]


@pytest.fixture
def model(tiny_config) -> DINOv2Model:
    return DINOv2Model(tiny_config).eval()


def short(model, train, test, num_workers=0, **options):
    values = {"image_size": 32, "num_steps": 3, "train_batch_size": 4, "learning_rate": 0.01} | options
    extractor = FeatureExtractor(model, DINOv2ImageProcessor(), num_workers=num_workers)
    return evaluate_segmentation(extractor, train, test, **values)


@pytest.mark.parametrize(("height", "width"), [(20, 33), (12, 12), (12, 9), (31, 12)])
def test_sliding_window_against_a_loop(height, width):
    window, stride = 12, 8
    image = torch.randn(3, height, width)

    def predict(windows: torch.Tensor) -> torch.Tensor:
        """Not the same for a pixel in different windows."""
        return torch.stack([windows[:, 0] + windows.mean(dim=(1, 2, 3))[:, None, None], windows[:, 1].cumsum(-1)], 1)

    expected = torch.zeros(2, height, width)
    for row in range(height):
        for column in range(width):
            found = []
            for top in sorted({min(start, max(height - window, 0)) for start in range(0, height, stride)}):
                for left in sorted({min(start, max(width - window, 0)) for start in range(0, width, stride)}):
                    if top <= row < top + window and left <= column < left + window:
                        logits = predict(image[None, :, top : top + window, left : left + window])[0]
                        found.append(logits[:, row - top, column - left])
            expected[:, row, column] = torch.stack(found).mean(dim=0)
    for batch_size in (1, 5):
        torch.testing.assert_close(sliding_window_logits(predict, image, window, stride, batch_size), expected)


def test_windows_of_the_protocol():
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(1024, 512, 341) == [0, 341, 512]
    assert window_starts(1920, 640, 320) == [0, 320, 640, 960, 1280]
    assert window_starts(300, 512, 341) == [0]


def test_scales_and_flips_are_averaged_after_the_softmax():
    images = [torch.randn(2, 6, 8), torch.randn(2, 9, 12)]

    def logits_of(image: torch.Tensor) -> torch.Tensor:
        return image * torch.linspace(0.5, 1.5, image.shape[-1])  # left and right differ

    total = torch.zeros(2, 12, 16)
    for image in images:
        for mirrored in (False, True):
            logits = logits_of(image.flip(-1)).flip(-1) if mirrored else logits_of(image)
            logits = torch.nn.functional.interpolate(logits[None], (12, 16), mode="bilinear")[0]
            total += logits.exp() / logits.exp().sum(dim=0)
    torch.testing.assert_close(augmented_probabilities(logits_of, images, (12, 16), flip=True), total / 4)


@pytest.mark.parametrize("size", [(24, 40), (21, 43)])
@torch.no_grad()
def test_features_are_those_that_the_saved_head_reads(tiny_config, spread, size):
    tiny_config.num_register_tokens = 3
    for num_layers in (1, 2):
        tiny_config.segmentation_num_layers, tiny_config.num_labels = num_layers, 3
        whole = spread(DINOv2ForSemanticSegmentation(tiny_config))
        pixels = torch.randn(2, 3, *size)
        features = segmentation_features(whole.dinov2, pixels, num_layers)
        torch.testing.assert_close(whole.decode_head(features), whole(pixels).logits)


@torch.no_grad()
def test_padding_is_zeros_around_the_image(tiny_config, spread):
    whole = spread(DINOv2ForSemanticSegmentation(tiny_config))
    pixels = torch.randn(1, 3, 21, 43)  # to 24 x 48: 1 above, 2 below, 2 left, 3 right
    padded = torch.zeros(1, 3, 24, 48)
    padded[:, :, 1:22, 2:45] = pixels
    assert torch.equal(whole(pixels).logits, whole(padded).logits)


@torch.no_grad()
def test_features_of_models_of_transformers(spread):
    """By their hidden states."""
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    pixels = torch.randn(2, 3, 32, 32)
    vit = spread(ViTModel(ViTConfig(**shape, intermediate_size=64)))
    last = vit(pixels).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(segmentation_features(vit, pixels, 1), last)
    states = vit(pixels, output_hidden_states=True).hidden_states
    stock = spread(Dinov2Model(Dinov2Config(**shape)))
    assert torch.equal(
        segmentation_features(stock, pixels, 1).flatten(2).transpose(1, 2), stock(pixels).last_hidden_state[:, 1:]
    )
    features = depth_features(vit, pixels, [0, 2])
    assert features.shape == (2, 128, 4, 4)
    torch.testing.assert_close(features[:, 32:64, 1, 2], states[1][:, 0])
    torch.testing.assert_close(features[:, 64:96, 1, 2], states[3][:, 1 + 4 + 2])


def test_colours_are_learned_and_the_head_is_a_model(model, tmp_path):
    train, test = banded_images(16), banded_images(4, seed=1)
    metrics = short(
        model, train, test, class_names=NAMES, num_steps=60, output_dir=tmp_path, train_scale_range=(0.8, 1.5)
    )
    assert metrics["segmentation_miou"] > 0.6  # 0.2 by chance
    assert set(metrics) >= {f"segmentation_iou_{name}" for name in NAMES}
    assert (tmp_path / "segmentation.png").stat().st_size > 10_000

    whole = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert isinstance(whole, DINOv2ForSemanticSegmentation)
    assert whole.config.id2label == dict(enumerate(NAMES))
    for name, tensor in model.state_dict().items():
        assert torch.equal(whole.dinov2.state_dict()[name], tensor)  # frozen
    found = pipeline("image-segmentation", model=str(tmp_path / "model"))(test[0]["image"])
    truth = np.asarray(test[0]["annotation"])
    hits = 0
    for segment in found:
        mask = np.asarray(segment["mask"]) > 0
        assert mask.shape == truth.shape
        hits += (mask & (truth == NAMES.index(segment["label"]))).sum()
    # The pipeline looks at the whole image at once, the protocol at windows: equal up to some pixels at borders.
    assert hits / truth.size > metrics["segmentation_pixel_accuracy"] - 0.15


def test_same_seed_same_head_on_workers_or_not(model):
    train, test = banded_images(8), banded_images(2, seed=1)
    first = short(model, train, test)
    assert short(model, train, test, num_workers=2) == first
    assert short(model, train, test, seed=1) != first


def test_four_layers_scales_and_flips():
    config = DINOv2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8, layerscale_value=1.0
    )
    train, test = banded_images(8), banded_images(2, seed=1)
    metrics = short(
        DINOv2Model(config), train, test, head="multiscale", num_steps=30, test_scales=(1.0, 1.5),
        train_scale_range=(1.0, 2.0),
    )  # fmt: skip
    assert metrics["segmentation_miou"] > 0.4


def test_crops_move_image_and_mask_alike():
    normalize = PixelNormalization(DINOv2ImageProcessor(do_normalize=False, do_rescale=False), 4)
    labels = torch.arange(6).repeat_interleave(8)[None].repeat(32, 1)
    image = torch.stack([labels * 10, 100 - labels * 10, labels, labels]).float()  # 4 channels: no colour distortion
    crop = SegmentationCrop(24, (0.5, 2.0), 255, normalize)
    padded = 0
    for _ in range(20):
        pixels, mask = crop(tv_tensors.Image(image), tv_tensors.Mask(labels))
        assert (pixels.shape, mask.shape) == ((4, 24, 24), (24, 24))
        labelled = mask != 255
        padded += int((~labelled).any())
        assert (pixels[:, ~labelled] == 0).all()
        # Bilinear at the borders of the classes, nearest in the mask.
        assert ((pixels[0] / 10 - mask).abs()[labelled] < 1).all()
    assert padded


def test_labels_are_reduced():
    mask = Image.fromarray(np.array([[0, 1], [3, 255]], dtype=np.uint8))
    assert decode_mask(mask, 255, do_reduce_labels=True).tolist() == [[255, 0], [2, 255]]
    assert decode_mask(mask, 255, do_reduce_labels=False).tolist() == [[0, 1], [3, 255]]
    palette = mask.convert("P")
    assert decode_mask(palette, 255, do_reduce_labels=False).dtype == np.int64


def test_other_channels(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(4):
        path = tmp_path / f"{index}.npy"
        np.save(path, rng.integers(0, 255, size=(32, 32, 4), dtype=np.uint8))
        mask = (rng.random((32, 32)) < 0.5).astype(np.uint8)
        rows.append({"image": {"bytes": None, "path": str(path)}, "annotation": mask})
    config = DINOv2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, num_channels=4
    )
    processor = DINOv2ImageProcessor(image_mean=[0.5] * 4, image_std=[0.2] * 4)
    options = {"image_size": 32, "num_steps": 1, "train_batch_size": 2}
    metrics = evaluate_segmentation(FeatureExtractor(DINOv2Model(config), processor), rows, rows, **options)
    assert math.isfinite(metrics["segmentation_miou"])
    with pytest.raises(ValueError, match="image_mean has 3 values, but the model takes images of 4 channels"):
        evaluate_segmentation(FeatureExtractor(DINOv2Model(config), DINOv2ImageProcessor()), rows, rows, **options)
    with pytest.raises(
        ValueError, match=r"`image_column` 'image' of row 0 of the training data cannot be used .*40, 48, 3.*, 4"
    ):
        evaluate_segmentation(FeatureExtractor(DINOv2Model(config), processor), banded_images(4), rows, **options)


def test_bad_masks(model):
    data = banded_images(4)
    unknown = np.zeros((40, 48), dtype=np.uint8)
    unknown[3, 3] = 7
    with pytest.raises(ValueError, match=r"row 1 of the training data holds the numbers 7, but the classes \(`class_"):
        short(model, with_map(data, "annotation", unknown), data, class_names=NAMES)
    with pytest.raises(ValueError, match="row 1 of the evaluation data holds the numbers 7"):
        short(model, data, with_map(data, "annotation", unknown))
    short(model, data, with_map(data, "annotation", unknown), ignore_index=7)
    with pytest.raises(ValueError, match="row 1 of the training data is 9 x 9, but its image is 40 x 48"):
        short(model, with_map(data, "annotation", np.zeros((9, 9), dtype=np.uint8)), data)
    with pytest.raises(
        ValueError, match=r"row 1 of the training data cannot be used \(it holds uint8 of shape \(40, 48, 3\)"
    ):
        short(model, with_map(data, "annotation", np.zeros((40, 48, 3), dtype=np.uint8)), data)
    one_class = datasets.Dataset.from_list(
        [dict(row, annotation=Image.fromarray(np.zeros((40, 48), dtype=np.uint8))) for row in data],
        features=data.features,
    )
    with pytest.raises(ValueError, match="has 1 classes besides `ignore_index` 255"):
        short(model, one_class, data)
    with pytest.raises(ValueError, match="mask_column='mask' is not a column of the dataset"):
        short(model, data, data, mask_column="mask")


def test_broken_images(model):
    """One to train on is replaced by the next one; one to measure on stops everything before the training."""
    data = banded_images(4)
    broken = [dict(row) for row in data]
    broken[2]["image"] = b"no image"
    metrics = short(model, broken, data)
    replaced = [dict(row) for row in data]
    replaced[2] = replaced[3]
    assert metrics == short(model, replaced, data)
    with pytest.raises(
        ValueError,
        match=r"`image_column` 'image' of row 2 of the evaluation data cannot be used \(the file is not an image",
    ):
        short(model, data, broken, num_steps=10**9)
    broken = [dict(row, image=b"no image") for row in data]
    with pytest.raises(ValueError, match="`image_column` 'image' of row 0 of the training data cannot be used"):
        short(model, broken, data)


def test_a_class_without_training_is_announced(model, caplog):
    data = banded_images(4)
    metrics = short(model, data, data, class_names=[*NAMES, "rare"])
    assert "no mask of the training data has rare" in caplog.text
    assert metrics.get("segmentation_iou_rare", 0.0) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 4}, "`image_size` is 4, less than a patch of the model \\(8 pixels\\)"),
        ({"head": "mask2former"}, '`head` is "mask2former"; it must be "linear" or "multiscale"'),
        ({"head": "multiscale"}, "reads 4 blocks, but the model has 2"),
        ({"train_batch_size": 9}, "`train_batch_size` is 9, but must be from 1 to the 4 images"),
        ({"test_scales": ()}, "`test_scales` is empty, but must be ratios above 0"),
        ({"num_steps": 0}, "`num_steps` is 0; it must be at least 1"),
    ],
)
def test_bad_options(model, options, message):
    data = banded_images(4)
    with pytest.raises(ValueError, match=message):
        short(model, data, data, **options)


def test_images_smaller_than_a_patch_are_enlarged(model):
    tiny = banded_images(4, height=6, width=6)
    assert 0 <= short(model, tiny, tiny)["segmentation_miou"] <= 1


def test_the_training_around_is_left_alone(model):
    """Mode, gradients and random numbers."""
    model.train()
    data = banded_images(4)
    state = torch.get_rng_state()
    short(model, data, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
