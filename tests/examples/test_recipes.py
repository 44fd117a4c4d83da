"""What recipes offer beyond the plain run: weights to start from, losses left out, registers, small batches."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining

from dinov2_hf import recipe_files
from dinov2_hf.runs.distillation_arguments import DistillationArguments
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe
from dinov2_hf.runs.recipe.recipe_schedules import schedules_of
from dinov2_hf.training.schedules import scale_learning_rate

from .conftest import run_until_saved
from .test_pretrain import assert_same_run, run, weights


RECIPES = [
    path for path in sorted(recipe_files.RECIPES.glob("*.yaml")) if not path.stem.startswith("curate_")
]  # those are of data, not of a run
# What is not of the network or the heads, for a recipe of a run that takes both from elsewhere.
NETWORK = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_prototypes", "head_hidden_size")


def records(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.fixture(scope="module")
def earlier(pretrain, recipe, images, tmp_path_factory):
    """A finished run of 6 steps, with k-NN."""
    from .conftest import forget_accelerate

    forget_accelerate()
    output_dir = tmp_path_factory.mktemp("earlier") / "run"
    run(pretrain, recipe, images, output_dir, "--eval_data", str(images), "--eval_split", "train")
    return output_dir


@pytest.fixture
def bare_recipe(recipe, tmp_path) -> str:
    """The tiny recipe without the sizes of network and heads."""
    values = yaml.safe_load(Path(recipe).read_text())
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if name not in NETWORK}))
    return str(path)


def test_a_frozen_backbone_keeps_every_bit_while_fresh_heads_learn(pretrain, bare_recipe, images, earlier, tmp_path):
    """4 frozen steps of 6, with a weight decay that would be seen."""
    flags = ("--init_from", str(earlier / "model"), "--freeze_backbone_steps", "4", "--weight_decay", "0.9")
    flags += ("--num_prototypes", "24", "--head_hidden_size", "16", "--save_total_limit", "9", "--save_steps", "1")
    run(pretrain, bare_recipe, images, tmp_path / "out", *flags, "--warmup_steps", "2")
    source = load_file(earlier / "model" / "model.safetensors")
    states = {
        step: load_file(tmp_path / "out" / "checkpoints" / f"step_{step:07}" / "model.safetensors")
        for step in (1, 4, 5, 6)
    }
    for step in (1, 4, 5):  # the first step of the backbone's warm-up has rate 0, like that of any other
        for network in ("student", "teacher"):
            assert changed(part(states[step], f"{network}.backbone."), source) == set()
    assert len(changed(part(states[6], "student.backbone."), source)) > 20
    assert len(changed(part(states[6], "teacher.backbone."), source)) > 20
    for network in ("student", "teacher"):
        heads = f"{network}.dino_head."
        assert len(changed(part(states[1], heads), part(states[4], heads))) == 8
    rates = [(r["backbone_learning_rate"], r["learning_rate"]) for r in records(tmp_path / "out") if "loss" in r]
    assert [backbone for backbone, _ in rates[:5]] == [0] * 5
    assert rates[5][0] == 1e-3
    assert all(heads > 0 for _, heads in rates[1:])


def test_knn_is_measured_before_the_first_step(pretrain, recipe, images, earlier, tmp_path):
    """The accuracy at step 0 is that of the weights, not of a fresh network."""
    flags = ("--eval_data", str(images), "--eval_split", "train", "--init_from", str(earlier / "model"))
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    last, first = ([r for r in records(folder) if "knn_top1_k10" in r] for folder in (earlier, tmp_path / "out"))
    assert first[0]["step"] == 0
    assert first[0]["knn_top1_k10"] == last[-1]["knn_top1_k10"]
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "| | trained | before this run |" in card
    assert "init_from: model" in card
    assert str(earlier) not in card


def test_an_earlier_run_continues_with_its_heads_and_teacher(pretrain, bare_recipe, images, earlier, tmp_path):
    """The learning rate of step 0 is 0 and so the student of one step is that of the earlier run."""
    flags = ("--init_from", str(earlier), "--teacher_momentum", "1", "--max_steps", "1", "--warmup_steps", "1")
    run(pretrain, bare_recipe, images, tmp_path / "out", *flags)
    moved = changed(weights(tmp_path / "out"), weights(earlier))
    assert moved == {"dino_centering.center", "ibot_centering.center"}
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert (recipe["num_prototypes"], recipe["hidden_size"]) == (32, 32)


def test_a_continued_run_resumes_and_repeats(pretrain, bare_recipe, images, earlier, tmp_path):
    """To go on it does not need the weights that it started from: those of the checkpoint replace them."""
    start = shutil.copytree(earlier, tmp_path / "start")
    flags = ("--init_from", str(start), "--freeze_backbone_steps", "2", "--warmup_steps", "2")
    run(pretrain, bare_recipe, images, tmp_path / "straight", *flags)
    again = ["--config", str(tmp_path / "straight" / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]
    pretrain.main(again)
    assert_same_run(tmp_path / "straight", tmp_path / "again")
    run_until_saved(4, lambda: run(pretrain, bare_recipe, images, tmp_path / "resumed", *flags))
    shutil.rmtree(start)
    run(pretrain, bare_recipe, images, tmp_path / "resumed", *flags, "--resume_from_checkpoint", "latest")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_a_phase_of_higher_resolution(pretrain, bare_recipe, images, earlier, tmp_path):
    """16 -> 32 pixels: at 32 pixels the network starts with the features that it had there."""
    flags = ("--init_from", str(earlier), "--image_size", "32", "--teacher_momentum", "1", "--eval_resize_size", "32")
    run(pretrain, bare_recipe, images, tmp_path / "out", *flags)
    before, after = (AutoModel.from_pretrained(folder / "model") for folder in (earlier, tmp_path / "out"))
    assert after.config.image_size == 32
    assert after.embeddings.position_embeddings.shape == (1, 65, 32)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():  # the teacher stood still
        assert torch.equal(before(pixels).last_hidden_state, after(pixels).last_hidden_state)


MISTAKES = {
    "other network": (
        ["--init_from", "{earlier}/model", "--hidden_size", "64"],
        "`hidden_size` is 64, but the weights",
    ),
    "other heads": (["--init_from", "{earlier}", "--num_prototypes", "64"], "`num_prototypes` is 64, .* fresh heads"),
    "no source": (
        ["--init_from", "{earlier}/checkpoints"],
        "holds checkpoints; name one of them, or .*/checkpoints/latest for the newest",
    ),
    "frozen at random": (["--freeze_backbone_steps", "2"], "`freeze_backbone_steps` is 2, but .* random"),
    "long freeze": (
        ["--init_from", "{earlier}", "--freeze_backbone_steps", "5"],
        r"`freeze_backbone_steps` is 5, after which `warmup_steps` \(2\) do not fit into `max_steps` \(6\)",
    ),
    "LayerScale": (
        ["--init_from", "{earlier}/model", "--layerscale_value", "0.5"],
        "`layerscale_value` is 0.5, but the weights of .* have 0.1; leave it out",
    ),
    "few patches": (
        ["--image_size", "8"],
        r"`image_size` is 8, which is 2 x 2 patches of `patch_size` \(4\), .* at least 16, or smaller patches",
    ),
    "configuration of a file": (
        ["--train_data", "{images}/a.parquet", "--dataset_config_name", "v2"],
        "config_name is 'v2', but parquet files and tars have no configurations",
    ),
    "network": (["--hidden_size", "0"], "`hidden_size` is 0; it must be between 1 and 65536"),
    "depth": (["--num_hidden_layers", "10000000"], "`num_hidden_layers` is 10000000; it must be between 1 and 1000"),
    "size": (["--image_size", "14000000000"], "`image_size` is 14000000000; it must be between 1 and 65536"),
    "objective": (["--koleo_loss_weight", "nan"], "`koleo_loss_weight` is nan; it must be at least 0"),
    "signed": (
        ["--train_data", "https://me:pass@data.example/a.npz?X-Amz-Signature=c0ffee"],
        r"'https://data.example/a.npz' does not exist",
    ),
    "negative": (["--freeze_backbone_steps", "-1"], "`freeze_backbone_steps` is -1"),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(pretrain, recipe, images, earlier, tmp_path, flags, message):
    flags = [flag.format(earlier=earlier, images=images) for flag in flags]
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as stop:
        run(pretrain, recipe, images, tmp_path / "out", *flags)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()


DINO, IBOT, KOLEO = {"dino_local_loss", "dino_global_loss"}, {"ibot_loss"}, {"koleo_loss"}
VARIANTS = {
    "iBOT only": (("--dino_loss_weight", "0", "--koleo_loss_weight", "0", "--num_local_crops", "0"), IBOT),
    "DINO only": (("--ibot_loss_weight", "0", "--koleo_loss_weight", "0", "--mask_probability", "0"), DINO),
    "no KoLeo, one image": (("--koleo_loss_weight", "0", "--per_device_train_batch_size", "1"), DINO | IBOT),
    "tiny batch": (("--centering", "sinkhorn_knopp", "--per_device_train_batch_size", "2"), DINO | IBOT | KOLEO),
}


@pytest.mark.parametrize(("flags", "parts"), VARIANTS.values(), ids=VARIANTS)
def test_losses_by_flags(pretrain, recipe, images, tmp_path, flags, parts):
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    training = [record for record in records(tmp_path / "out") if "loss" in record]
    for record in training:
        assert (DINO | IBOT | KOLEO) & record.keys() == parts
        assert all(abs(record[name]) < 100 for name in parts)
    AutoModelForPreTraining.from_pretrained(tmp_path / "out" / "pretraining_model")


def test_registers_by_flags(pretrain, recipe, images, tmp_path):
    flags = ("--num_register_tokens", "4", "--interpolate_offset", "0", "--interpolate_antialias", "true")
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    model = AutoModel.from_pretrained(tmp_path / "out" / "model")
    assert model(torch.randn(1, 3, 16, 16)).last_hidden_state.shape == (1, 1 + 4 + 16, 32)
    state = weights(tmp_path / "out")
    assert state["student.backbone.embeddings.register_tokens"].abs().max() > 1e-4  # from 1e-6: they have learned


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_whole(path):
    """Names, types and lengths; those without a network need weights to start from."""
    from dinov2_hf import DINOv2Config, DINOv2DistillationConfig, DINOv2PreTrainingConfig

    flags, values = ["--config", str(path), "--train_data", "x"], yaml.safe_load(path.read_text())
    kinds = PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig]
    if "distillation_objective" in values:
        flags += ["--teacher", "a/run"]
        kinds = DistillationArguments, [*kinds[1], DINOv2DistillationConfig]
    elif "hidden_size" not in values:
        flags += ["--init_from", "a/run"]
    args, backbone, objective, *_ = parse_recipe(flags, *kinds)
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
    peak = scale_learning_rate(args.learning_rate, args.per_device_train_batch_size, args.learning_rate_scaling)
    schedules = schedules_of(args, config, peak)
    assert 0 < args.teacher_temperature_warmup_steps < args.max_steps
    assert schedules.at(args.freeze_backbone_steps + args.warmup_steps).backbone_learning_rate == pytest.approx(peak)
    assert "not yet measured" in path.read_text() or "docs/results.md" in path.read_text()


TINY_CROPS = ("--local_crop_size", "8", "--max_steps", "2", "--warmup_steps", "1", "--dataloader_num_workers", "0")
TINY_CROPS += ("--per_device_train_batch_size", "4", "--mixed_precision", "no", "--logging_steps", "1")
TINY_NETWORK = ("--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--patch_size", "4")
TINY_NETWORK += ("--image_size", "16", "--num_prototypes", "32", "--head_hidden_size", "32", "--bottleneck_size", "16")
TINY_RUNS = {
    "vits14_one_gpu": TINY_NETWORK,
    "continue_pretraining": ("--init_from", "{earlier}", "--image_size", "16", "--freeze_backbone_steps", "1"),
    "vitl14_highres518": ("--init_from", "{earlier}", "--image_size", "32"),
}


@pytest.mark.parametrize("name", TINY_RUNS)
def test_recipes_run(pretrain, images, earlier, tmp_path, name):
    """On a tiny network, with everything else as the recipe says."""
    flags = [flag.format(earlier=earlier) for flag in TINY_RUNS[name]]
    run(pretrain, name, images, tmp_path / "out", *flags, *TINY_CROPS)
    assert [record["step"] for record in records(tmp_path / "out") if "loss" in record] == [1, 2]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "out").values())


def test_the_high_resolution_schedules_are_the_long_ones_compressed():
    long, short = (recipe_files.read_recipe(name) for name in ("vitl14_imagenet22k", "vitl14_highres518"))
    for name in ("warmup_steps", "freeze_last_layer_steps", "teacher_temperature_warmup_steps"):
        assert short[name] / short["max_steps"] == long[name] / long["max_steps"]
    for name in ("weight_decay", "final_weight_decay", "teacher_momentum", "teacher_temperature"):
        assert short[name] == long[name]


def test_the_log_says_the_learning_rate_rule_and_who_sees_whom(pretrain, recipe, images, tmp_path, caplog):
    caplog.set_level("INFO")
    flags = ("--learning_rate_scaling", "sqrt_wrt_1024", "--gradient_accumulation_steps", "4")
    flags += ("--num_local_crops", "0", "--max_steps", "2")
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    assert records(tmp_path / "out")[-1]["learning_rate"] == pytest.approx(1e-3 * (16 / 1024) ** 0.5)
    assert "0.000125 = 0.001 x sqrt(16 / 1024)" in caplog.text
    assert "4 images by KoLeo (one device), 4 by centering (all devices), in one forward pass" in caplog.text
