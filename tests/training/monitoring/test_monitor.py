import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.pictures import training_curves
from dinov2_hf.pictures.training_curves import panels_of, plot_training_curves
from dinov2_hf.training.monitoring.monitor import append_metrics, read_metrics, truncate_metrics


LOSSES = ("loss", "dino_local_loss", "dino_global_loss", "ibot_loss", "koleo_loss")
OTHERS = (
    "target_entropy",
    "learning_rate",
    "weight_decay",
    "teacher_momentum",
    "teacher_temperature",
    "grad_norm",
    "images_per_second",
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def test_raw_pixels_are_a_line_beside_the_accuracies():
    """The best of all k, and of those alone that the run has; no line where none was measured."""
    names = ("step", "knn_top1_k1", "knn_top1_k20", "loss")
    (panel,) = (
        panel
        for panel in panels_of(names, None, {"knn_top1_k20": 0.9, "knn_top1_k1": 0.8, "knn_top1_k5": 1.0})
        if panel.percent
    )
    assert panel.line == (0.9, "raw pixels, k = 20")
    (panel,) = (panel for panel in panels_of(names, None) if panel.percent)
    assert panel.line is None


def test_records_come_back_as_they_were_written(path):
    records = [
        {"step": 10, "loss": 0.1 + 0.2, "learning_rate": 1e-300},
        {"step": 20, "knn_top1_k20": 0.5, "images": 3},
    ]
    for record in records:
        append_metrics(path, record)
    assert read_metrics(path) == records
    assert len(path.read_text().splitlines()) == 2


def test_values_that_are_not_finite_are_null(path):
    append_metrics(
        path, {"step": np.int64(1), "a": math.nan, "b": -math.inf, "c": np.float32(0.5), "d": np.float32("inf")}
    )
    assert read_metrics(path) == [{"step": 1, "a": None, "b": None, "c": 0.5, "d": None}]
    json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"loss": 1.0}, "step=None"),
        ({"step": 1.5, "loss": 1.0}, "step=1.5"),
        ({"step": 1, "loss": "low"}, "loss='low', a str"),
        ({"step": 1, "loss": torch.tensor(1.0)}, "a Tensor"),
        ({"step": 1, "loss": None}, "a NoneType"),
    ],
)
def test_a_record_of_anything_but_numbers_is_refused(path, record, message):
    with pytest.raises(ValueError, match=message):
        append_metrics(path, record)
    assert not path.exists()


@pytest.mark.parametrize("kept_characters", range(1, len('{"step": 2, "loss": 2.5}')))
def test_a_line_torn_anywhere_costs_that_record_only(path, kept_characters):
    append_metrics(path, {"step": 1, "loss": 1.5})
    with path.open("a") as file:
        file.write('{"step": 2, "loss": 2.5}'[:kept_characters])
    assert [record["step"] for record in read_metrics(path)] == [1]
    append_metrics(path, {"step": 3, "loss": 3.5})
    assert [record["step"] for record in read_metrics(path)] == [1, 3]


def test_truncation_drops_what_came_after_the_resumed_step(path):
    truncate_metrics(path, 5)
    assert not path.exists()
    for step in (0, 5, 10, 15):
        append_metrics(path, {"step": step, "loss": float("nan") if step == 5 else 1.0})
    append_metrics(path, {"step": 10, "knn_top1_k20": 0.5})
    before = path.read_text().splitlines(keepends=True)
    with path.open("a") as file:
        file.write('{"step": 20, "lo')
    truncate_metrics(path, 10)
    assert path.read_text() == "".join(before[:3] + before[4:])
    truncate_metrics(path, -1)
    assert read_metrics(path) == []
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]


def write_run(path, names, steps):
    generator = np.random.default_rng(0)
    for step in range(steps):
        values = {name: float(generator.uniform(1, 2)) for name in names}
        if step == steps // 2:
            values[names[0]] = math.nan
        append_metrics(path, {"step": step, **values})
    append_metrics(path, {"step": steps, "knn_top1_k10": 0.6, "knn_top1_k20": 0.5, "knn_top5_k20": 0.9})


def test_the_picture_grows_with_the_kinds_of_metrics(path, tmp_path):
    def heights(name, names, steps):
        metrics = path.with_name(name)
        write_run(metrics, names, steps)
        plot_training_curves(metrics, tmp_path / "plots" / f"{name}.png", num_prototypes=1024)
        return Image.open(tmp_path / "plots" / f"{name}.png").size

    assert heights("schedule", OTHERS[1:2], 3)[1] < heights("all", LOSSES + OTHERS, 130)[1]
    assert heights("losses", LOSSES, 1)[0] > 900
    assert {file.suffix for file in (tmp_path / "plots").iterdir()} == {".png"}
    assert len(list((tmp_path / "plots").iterdir())) == 3


def test_every_curve_is_ink_in_the_picture(path, tmp_path):
    def ink(names):
        metrics = path.with_name("-".join(names))
        for step in range(200):
            append_metrics(metrics, {"step": step} | {name: 1.0 + i + step / 200 for i, name in enumerate(names)})
        plot_training_curves(metrics, tmp_path / "curves.png")
        pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
        coloured = pixels.max(axis=2) - pixels.min(axis=2) > 100
        return int(coloured.sum())

    assert 0 < ink(LOSSES[:1]) < ink(LOSSES[:3]) < ink(LOSSES)


def test_only_whole_steps_are_numbered(path, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(training_curves, "save_figure", lambda figure, *_, **__: figures.append(figure))
    append_metrics(path, {"step": 6, "loss": 1.0})
    assert plot_training_curves(path, tmp_path / "curves.png")
    append_metrics(path, {"step": 8, "loss": 0.5})
    assert plot_training_curves(path, tmp_path / "curves.png")
    one, two = (figure.axes[0] for figure in figures)
    assert one.get_xlim() == (5, 7)
    for axes in (one, two):
        assert all(float(place).is_integer() for place in axes.get_xticks())


def test_num_prototypes_adds_the_line_of_uniform_targets(path, tmp_path):
    for step in range(10):
        append_metrics(path, {"step": step, "target_entropy": 1.0})
    plot_training_curves(path, tmp_path / "without.png")
    plot_training_curves(path, tmp_path / "with.png", num_prototypes=65536)
    assert (tmp_path / "without.png").read_bytes() != (tmp_path / "with.png").read_bytes()


def test_a_standard_error_is_a_band(path, tmp_path):
    """Noise is not to look like a change: the axis is as wide as the band."""
    for step in range(10):
        append_metrics(path, {"step": step, "patch_knn_miou": 0.5 + step / 1e6})
    plot_training_curves(path, tmp_path / "without.png")
    path.unlink()
    for step in range(10):
        append_metrics(path, {"step": step, "patch_knn_miou": 0.5 + step / 1e6, "patch_knn_miou_stderr": 0.02})
    plot_training_curves(path, tmp_path / "with.png")
    pale = []
    for name in ("without.png", "with.png"):
        red, _, blue = np.moveaxis(np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int), -1, 0)
        pale.append(int(((blue - red > 15) & (red > 200)).sum()))
    assert pale[1] > pale[0] + 10_000


def test_before_the_first_record_there_is_nothing_to_draw(path, tmp_path):
    assert not plot_training_curves(path, tmp_path / "curves.png")
    append_metrics(path, {"step": 1, "unrelated": 2.0})
    assert not plot_training_curves(path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    append_metrics(path, {"step": 1, "loss": 2.0})
    assert plot_training_curves(path, tmp_path / "curves.png")
