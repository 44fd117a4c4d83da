"""A teacher from outside: its targets are those that the student learns."""

import pytest

from dinov2_hf.training.monitoring.monitor import read_metrics


def test_a_line_of_the_recipe_changes_the_targets(pretrain):
    """Both crops have the same targets, so each loss of a pair of them is half of that of a crop with both."""
    own = read_metrics(pretrain("teacher_class: agreeing_teacher:AgreeingTeacher") / "metrics.jsonl")[0]
    usual = read_metrics(pretrain("overwrite_output_dir: true") / "metrics.jsonl")[0]
    assert own["target_entropy"] > usual["target_entropy"]  # a mean of two distributions has a higher entropy
    assert own["ibot_loss"] == pytest.approx(usual["ibot_loss"])  # which are not the agreed ones
    assert own["dino_local_loss"] == pytest.approx(usual["dino_local_loss"])  # linear in the targets of both crops


def test_a_class_that_is_not_there_is_one_sentence(pretrain):
    with pytest.raises(SystemExit, match="error: .* it has no 'Agreeing'. Did you mean `AgreeingTeacher`?"):
        pretrain("teacher_class: agreeing_teacher:Agreeing")
