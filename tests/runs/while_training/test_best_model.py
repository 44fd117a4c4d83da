"""Which step of a run is its best."""

import math

import pytest

from dinov2_hf.runs.while_training.best_model import BestStep
from dinov2_hf.training.run_stopped import RunStopped


def best_of(values, metric="knn_top1_k20", greater_is_better=None):
    state = {}
    best, reached = BestStep(metric, greater_is_better, state), []
    for step, value in enumerate(values):
        best.see(step, {metric: value})
        if best.step == step:
            reached.append(step)
    return state["best"]["step"], reached


@pytest.mark.parametrize(
    ("metric", "greater_is_better", "expected"),
    [
        ("knn_top1_k20", None, (3, [1, 3])),
        ("small/ibot_loss", None, (2, [1, 2])),
        ("knn_top1_k20", False, (2, [1, 2])),
        ("koleo_loss", True, (3, [1, 3])),
    ],
)
def test_the_first_of_the_best_after_the_first_step(metric, greater_is_better, expected):
    assert best_of([0.99, 0.5, 0.25, 0.75, math.nan, 0.75], metric, greater_is_better) == expected


def test_a_metric_that_nothing_measures_is_told_when_all_have_been_seen():
    """A rarer evaluation may come later than a more frequent one."""
    best = BestStep("linear_top9", None, {}, ["knn", "linear", "patch_knn"])
    best.see(1, {"loss": 1.0})
    best.see(2, {"small/knn_top1_k20": 0.5})
    best.see(3, {"patch_knn_miou": 0.5})
    with pytest.raises(
        RunStopped, match="`keep_best` is linear_top9, which this run does not measure; it .* linear_to"
    ):
        best.see(4, {"linear_top1": 0.5})


def test_another_metric_is_a_new_search():
    state = {"best": {"metric": "loss", "value": 1.0, "step": 4}}
    assert BestStep("loss", None, state).step == 4
    assert BestStep("koleo_loss", None, state).step is None
    assert state == {}


def test_a_best_step_whose_checkpoint_is_gone_is_forgotten(tmp_path):
    state = {"best": {"metric": "loss", "value": 1.0, "step": 4}}
    best = BestStep("loss", None, state)
    best.forget_without([tmp_path / "step_0000004", tmp_path / "step_0000005"])
    assert best.step == 4
    best.forget_without([tmp_path / "step_0000005"])
    assert best.step is None
