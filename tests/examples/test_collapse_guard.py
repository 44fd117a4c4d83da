"""A recipe that must collapse is told so; the same with Sinkhorn-Knopp, and the quickstart, are left alone."""

import json
import math
from pathlib import Path

import pytest
import yaml

from dinov2_hf.recipe_files import read_recipe

from .conftest import load_example


# Enough steps for three log lines after the start, and over more than 50 steps.
COLLAPSING = (
    "--max_steps", "120", "--per_device_train_batch_size", "8", "--logging_steps", "10", "--save_steps", "1000",
    "--eval_steps", "1000", "--teacher_temperature", "0.02",
    "--warmup_teacher_temperature", "0.02",
)  # fmt: skip


def records(output_dir: Path) -> list[dict]:
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def run(pretrain, recipe, images, output_dir, *flags: str) -> None:
    pretrain.main(
        ["--config", recipe, "--train_data", str(images), "--output_dir", str(output_dir), *COLLAPSING, *flags]
    )


@pytest.mark.usefixtures("with_pictures")
def test_without_centering_the_run_stops_and_names_a_checkpoint(pretrain, recipe, images, tmp_path, capsys):
    saves = ("--save_steps", "10", "--save_total_limit", "9")
    with pytest.raises(SystemExit) as stop:
        run(pretrain, recipe, images, tmp_path / "out", "--centering", "none", "--stop_on_collapse", *saves)
    assert stop.value.code == 3
    message = capsys.readouterr().err.strip().splitlines()[-1]  # below the progress bar
    assert message.startswith("stopped: step ")
    assert "have collapsed" in message
    assert "what usually helps: centering sinkhorn_knopp" in message
    assert message.endswith(
        f"--resume_from_checkpoint {tmp_path / 'out' / 'checkpoints' / 'step_0000010'} --allow_recipe_change."
    )
    measured = records(tmp_path / "out")
    assert 60 <= measured[-1]["step"] < 120
    assert measured[-1]["loss"] < measured[0]["loss"]  # which is why the loss is not what to watch
    assert measured[-1]["target_information"] < 1e-3
    assert (tmp_path / "out" / "training_curves.png").is_file()


def test_without_the_flag_the_run_warns_once_and_goes_on(pretrain, recipe, images, tmp_path, caplog):
    run(pretrain, recipe, images, tmp_path / "out", "--centering", "none", "--max_steps", "100")
    assert caplog.text.count("targets have collapsed") == 1
    assert records(tmp_path / "out")[-1]["step"] == 100


def test_sinkhorn_keeps_the_same_run_from_it(pretrain, recipe, images, tmp_path, caplog):
    run(pretrain, recipe, images, tmp_path / "out", "--centering", "sinkhorn_knopp", "--stop_on_collapse")
    measured = records(tmp_path / "out")
    assert measured[-1]["step"] == 120
    assert measured[-1]["target_information"] > 0.1
    assert "warning at step" not in caplog.text
    for record in measured:
        assert 1 <= record["cls_effective_rank"] <= 32
        assert 1 <= record["prototypes_in_use"] <= 32.001
        assert record["target_information"] + record["target_entropy"] == pytest.approx(
            math.log(record["prototypes_in_use"]), abs=1e-4
        )


def test_the_quickstart_is_left_alone(pretrain, tmp_path, monkeypatch, caplog):
    """Its own recipe and data, a tenth as long."""
    monkeypatch.setattr("sys.argv", ["write_digits.py", str(tmp_path / "digits")])
    load_example("write_digits").main()
    recipe = read_recipe("quickstart_digits")
    for name in recipe:
        if name.endswith("_steps") and name != "logging_steps":
            recipe[name] //= 10
    recipe["logging_steps"] = 5  # so that the first record is from within the short warm-up
    recipe["per_device_train_batch_size"] = 32
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(recipe))
    pretrain.main(
        ["--config", str(tmp_path / "short.yaml"), "--train_data", str(tmp_path / "digits" / "train.parquet")]
        + ["--eval_data", str(tmp_path / "digits" / "test.parquet"), "--max_eval_images", "100"]
        + ["--max_eval_bank_images", "300", "--output_dir", str(tmp_path / "out"), "--stop_on_collapse"]
        + ["--mixed_precision", "no"]
    )
    assert "warning at step" not in caplog.text
    first, *_, last = records(tmp_path / "out")
    assert last["step"] == 170
    assert last["target_information"] > 3 * first["target_information"]
    assert last["cls_effective_rank"] > 5 * first["cls_effective_rank"]
    assert last["cls_pair_cosine"] < 0.5 < first["cls_pair_cosine"]


def test_curves_reach_tensorboard(pretrain, recipe, images, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = ("--max_steps", "4", "--logging_steps", "2", "--eval_steps", "2", "--report_to", "tensorboard")
    run(
        pretrain, recipe, images, tmp_path / "out", *flags, "--eval_data", str(images), "--eval_split", "train",
        "--warmup_steps", "1",
    )  # fmt: skip
    (events,) = (tmp_path / "out" / "trackers" / "dinov2_pretraining").glob("events.out.tfevents.*")
    curves = event_accumulator.EventAccumulator(str(events))
    curves.Reload()
    written = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    names = {name for record in written for name in record} - {"step"}
    assert {"loss", "grad_norm_backbone", "target_information", "cls_effective_rank", "knn_top1_k20"} <= names
    assert names == set(curves.Tags()["scalars"])
    for name in names:
        points = [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in written if name in record]
        assert [(point.step, point.value) for point in curves.Scalars(name)] == points


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandb", "`report_to` is wandb, but this tracker is not installed here; install its package"),
        ("mlflow", "`report_to` is mlflow, but this tracker is not installed here; install its package"),
        ("tensorbord", '`report_to` is "tensorbord"; it must be "none" or one of all, .*tensorboard'),
    ],
)
def test_a_tracker_that_is_not_there_is_refused(pretrain, recipe, images, tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("dinov2_hf.runs.accelerator.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(SystemExit, match=f"^error: {message}") as stop:
        run(pretrain, recipe, images, tmp_path / "out", "--report_to", name)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()
