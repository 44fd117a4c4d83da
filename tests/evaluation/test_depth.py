"""Depth: loss and metrics against golden numbers and loops, tasks that can be learned, saved heads, and bad depths."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from transformers import AutoModelForDepthEstimation, DPTForDepthEstimation, pipeline

from dinov2_hf import DINOv2Config, DINOv2ForDepthEstimation, DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.evaluation.dense.depth_benchmarks import BENCHMARKS
from dinov2_hf.evaluation.dense.depth_images import DepthCrop, decode_depth, judged_box
from dinov2_hf.evaluation.dense.depth_measures import depth_metrics, sigloss
from dinov2_hf.evaluation.dense.head_training import cosine_decay, learning_rate_factor, linear_decay, one_cycle_beta1
from dinov2_hf.evaluation.dense.patch_features import depth_features
from dinov2_hf.evaluation.dense.pixel_pairs import PixelNormalization
from dinov2_hf.evaluation.depth import evaluate_depth
from dinov2_hf.features import FeatureExtractor
from dinov2_hf.models.depth_layers import four_depth_layers
from tests.evaluation.dense.data import banded_images, with_map


@pytest.fixture
def model() -> DINOv2Model:
    config = DINOv2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8, num_register_tokens=2
    )
    return DINOv2Model(config).eval()


def short(model, train, test, num_workers=0, **options):
    values = {
        "depth_scale": 1000, "max_depth": 5.0, "crop_size": (32, 40), "num_steps": 3, "train_batch_size": 4,
        "learning_rate": 0.03,
    }  # fmt: skip
    extractor = FeatureExtractor(model, DINOv2ImageProcessor(), num_workers=num_workers)
    return evaluate_depth(extractor, train, test, **values | options)


def test_sigloss_golden_numbers():
    k = torch.arange(128, dtype=torch.float64)
    prediction = (3 + 2 * torch.sin(0.3 * k)).float().view(2, 1, 8, 8)
    depth = (3 + 2 * torch.cos(0.17 * k)).float().view(2, 1, 8, 8)
    depth.view(-1)[:3] = 0
    assert sigloss(prediction, depth).item() == pytest.approx(0.7214619, abs=1e-6)
    assert sigloss(prediction, depth, warmup=True).item() == pytest.approx(0.0014281, abs=1e-6)


def test_sigloss_of_no_pixel_is_zero_and_has_a_gradient():
    prediction = torch.ones(1, 2, 2, requires_grad=True)
    loss = sigloss(prediction, torch.zeros(1, 2, 2))
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


def test_metrics_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    prediction, depth = (0.5 + 4 * torch.rand(50, generator=generator) for _ in range(2))
    squares = relative = logs = 0.0
    within = [0, 0, 0]
    for p, d in zip(prediction.tolist(), depth.tolist(), strict=True):
        squares += (p - d) ** 2
        relative += abs(p - d) / d
        logs += abs(np.log10(p) - np.log10(d))
        for power in range(3):
            within[power] += max(p / d, d / p) < 1.25 ** (power + 1)
    metrics = depth_metrics(prediction, depth)
    assert metrics["rmse"] == pytest.approx((squares / 50) ** 0.5)
    assert metrics["abs_rel"] == pytest.approx(relative / 50)
    assert metrics["log10"] == pytest.approx(logs / 50)
    assert [metrics[f"delta{power}"] for power in (1, 2, 3)] == pytest.approx([count / 50 for count in within])


def test_metrics_against_torchmetrics():
    from torchmetrics.functional import mean_absolute_percentage_error, mean_squared_error

    prediction, depth = torch.rand(2, 64).add(0.5).unbind()
    metrics = depth_metrics(prediction, depth)
    assert metrics["rmse"] == pytest.approx(mean_squared_error(prediction, depth, squared=False).item(), abs=1e-6)
    assert metrics["abs_rel"] == pytest.approx(mean_absolute_percentage_error(prediction, depth).item(), abs=1e-6)


def test_schedules():
    segmentation = {"decay": linear_decay, "warmup_steps": 1500, "warmup_ratio": 1e-6}
    assert learning_rate_factor(0, 40_000, **segmentation) == pytest.approx(1e-6)
    assert learning_rate_factor(750, 40_000, **segmentation) == pytest.approx(0.5 * (1 - 750 / 40_000), rel=1e-5)
    assert learning_rate_factor(20_000, 40_000, **segmentation) == 0.5
    depth = {"decay": cosine_decay, "warmup_steps": 12_800, "warmup_ratio": 1e-3, "final_ratio": 1e-8}
    assert learning_rate_factor(0, 38_400, **depth) == pytest.approx(1e-3)
    assert learning_rate_factor(19_200, 38_400, **depth) == pytest.approx(0.5)
    assert learning_rate_factor(38_400, 38_400, **depth) == pytest.approx(1e-8)


def test_momentum_is_that_of_one_cycle():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=50)
    for step in range(50):
        assert one_cycle_beta1(step, 50) == pytest.approx(optimizer.param_groups[0]["betas"][0], abs=1e-9)
        optimizer.step()
        if step < 49:
            scheduler.step()


def test_four_layers():
    assert four_depth_layers(12) == [2, 5, 8, 11]
    assert four_depth_layers(24) == [4, 11, 17, 23]
    assert four_depth_layers(40) == [9, 19, 29, 39]
    assert four_depth_layers(6) == [0, 2, 3, 5]
    with pytest.raises(ValueError, match="`num_hidden_layers` is 3, but a head on four layers needs at least 4"):
        four_depth_layers(3)


@pytest.mark.parametrize("size", [(24, 40), (21, 43)])
@torch.no_grad()
def test_features_are_those_that_the_saved_head_reads(model, spread, size):
    model.config.depth_layers = [0, 2, 3]
    whole = spread(DINOv2ForDepthEstimation(model.config))
    pixels = torch.randn(2, 3, *size)
    features = depth_features(whole.dinov2, pixels, [0, 2, 3])
    torch.testing.assert_close(whole.decode_head(features), whole(pixels).predicted_depth)


@pytest.mark.parametrize("head", ["linear1", "linear4"])
def test_depth_is_learned_and_the_head_is_a_model(model, tmp_path, head):
    train, test = banded_images(16), banded_images(3, seed=1)
    metrics = short(model, train, test, head=head, num_steps=60, warmup_steps=10, output_dir=tmp_path)
    # Of depths 1, 2 and 4 a constant is 1.25 off (root mean square), and near a third of them.
    assert metrics["depth_rmse"] < 0.5
    assert metrics["depth_delta1"] > 0.8
    assert (tmp_path / "depth.png").stat().st_size > 10_000

    whole = AutoModelForDepthEstimation.from_pretrained(tmp_path / "model")
    assert isinstance(whole, DINOv2ForDepthEstimation)
    assert whole.config.depth_layers == ([3] if head == "linear1" else [0, 1, 2, 3])
    for name, tensor in model.state_dict().items():
        assert torch.equal(whole.dinov2.state_dict()[name], tensor)
    pipe = pipeline("depth-estimation", model=str(tmp_path / "model"))
    found = []
    for row in test:
        both = [pipe(image)["predicted_depth"] for image in (row["image"], row["image"].transpose(0))]
        depth = (both[0] + both[1].flip(-1)) / 2
        truth = torch.from_numpy(np.asarray(row["depth_map"]).astype(np.float32)) / 1000
        assert depth.shape == truth.shape
        found.append(depth_metrics(depth.flatten(), truth.flatten()))
    for name, value in found[0].items():  # the pipeline and its mirror image are the protocol's prediction
        assert metrics[f"depth_{name}"] == pytest.approx(sum(one[name] for one in found) / 3, rel=1e-4), (name, value)


@pytest.mark.slow
def test_dpt_is_learned_and_loads(model, tmp_path):
    train, test = banded_images(8), banded_images(2, seed=1)
    options = {"head": "dpt", "fusion_hidden_size": 16, "output_dir": tmp_path, "learning_rate": 3e-3}
    metrics = short(model, train, test, num_steps=30, warmup_steps=5, **options)
    assert metrics["depth_rmse"] < 0.9
    whole = DPTForDepthEstimation.from_pretrained(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(whole.backbone.state_dict()[name], tensor)
    assert whole.backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]
    pipe = pipeline("depth-estimation", model=str(tmp_path / "model"))
    image = test[0]["image"].crop((0, 0, 45, 37))  # no multiples of the patch size
    assert pipe(image)["predicted_depth"].shape == (37, 45)
    truth = torch.from_numpy(np.asarray(test[0]["depth_map"]).astype(np.float32)) / 1000
    assert (pipe(test[0]["image"])["predicted_depth"] - truth).abs().mean() < 0.8


def test_same_seed_same_head_on_workers_or_not(model):
    train, test = banded_images(8), banded_images(2, seed=1)
    first = short(model, train, test)
    assert short(model, train, test, num_workers=2) == first
    assert short(model, train, test, seed=1) != first


@pytest.mark.parametrize("head", ["linear4", "dpt"])
def test_the_training_around_is_left_alone(model, head):
    """Mode, gradients and random numbers."""
    model.train()
    data = banded_images(4)
    state = torch.get_rng_state()
    short(model, data, data, head=head, num_steps=1, **({"fusion_hidden_size": 8} if head == "dpt" else {}))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_depths_of_zero_or_infinity_do_not_count(model, tmp_path):
    """The metrics of a map with holes are those of the rest; the training stays finite."""
    assert decode_depth(np.array([[0.0, -1.0, np.inf], [np.nan, 2000.0, 1.0]]), 1000).tolist() == [
        [0, 0, 0], [0, 2, np.float32(0.001)]
    ]  # fmt: skip
    rows, holes = [], []
    for row in banded_images(4):
        depth = np.asarray(row["depth_map"]).astype(np.float32)
        rows.append({"image": row["image"], "depth_map": depth})
        depth = depth.copy()
        depth[::2], depth[1, ::3], depth[3] = 0, np.inf, np.nan
        holes.append({"image": row["image"], "depth_map": depth})
    whole, with_holes = short(model, rows, rows), short(model, holes, holes)
    assert all(np.isfinite(list(with_holes.values())))
    # The bands are upright, so the rows left have the same depths, but not the same predictions.
    assert with_holes["depth_rmse"] == pytest.approx(whole["depth_rmse"], rel=0.2)


def test_a_map_without_depth_is_left_out(model, caplog):
    data = banded_images(4)
    empty = with_map(data, "depth_map", np.zeros((40, 48), dtype=np.uint16))
    metrics = short(model, data, empty)
    assert "1 images have no pixel whose depth lies in the range" in caplog.text
    assert metrics == short(model, data, data.select([0, 2, 3]))


def test_bad_depths(model):
    data = banded_images(4)
    with pytest.raises(
        ValueError, match="holds depths from 1000 to 4000 .*`depth_scale` 1.*, of which 0 % lie between"
    ):
        short(model, data, data, depth_scale=1)
    nothing = datasets.Dataset.from_list(
        [dict(row, depth_map=Image.fromarray(np.zeros((40, 48), dtype=np.uint16))) for row in data],
        features=data.features,
    )
    with pytest.raises(ValueError, match="of the training data holds no depth that is finite and above 0"):
        short(model, nothing, data)
    with pytest.raises(ValueError, match="of the evaluation data holds no depth"):
        short(model, data, nothing)
    with pytest.raises(ValueError, match="row 1 of the training data is 9 x 9, but its image is 40 x 48"):
        short(model, with_map(data, "depth_map", np.zeros((9, 9), dtype=np.uint16)), data)
    colours = r"row 1 of the training data cannot be used \(it holds uint8 of shape \(40, 48, 3\)"
    with pytest.raises(ValueError, match=colours):
        short(model, with_map(data, "depth_map", np.zeros((40, 48, 3), dtype=np.uint8)), data)
    with pytest.raises(ValueError, match="depth_column='depth' is not a column of the dataset"):
        short(model, data, data, depth_column="depth")
    small = banded_images(4, height=6, width=6)
    with pytest.raises(
        ValueError, match="row 0 of the training data is an image of 6 x 6 pixels, smaller than a patch"
    ):
        short(model, small, data)


def test_a_scale_that_makes_everything_near_is_announced(model, caplog):
    data = banded_images(4)
    short(model, data, data, depth_scale=100_000)
    assert "holds depths up to 0.04, a small part of max_depth=5" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear2"}, '`head` is "linear2"; it must be "linear1" or "linear4" or "dpt"'),
        ({"benchmark": "sun"}, '`benchmark` is "sun"; it must be "nyu" or "kitti" or "none"'),
        ({"crop_size": (4, 40)}, "`crop_size` is 4, less than a patch of the model"),
        ({"crop_size": (40,)}, r"`crop_size` is 40, but must be two numbers"),
        ({"min_depth": 6.0}, "`min_depth` 6.0 and `max_depth` 5.0, but all must be above 0"),
        ({"fusion_hidden_size": 8}, "`fusion_hidden_size` belongs to `head` dpt, but `head` is linear1"),
        ({"train_batch_size": 9}, "`train_batch_size` is 9, but must be from 1 to the 4 images"),
    ],
)
def test_bad_options(model, options, message):
    data = banded_images(4)
    with pytest.raises(ValueError, match=message):
        short(model, data, data, **options)


def test_model_and_data_channels_differ(model):
    data = banded_images(4)
    config = DINOv2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8, num_channels=5
    )
    with pytest.raises(ValueError, match="image_mean has 3 values, but the model takes images of 5 channels"):
        short(DINOv2Model(config), data, data)


def test_boxes_of_the_benchmarks():
    inside = judged_box(torch.zeros(480, 640), BENCHMARKS["nyu"].evaluation_box)
    assert inside[45:471, 41:601].all()
    assert inside.sum() == (471 - 45) * (601 - 41)
    inside = judged_box(torch.zeros(352, 1216), BENCHMARKS["kitti"].evaluation_box)
    rows, columns = np.array([0.40810811, 0.99189189]) * 352, np.array([0.03594771, 0.96405229]) * 1216
    assert inside.sum() == (int(rows[1]) - int(rows[0])) * (int(columns[1]) - int(columns[0]))


@pytest.mark.parametrize("benchmark", ["nyu", "kitti", "none"])
def test_crops_move_image_and_depth_alike(benchmark):
    normalize = PixelNormalization(DINOv2ImageProcessor(do_normalize=False, do_rescale=False), 1)
    height, width = (480, 640) if benchmark == "nyu" else (375, 1242)
    columns = torch.arange(1, width + 1).float()[None].repeat(height, 1)
    crop = DepthCrop(BENCHMARKS[benchmark], normalize)
    for _ in range(4):
        pixels, depth = crop(tv_tensors.Image(columns[None]), tv_tensors.Mask(columns.clone()))
        size = BENCHMARKS[benchmark].crop_size
        assert (pixels.shape, depth.shape) == ((1, *size), size)
        inside = depth > 0
        assert ((pixels[0] - depth)[:, 5:-5].abs()[inside[:, 5:-5]] <= 1).float().mean() > 0.98  # rotation rounds
