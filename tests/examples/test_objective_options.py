"""Options of the objective that are off by default, from a line of the recipe to the metrics."""

import pytest

from dinov2_hf.training.monitor import read_metrics

from .conftest import forget_accelerate, without_pictures
from .test_pretrain import run


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    without_pictures(monkeypatch)


def records(folder) -> list[dict]:
    return [record for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]


def test_kde_groups_and_gram_anchoring_to_an_earlier_run(pretrain, recipe, images, tmp_path):
    earlier, later = tmp_path / "earlier", tmp_path / "later"
    shape = ("--max_steps", "2", "--warmup_steps", "1", "--teacher_temperature_warmup_steps", "1")
    kde = ("--koleo_loss_weight", "0", "--loss_terms", "kde={weight: 0.5, concentration: 2, group_size: 2}")
    run(pretrain, recipe, images, earlier, *shape, *kde)
    first = records(earlier)[0]
    assert "koleo_loss" not in first
    assert first["loss"] == pytest.approx(
        first["dino_local_loss"] + first["dino_global_loss"] + first["ibot_loss"] + 0.5 * first["kde_loss"], rel=1e-5
    )
    forget_accelerate()
    gram = (
        "--loss_terms",
        "gram_anchoring={start: 0, end: 2, steps: 2}",
        "--gram_teacher",
        str(earlier / "checkpoints" / "step_0000002"),
    )
    run(pretrain, recipe, images, later, *shape, *gram, "--koleo_group_size", "0", "--koleo_num_neighbors", "2")
    weights = [record["gram_anchoring_loss_weight"] for record in records(later)]
    assert weights == [0.0, 1.0]
    assert 0 < records(later)[1]["gram_anchoring_loss"] < 1
    forget_accelerate()
    with pytest.raises(SystemExit, match="`koleo_group_size` is 3, but a forward pass of all processes has 4 images"):
        run(pretrain, recipe, images, tmp_path / "refused", "--koleo_group_size", "3")
    forget_accelerate()
    with pytest.raises(SystemExit, match="is 4, but KoLeo compares only 4 images with each other"):
        run(pretrain, recipe, images, tmp_path / "refused", "--koleo_num_neighbors", "4")
