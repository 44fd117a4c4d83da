"""Continuing weights with a part of the backbone: its last blocks, or low-rank additions; and without registers."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from dinov2_hf.conversion.saved_models import load_backbone
from dinov2_hf.training.trained_parts import merged_weights

from .conftest import forget_accelerate, run_until_saved, without_pictures
from .test_pretrain import assert_same_run, run, weights


PARTS = {"blocks": ("--train_blocks", "1"), "lora": ("--lora_rank", "2")}


@pytest.fixture(scope="module")
def initial(pretrain, recipe, images, tmp_path_factory):
    """With registers; of one step."""
    folder = tmp_path_factory.mktemp("initial") / "out"
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        flags = ("--max_steps", "1", "--warmup_steps", "1", "--num_register_tokens", "2")
        run(pretrain, recipe, images, folder, *flags)
    return folder


@pytest.fixture(autouse=True)
def plain(initial, monkeypatch):
    forget_accelerate()
    without_pictures(monkeypatch)


@pytest.mark.parametrize("part", PARTS)
def test_only_the_part_moves_and_a_resumed_run_is_the_same(pretrain, recipe, images, initial, tmp_path, part):
    flags = ("--init_from", str(initial), *PARTS[part])
    straight, out = tmp_path / "straight", tmp_path / "out"
    run(pretrain, recipe, images, straight, *flags)
    before, after = weights(initial), weights(straight)
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    of_student = {name.removeprefix("student.backbone.") for name in moved if name.startswith("student.backbone.")}
    layers = {name.split(".")[2] for name in of_student if name.startswith("encoder.")}
    assert layers == ({"1"} if part == "blocks" else {"0", "1"})
    assert not any(name.startswith("embeddings.") for name in of_student)
    assert any(name.startswith("student.dino_head.") for name in moved)
    if part == "lora":
        assert all(name.endswith(".weight") and "norm" not in name for name in of_student)
        for name in of_student:
            change = after[f"student.backbone.{name}"] - before[f"student.backbone.{name}"]
            assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 2
    forget_accelerate()
    run_until_saved(2, lambda: run(pretrain, recipe, images, out, *flags))
    forget_accelerate()
    run(pretrain, recipe, images, out, *flags, "--resume_from_checkpoint", "latest")
    assert_same_run(straight, out)
    of_checkpoint = load_backbone(out / "checkpoints" / "latest").state_dict()
    exported = load_file(out / "model" / "model.safetensors")
    assert of_checkpoint.keys() == exported.keys()
    assert all(torch.equal(of_checkpoint[name], exported[name]) for name in exported)
    assert AutoModel.from_pretrained(out / "model").config.num_register_tokens == 2


def test_the_optimizer_keeps_nothing_of_what_is_still(pretrain, recipe, images, initial, tmp_path):
    run(pretrain, recipe, images, tmp_path / "out", "--init_from", str(initial), *PARTS["lora"], "--max_steps", "2")
    checkpoint = tmp_path / "out" / "checkpoints" / "step_0000002"
    saved = load_file(checkpoint / "model.safetensors")
    adapters = [name for name in saved if name.startswith("student.") and ".lora_" in name]
    heads = [name for name in saved if name.startswith("student.") and not name.startswith("student.backbone.")]
    moments = torch.load(checkpoint / "optimizer.bin")["state"]
    assert len(moments) == len(adapters) + len(heads)
    assert merged_weights(saved).keys() == weights(tmp_path / "out").keys()


def test_registers_are_dropped_on_purpose(pretrain, recipe, images, initial, tmp_path):
    flags = ("--init_from", str(initial), "--num_register_tokens", "0", "--max_steps", "1", "--warmup_steps", "1")
    with pytest.raises(SystemExit, match="is 0, but the weights of .* have 2; .*add --allow_recipe_change"):
        run(pretrain, recipe, images, tmp_path / "refused", *flags)
    run(pretrain, recipe, images, tmp_path / "out", *flags, "--allow_recipe_change")
    before, after = weights(initial), weights(tmp_path / "out")
    assert before.keys() - after.keys() == {
        f"{network}.backbone.embeddings.register_tokens" for network in ("student", "teacher")
    }
    student = [name for name in after if name.startswith("student.")]
    assert all(torch.equal(after[name], before[name]) for name in student)  # the rate of step 0 is 0


MISTAKES = {
    "both": ((*PARTS["blocks"], *PARTS["lora"]), "which are two ways to train a part; leave one of them out"),
    "from nothing": (PARTS["lora"], "`lora_rank` is 2, but the backbone would be kept at random weights"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(pretrain, recipe, images, tmp_path, name):
    flags, sentence = MISTAKES[name]
    with pytest.raises(SystemExit, match=sentence):
        run(pretrain, recipe, images, tmp_path / "out", *flags)


def test_more_blocks_than_there_are(pretrain, recipe, images, initial, tmp_path):
    with pytest.raises(SystemExit, match="`train_blocks` is 3, but the backbone has 2 blocks"):
        run(pretrain, recipe, images, tmp_path / "out", "--init_from", str(initial), "--train_blocks", "3")
