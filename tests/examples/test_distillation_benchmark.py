"""The benchmark of distillation runs on tiny networks and writes its ratios."""

import json
import sys

from .conftest import EXAMPLES, load_example


def test_distillation_beside_pretraining_and_two_runs(recipe, images, tmp_path, monkeypatch):
    output = tmp_path / "distillation.json"
    flags = ["--config", recipe, "--teacher_recipe", recipe, "--hidden_size", "16", "--drop_path_rate", "0"]
    flags += ["--train_data", str(images), "--steps", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["distillation.py", *flags])
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    load_example("benchmarks/distillation").main()
    found = json.loads(output.read_text())
    assert set(found["images_per_second"]) == {"pretraining", "distillation", "two_students"}
    assert 2 < found["teacher_over_student_weights"] < 5  # twice as wide
    assert 0 < found["teacher_share"] < 1
    for name in (
        "distillation_over_pretraining",
        "two_students_over_two_runs",
        "two_students_over_two_runs_with_data",
    ):
        assert found[name] > 0
    assert found["rows_of_patches"] == 2 * 4 * 16
