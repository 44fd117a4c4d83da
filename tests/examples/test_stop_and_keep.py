"""What a user steers a run by: where it ends before its schedules do, what it keeps, what it exports on its way."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from dinov2_hf.conversion.saved_models import load_backbone
from dinov2_hf.training.monitoring.monitor import read_metrics

from .conftest import without_pictures
from .test_pretrain import finished_run, run, weights  # noqa: F401  (a fixture)
from .test_survival import own_signal_handlers  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def plain(request, monkeypatch):
    if "finished_run" not in request.fixturenames:
        without_pictures(monkeypatch)


def evaluated(images) -> tuple[str, ...]:
    return ("--eval_data", str(images), "--eval_split", "train")


def backbone(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_stops_early_is_finished_and_goes_on(
    pretrain, recipe, images, tmp_path, finished_run, capsys  # noqa: F811
):  # fmt: skip
    out = tmp_path / "out"
    run(pretrain, recipe, images, out, *evaluated(images), "--stop_after_steps", "3")
    said = f"stopped after 3 of 6 steps; --output_dir {out} --resume_from_checkpoint latest goes on to the last"
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert json.loads((out / "metrics.json").read_text())["steps"] == 3
    assert "the averaged teacher after 3 of 6\nsteps" in (out / "model" / "README.md").read_text()
    assert equal(load_backbone(out / "checkpoints" / "latest").state_dict(), backbone(out / "model"))
    run(pretrain, recipe, images, out, *evaluated(images), "--resume_from_checkpoint", "latest")
    assert "stopped after" not in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text())["steps"] == 6
    assert equal(weights(out), weights(finished_run[0]))
    assert "of 6" not in (out / "model" / "README.md").read_text().partition("## Measured")[0]


def test_the_best_step_keeps_its_checkpoint_and_is_exported(pretrain, recipe, images, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ("--save_steps", "1", "--save_total_limit", "1", "--eval_steps", "1", "--export_every", "4")
    run(pretrain, recipe, images, out, *evaluated(images), *flags, "--keep_best", "knn_top1_k20")
    records = [record for record in read_metrics(out / "metrics.jsonl") if "knn_top1_k20" in record][1:]
    best = max(records, key=lambda record: record["knn_top1_k20"])  # the first of those
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((out / "metrics.json").read_text())
    assert summary["best"] == {"metric": "knn_top1_k20", "value": best["knn_top1_k20"], "step": best["step"]}
    kept = {f"step_{step:07d}" for step in (best["step"], 6)}
    assert {path.name for path in (out / "checkpoints").iterdir()} == kept
    of_best = load_backbone(out / "checkpoints" / f"step_{best['step']:07d}").state_dict()
    assert equal(of_best, backbone(out / "model_best"))
    said = f"knn_top1_k20 {best['knn_top1_k20']:.4f} at step {best['step']}."
    assert f"best step: {said[:-1]}, in {out / 'model_best'}\n" in capsys.readouterr().out
    assert said in (out / "model" / "README.md").read_text()
    assert f"after {best['step']}" in (out / "model_best" / "README.md").read_text()
    assert [path.name for path in (out / "models").iterdir()] == ["step_0000004"]
    assert not (out / "models" / "step_0000004" / "pretraining_model").exists()
    with_overwrite = ("--overwrite_output_dir", "--max_steps", "1", "--warmup_steps", "1")
    run(pretrain, recipe, images, out, *with_overwrite)
    assert not (out / "model_best").exists()
    assert not (out / "models").exists()


def test_a_signal_leaves_a_model_where_it_should(
    pretrain,
    recipe,
    images,
    tmp_path,
    monkeypatch,
    own_signal_handlers,  # noqa: F811
):
    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return update_ema(*arguments)

    update_ema, out = pretrain.update_ema, tmp_path / "out"
    monkeypatch.setattr(pretrain, "update_ema", signalled)
    with pytest.raises(SystemExit) as stop:
        run(pretrain, recipe, images, out, "--export_on_stop", "--save_steps", "100")
    assert stop.value.code == 75
    assert equal(load_backbone(out / "checkpoints" / "latest").state_dict(), backbone(out / "model"))
    assert (out / "pretraining_model").is_dir()


MISTAKES = {
    "after the end": (
        ("--stop_after_steps", "7"),
        "`stop_after_steps` is 7, but `max_steps`, .* is 6; lower",
    ),
    "not evaluated": (("--keep_best", "knn_top1_k20"), "no k-NN accuracy is measured; give labelled images"),
    "no probe": (("--keep_best", "linear_top1"), "no linear probe is measured; .* as --linear_eval_steps."),
    "no masks": (("--keep_best", "patch_knn_miou"), "no patch k-NN is measured; .* as --dense_eval_data."),
    "no student": (("--keep_best", "small/loss"), "small/loss, but this run trains one student, which has no name"),
    "nothing kept": (("--greater_is_better", "false"), "`greater_is_better`.*`keep_best`"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_before_any_work(pretrain, recipe, images, tmp_path, name):
    flags, sentence = MISTAKES[name]
    with pytest.raises(SystemExit, match=sentence):
        run(pretrain, recipe, images, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_metric_that_nobody_measures_stops_the_run(pretrain, recipe, images, tmp_path):
    with pytest.raises(SystemExit, match="`keep_best` is los, which this run does not measure; it measures .*loss"):
        run(pretrain, recipe, images, tmp_path / "out", "--keep_best", "los", "--logging_steps", "1")
