"""Pictures at each evaluation: of the same images, comparable from step to step, and of no effect on the run."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dinov2_hf.runs.while_training import feature_pictures as pictures_while_training

from .conftest import forget_accelerate
from .test_pretrain import run


PICTURES = ("--eval_pictures", "2", "--save_steps", "3")
FILES = ["attention_maps.png", "patch_pca.npy", "patch_pca.png"]


def drawn(output_dir) -> list[str]:
    return sorted(path.name for path in (output_dir / "pictures").iterdir())


def weights(output_dir) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "pretraining_model" / "model.safetensors")


def test_every_evaluation_draws_and_nothing_else_changes(pretrain, recipe, images, tmp_path):
    run(pretrain, recipe, images, tmp_path / "with", *PICTURES, "--report_to", "tensorboard")
    run(pretrain, recipe, images, tmp_path / "without", "--save_steps", "3")
    assert drawn(tmp_path / "with") == ["step_0000000", "step_0000003", "step_0000006"]
    for folder in (tmp_path / "with" / "pictures").iterdir():
        assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == FILES
        assert np.load(folder / "patch_pca.npy").shape == (2, 16, 16, 3)
    assert Image.open(tmp_path / "with" / "patch_pca_over_steps.png").width > 500
    assert not (tmp_path / "without" / "pictures").exists()
    expected = weights(tmp_path / "without")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "with").items())
    (events,) = (tmp_path / "with" / "trackers" / "dinov2_pretraining").glob("events.*")
    tracked = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    for name in ("patch_pca", "attention_maps"):
        assert [image.step for image in tracked.Images(name)] == [0, 3, 6]


def test_images_are_spread_over_those_of_the_evaluation(pretrain, recipe, images, tmp_path, monkeypatch):
    """Classes that lie one behind the other are all seen; the same images at each step."""
    (tmp_path / "coloured").mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (number * 30, 0, 0)).save(tmp_path / "coloured" / f"{number}.png")
    seen, prepare = [], pictures_while_training.prepare_pictures
    monkeypatch.setattr(
        pictures_while_training,
        "prepare_pictures",
        lambda model, pictures, *rest: (
            seen.append([picture.getpixel((0, 0))[0] for picture in pictures]) or prepare(model, pictures, *rest)
        ),
    )
    run(pretrain, recipe, tmp_path / "coloured", tmp_path / "out", *PICTURES)
    assert seen == [[0, 120]] * 3


@pytest.mark.parametrize("broken", ["patch_pca", "attention_maps", "first_images"])
def test_what_cannot_be_drawn_ends_no_run(pretrain, recipe, images, tmp_path, monkeypatch, caplog, broken):
    def fail(*_, **__):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(pictures_while_training, broken, fail)
    run(pretrain, recipe, images, tmp_path / "out", *PICTURES)
    assert (tmp_path / "out" / "model").is_dir()
    assert caplog.text.count("could not be drawn (RuntimeError: CUDA out of memory)") == 3
    assert not (tmp_path / "out" / "pictures").exists() or not drawn(tmp_path / "out")


def test_a_resumed_run_goes_on_with_the_same_colours(pretrain, recipe, images, tmp_path):
    """Those of later steps go, and what is drawn anew is as in the run that was not interrupted."""
    run(pretrain, recipe, images, tmp_path / "out", *PICTURES)
    last = tmp_path / "out" / "pictures" / "step_0000006" / "patch_pca.npy"
    expected = np.load(last)
    checkpoint = str(tmp_path / "out" / "checkpoints" / "step_0000003")
    forget_accelerate()
    run(pretrain, recipe, images, tmp_path / "out", *PICTURES, "--resume_from_checkpoint", checkpoint,
        "--stop_after_steps", "4", "--eval_steps", "9")  # fmt: skip
    assert drawn(tmp_path / "out") == ["step_0000000", "step_0000003", "step_0000004"]
    forget_accelerate()
    run(pretrain, recipe, images, tmp_path / "out", *PICTURES, "--resume_from_checkpoint", "latest")
    assert np.abs(np.load(last).astype(int) - expected).max() <= 1
    forget_accelerate()
    run(pretrain, recipe, images, tmp_path / "out", "--stop_after_steps", "2", "--overwrite_output_dir")
    assert not (tmp_path / "out" / "pictures").exists()
    assert not (tmp_path / "out" / "patch_pca_over_steps.png").exists()
