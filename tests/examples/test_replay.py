"""A step that was not finite is kept, and taken again alone: the same loss bit for bit, and where it comes from."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dinov2_hf.cli.main import call
from dinov2_hf.runs import loop
from dinov2_hf.runs.replay import replay_step

from .conftest import changed_batches, forget_accelerate, load_example
from .test_pretrain import assert_same_run, run


EXTENSIONS = "tests.examples.breaking_loss"
KEEP = ("--save_nonfinite_batch", "--gradient_accumulation_steps", "2")


def replayed(output_dir, step: int):
    forget_accelerate()
    return replay_step(output_dir / "nonfinite_steps" / f"step_{step:07d}")


@pytest.fixture
def poisoned(monkeypatch):
    """The second pass of step 3 has a pixel that is no number."""
    calls = []

    def poison(batch):
        calls.append(batch)
        if len(calls) == 6:
            batch["global_crops"][1, 2, 0, 3, 3] = torch.nan

    monkeypatch.setattr(loop.Step, "batches", changed_batches(poison))
    return calls


@pytest.mark.parametrize(
    "flags",
    [
        ("--centering", "softmax", "--mixed_precision", "no"),
        ("--centering", "sinkhorn_knopp", "--mixed_precision", "bf16", "--crop_packing", "always"),
    ],
    ids=lambda flags: flags[1],
)
def test_a_planted_nan_is_replayed_bit_for_bit_and_its_image_is_named(
    pretrain, recipe, images, tmp_path, poisoned, flags
):
    """Of two passes: the first has its number again, from weights, centres and random numbers of that step."""
    run(pretrain, recipe, images, tmp_path / "out", *KEEP, *flags)
    found = replayed(tmp_path / "out", 3)
    assert (found.step, found.weights, found.caveats) == (3, [], [])
    good, bad = found.passes
    assert good.is_same
    assert bad.is_same
    assert torch.tensor(good.terms["loss"]).isfinite()
    assert torch.tensor(bad.terms["loss"]).isnan()
    assert good.not_finite == good.birthplaces == bad.birthplaces == []
    (row_id,) = bad.not_finite
    listed = json.loads((tmp_path / "out" / "nonfinite_steps.jsonl").read_text())
    assert row_id.removeprefix("global_crops of ") == listed["row_ids"][2]
    assert (good.in_float32 is None) == ("no" in flags)
    assert "the same as in the run, bit for bit" in str(found)


def test_the_weights_are_those_before_the_step(pretrain, recipe, images, tmp_path, poisoned):
    """Those of the checkpoint of the step before, and of the one after a step that is left out."""
    run(pretrain, recipe, images, tmp_path / "out", *KEEP, "--save_steps", "1", "--save_total_limit", "9")
    kept = load_file(tmp_path / "out" / "nonfinite_steps" / "step_0000003" / "weights.safetensors")
    for step in (2, 3):
        saved = load_file(tmp_path / "out" / "checkpoints" / f"step_000000{step}" / "model.safetensors")
        assert kept.keys() == saved.keys()
        assert all(torch.equal(kept[name], saved[name]) for name in saved)


def test_keeping_changes_nothing_else(pretrain, recipe, images, tmp_path, poisoned):
    for name, flags in (("kept", KEEP), ("plain", KEEP[1:])):
        poisoned.clear()
        run(pretrain, recipe, images, tmp_path / name, *flags)
    shutil.rmtree(tmp_path / "kept" / "nonfinite_steps")
    assert_same_run(tmp_path / "kept", tmp_path / "plain")


@pytest.mark.parametrize(
    ("term", "operation", "is_backward"), [("log_loss", "log", False), ("root_loss", "SqrtBackward0", True)]
)
def test_the_line_that_breaks_is_named(pretrain, recipe, images, tmp_path, term, operation, is_backward):
    with pytest.raises(SystemExit, match="number 2 in a row"):
        run(pretrain, recipe, images, tmp_path / "out", *KEEP, "--loss_terms", f"{EXTENSIONS}:{term}=1.0",
            "--max_nonfinite_steps", "1", "--max_saved_nonfinite_steps", "1")  # fmt: skip
    assert [path.name for path in (tmp_path / "out" / "nonfinite_steps").iterdir()] == ["step_0000001"]
    found = replayed(tmp_path / "out", 1)
    for one in found.passes:
        assert one.is_same
        assert one.not_finite == []
        assert torch.tensor(one.terms[term]).isfinite() == is_backward
    place = found.passes[0].birthplaces[0]
    assert place.startswith("backward: " if is_backward else f"forward: {operation} ")
    assert operation in place
    assert "examples/breaking_loss.py:" in place


def test_a_module_that_overflows_is_named(pretrain, recipe, images, tmp_path, monkeypatch):
    """Weights of two layers are finite, and the product of the second is not."""

    def enlarge(steps, run):
        start(steps, run)
        for layer in (0, 2):
            run.module.student.dino_head.mlp[layer].weight.data.fill_(1e25)

    start = loop.Steps.__init__
    monkeypatch.setattr(loop.Steps, "__init__", enlarge)
    with pytest.raises(SystemExit):
        run(pretrain, recipe, images, tmp_path / "out", *KEEP, "--max_nonfinite_steps", "0")
    found = replayed(tmp_path / "out", 1)
    assert found.weights == []
    assert "in student.dino_head.mlp.2 " in found.passes[0].birthplaces[0]


def test_a_distillation_is_replayed_too(pretrain, recipe, images, tmp_path, poisoned):
    run(pretrain, recipe, images, tmp_path / "teacher", "--stop_after_steps", "1")
    poisoned.clear()
    own = yaml.safe_load(open(recipe))
    del own["num_prototypes"]
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(own))
    forget_accelerate()
    run(load_example("distill"), str(tmp_path / "distill.yaml"), images, tmp_path / "out", *KEEP, "--teacher",
        str(tmp_path / "teacher"))  # fmt: skip
    found = replayed(tmp_path / "out", 3)
    assert all(one.is_same for one in found.passes)
    assert len(found.passes[1].not_finite) == 1


def test_a_resumed_run_forgets_later_steps_and_another_start_all(pretrain, recipe, images, tmp_path, poisoned):
    flags = (*KEEP, "--save_steps", "2", "--centering", "softmax")
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    kept = tmp_path / "out" / "nonfinite_steps" / "step_0000003"
    assert kept.is_dir()
    checkpoint = str(tmp_path / "out" / "checkpoints" / "step_0000002")
    forget_accelerate()
    run(pretrain, recipe, images, tmp_path / "out", *flags, "--resume_from_checkpoint", checkpoint)
    assert not kept.exists()
    poisoned.clear()
    forget_accelerate()
    run(pretrain, recipe, images, tmp_path / "out", *flags, "--overwrite_output_dir")
    (kept / "mine.txt").write_text("notes")
    forget_accelerate()
    with pytest.raises(SystemExit, match=r"mine.txt, which dinov2_hf did not write"):
        run(pretrain, recipe, images, tmp_path / "out", *flags, "--overwrite_output_dir")
    (kept / "mine.txt").unlink()
    forget_accelerate()
    run(pretrain, recipe, images, tmp_path / "out", "--stop_after_steps", "1", "--overwrite_output_dir")
    assert not kept.parent.exists()


def test_the_command_prints_it_and_refuses_in_a_sentence(pretrain, recipe, images, tmp_path, poisoned, capsys):
    run(pretrain, recipe, images, tmp_path / "out", *KEEP)
    kept = tmp_path / "out" / "nonfinite_steps" / "step_0000003"
    forget_accelerate()
    capsys.readouterr()
    call("replay", [str(kept)])
    said = capsys.readouterr().out
    assert said.startswith("step 3, replayed on cpu in float32\n")
    assert "batch: not finite: global_crops of " in said
    forget_accelerate()
    call("replay", [str(kept), "--json"])
    passes = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["passes"]  # JSON has no NaN
    assert "nan" in [one["recorded"] for one in passes]
    with pytest.raises(SystemExit, match=r"is not a saved step: .*; name one of .*step_0000003\. A run with"):
        call("replay", [str(tmp_path / "out")])
    path = kept / "process_0.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    forget_accelerate()
    with pytest.raises(SystemExit, match="process_0.safetensors cannot be read"):
        call("replay", [str(kept)])
