"""Options of the objective that are off by default, from a line of the recipe to the metrics."""

from pathlib import Path

import pytest
import yaml

from dinov2_hf.training.monitoring.monitor import read_metrics

from .conftest import forget_accelerate, run_until_saved, without_pictures
from .test_pretrain import assert_same_run, run


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
    with pytest.raises(SystemExit, match="`koleo_group_size` is 3, which does not divide the 4 images"):
        run(pretrain, recipe, images, tmp_path / "refused", "--koleo_group_size", "3")
    forget_accelerate()
    with pytest.raises(SystemExit, match="is 4, but KoLeo compares only 4 images with each other"):
        run(pretrain, recipe, images, tmp_path / "refused", "--koleo_num_neighbors", "4")


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_by_weights_and_crops_of_several_sizes_resume_exactly(pretrain, recipe, images, tmp_path, streaming):
    """What decides which data set and which size a step has is known from its number."""
    lines = tmp_path / "mixed.yaml"
    entries = [{"path": str(images / "lying"), "weight": 2}, {"path": str(images / "standing")}]
    sizes = [{"global_crop_size": 16, "local_crop_size": 8}, {"global_crop_size": 24, "weight": 2}]
    mixed = {"train_data": entries, "one_set_a_step": True, "crop_sizes": sizes, "streaming": streaming}
    lines.write_text(Path(recipe).read_text() + yaml.safe_dump(mixed))

    def start(folder, *flags):
        forget_accelerate()
        pretrain.main(["--config", str(lines), "--output_dir", str(tmp_path / folder), *flags])

    start("straight")
    run_until_saved(4, lambda: start("resumed"))
    start("resumed", "--resume_from_checkpoint", "latest")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    card = (tmp_path / "straight" / "model" / "README.md").read_text()
    assert "`lying`, `standing`" in card
    assert str(images) not in card
    changed = ("--resume_from_checkpoint", "latest", "--one_set_a_step", "false")
    with pytest.raises(SystemExit, match="`one_set_a_step` was True and is False, so the run would go on as another"):
        start("straight", *changed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"one_set_a_step": True}, "`one_set_a_step` is true, but `train_data` is one data set"),
        (
            {"crop_sizes": [{"global_crop_size": 18}]},
            "`global_crop_size` of `crop_sizes` is 18; it must",
        ),
        ({"crop_sizes": [{"global_crop_size": 16, "local_crop_size": 6}]}, "`local_crop_size` of `crop_sizes` is 6"),
        ({"crop_sizes": [{"global_size": 16}]}, "`crop_sizes` has the unknown key `global_size`"),
    ],
)
def test_mistakes_are_one_sentence(pretrain, recipe, images, tmp_path, values, message):
    lines = tmp_path / "wrong.yaml"
    lines.write_text(Path(recipe).read_text() + yaml.safe_dump({"train_data": str(images)} | values))
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        pretrain.main(["--config", str(lines), "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_gram_teacher_that_the_run_renews(pretrain, recipe, images, tmp_path):
    """As if a person had resumed with it, and the same after an interruption that is none of its steps."""
    start, whole, by_hand, resumed = (tmp_path / name for name in ("start", "whole", "by_hand", "resumed"))
    run(pretrain, recipe, images, start, "--max_steps", "1", "--warmup_steps", "0", "--cooldown_steps", "0")
    shape = ("--loss_terms", "gram_anchoring=2.0", "--max_steps", "4")
    gram = (*shape, "--gram_teacher", str(start))
    renewed = (
        "--export_every",
        "2",
        "--gram_teacher_update_steps",
        "2",
        "--save_steps",
        "1",
        "--save_total_limit",
        "4",
    )
    forget_accelerate()
    run(pretrain, recipe, images, whole, *gram, *renewed)
    forget_accelerate()
    run_until_saved(3, lambda: run(pretrain, recipe, images, resumed, *gram, *renewed))
    forget_accelerate()
    run(pretrain, recipe, images, resumed, *gram, *renewed, "--resume_from_checkpoint", "latest")
    assert_same_run(whole, resumed)
    forget_accelerate()
    at_two = ("--resume_from_checkpoint", str(whole / "checkpoints" / "step_0000002"), "--allow_recipe_change")
    run(pretrain, recipe, images, by_hand, *shape, "--gram_teacher", str(whole / "models" / "step_0000002"), *at_two)
    told = [[record["gram_anchoring_loss"] for record in records(folder)][-2:] for folder in (whole, by_hand)]
    assert told[0] == told[1]
