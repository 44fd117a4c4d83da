"""
Nothing is accepted and ignored: every name of `--help`, given another value, changes what a run leaves, or is refused,
or stands in a table with the reason why it does neither here.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from dinov2_hf import DINOv2Config, DINOv2DistillationConfig, DINOv2PreTrainingConfig
from dinov2_hf.command_lines import build_parser
from dinov2_hf.data.decoding.size_limits import VARIABLE, max_image_pixels
from dinov2_hf.runs.distillation_arguments import DistillationArguments
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import options_of_run, parse_recipe

from .conftest import TINY, forget_accelerate, load_example


PRETRAINING = (PreTrainingArguments, DINOv2Config, DINOv2PreTrainingConfig)
DISTILLATION = (DistillationArguments, DINOv2Config, DINOv2PreTrainingConfig, DINOv2DistillationConfig)
NAMES = {kinds: list(options_of_run(kinds)) for kinds in (PRETRAINING, DISTILLATION)}
# What the objective of a distillation makes of the recipe is another matter than in a pretraining.
OF_DISTILLATION = [
    name
    for name in NAMES[DISTILLATION]
    if name not in NAMES[PRETRAINING]
    or name in DINOv2PreTrainingConfig.__annotations__
    or name.startswith(("mask_", "warmup_teacher", "teacher_temperature"))
]

# Other values where a half, a double or the opposite will not do. {images}, {other} and {run} are paths.
VALUES = {
    "train_data": ["{other}"], "train_split": ["validation"], "image_column": ["picture"], "sample_order": ["sharded"],
    "masks": ["tests.extension.extensions.random_masks:random_masks"],
    "augmentation": ["tests.extension.extensions.plain_crops:plain_crops"],
    "dataset_config_name": ["v2"], "init_from": ["{run}"], "mask_ratio": ["0.3", "0.6"], "mask_probability": ["1.0"],
    "image_mean": ["0.4", "0.4", "0.4"], "image_std": ["0.2", "0.2", "0.2"], "max_steps": ["3"],
    "cooldown_schedule": ["cosine"], "gram_teacher": ["{run}"], "koleo_group_size": ["2"],
    "gram_teacher_update_steps": ["2"],
    "learning_rate_scaling": ["sqrt_wrt_1024"], "layer_norm_eps": ["0.1"], "mixed_precision": ["bf16"],
    "global_blur_probabilities": ["1.0", "0.0"], "local_blur_probability": ["0.0"], "solarize_probability": ["1.0"],
    "grayscale_probability": ["1.0"], "horizontal_flip_probability": ["1.0"], "color_jitter_probability": ["0.0"],
    "eval_data": ["{other}"], "eval_split": ["validation"], "eval_bank_data": ["/nowhere"], "eval_steps": ["1"],
    "eval_bank_split": ["test"], "hub_private_repo": ["true"],
    "label_column": ["kind"], "max_eval_bank_images": ["20"], "max_eval_images": ["5"], "eval_resize_size": ["20"],
    "attn_implementation": ["eager"], "report_to": ["nowhere"], "license": ["apache-2.0"], "max_grad_norm": ["0.01"],
    "resume_from_checkpoint": ["latest"], "hub_model_id": ["ada/vits"], "hub_revision": ["v2"], "hub_token": ["hf_x"],
    "hidden_size": ["64"], "num_hidden_layers": ["3"], "num_attention_heads": ["4"], "hidden_act": ["relu"],
    "image_size": ["32"], "patch_size": ["2"], "num_channels": ["4"], "centering": ["sinkhorn_knopp"],
    "center_momentum": ["0.1"], "num_prototypes": ["48"], "head_num_layers": ["2"], "local_crop_size": ["12"],
    "ibot_num_prototypes": ["16"], "ibot_bottleneck_size": ["8"], "max_skipped_fraction": ["0.5"], "seed": ["1"],
    "interpolate_offset": ["0.05"], "teacher_momentum": ["0.5"], "learning_rate_schedule": ["constant"],
    "weight_decay_schedule": ["constant"], "teacher_momentum_schedule": ["constant"], "adam_beta1": ["0.1"],
    "adam_beta2": ["0.1"],
    "final_teacher_momentum": ["0.5"], "warmup_teacher_temperature": ["0.02"], "teacher_temperature": ["0.2"],
    "teacher_temperature_warmup_steps": ["0"], "warmup_steps": ["1"], "freeze_last_layer_steps": ["0"],
    "global_crop_scale": ["0.2", "0.5"], "local_crop_scale": ["0.2", "0.5"], "output_dir": ["{folder}/elsewhere"],
    "students": ["{{name: a, hidden_size: 16, num_attention_heads: 1}}"],
    "max_image_pixels": ["100"], "teacher": ["{other}"],
    "teacher_mixed_precision": ["bf16"], "teacher_image_size": ["32"], "distillation_objective": ["features"],
    "loss_terms": ["tests.extension.extensions.gram_anchoring:gram_loss=1.0"],
    "teacher_class": ["tests.extension.extensions.agreeing_teacher:AgreeingTeacher"],
    "crop_sizes": ["{{global_crop_size: 24}}"],
    "ibot_tokens": ["masked"], "feature_loss": ["smooth_l1"], "shuffle_buffer_size": ["9"], "save_total_limit": ["1"],
    "linear_eval_steps": ["1"], "dense_eval_data": ["{other}"], "dense_eval_split": ["validation"],
    "dense_eval_bank_data": ["/nowhere"], "dense_eval_bank_split": ["validation"], "dense_eval_steps": ["1"],
    "dense_eval_image_column": ["annotation"], "dense_eval_mask_column": ["kind"],
    "dense_eval_ignore_index": ["1"], "dense_eval_image_size": ["24"], "max_dense_eval_bank_images": ["2"],
    "max_dense_eval_images": ["2"],
    "stop_after_steps": ["1"], "export_every": ["1"], "keep_best": ["knn_top1_k20"], "greater_is_better": ["false"],
    "train_blocks": ["1"], "lora_rank": ["1"],
    "crop_packing": ["always"], "gradient_checkpointing": ["selective"],
}  # fmt: skip
SAME_RESULT = {
    "cooldown_steps": "a cool-down of one step begins where the schedule was; test_schedules.py",
    "allow_recipe_change": "a fresh start has no earlier recipe to change; test_resume.py",
    "overwrite_output_dir": "there is nothing to delete; test_output_folder.py has a folder with a run",
    "dataloader_num_workers": "batches do not depend on who makes them; test_loader.py",
    "per_device_eval_batch_size": "features do not depend on the batch that they are made in",
    "export_on_stop": "nothing stops it; test_stop_and_keep.py",
    "gradient_checkpointing": "recomputed numbers are the same; test_recomputation.py",
    "max_nonfinite_steps": "every step is finite here; test_nonfinite.py",
    "save_nonfinite_batch": "every step is finite here; test_replay.py",
    "max_skipped_fraction": "every image can be decoded; test_skipped_images.py",
    "stop_on_collapse": "nothing collapses in two steps; test_collapse_guard.py",
    "patch_chunk_size": "chunks change memory and speed; test_logit_chunks.py",
}
# Not run here.
ELSEWHERE = {
    "compile": "a compiled step says the same to rounding; test_compilation.py",
    "push_to_hub": "needs a Hub, which tests/hub stands in for",
}
SAME_IN_DISTILLATION = SAME_RESULT | {
    "mask_probability": "ibot_tokens is all, which masks nothing",
    "mask_ratio": "ibot_tokens is all, which masks nothing",
}
BASE = ("--max_steps", "2", "--warmup_steps", "0", "--save_steps", "1", "--eval_steps", "2", "--drop_path_rate", "0.3")


@pytest.fixture(scope="module")
def other_images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    for index in range(8):
        Image.new("RGB", (20, 20), (index * 30, 100, 200 - index * 20)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def own_limit_of_pixels(monkeypatch):
    """A run sets it for its process, which here goes on to others."""
    monkeypatch.setenv(VARIABLE, str(max_image_pixels()))


def what_it_leaves(folder: Path) -> dict:
    """The results of a run: weights, what was measured, configurations, card and names of files."""
    left = {"files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors" and "checkpoints" not in name:
            left[name] = {key: value.numpy().tobytes() for key, value in load_file(path).items()}
        elif path.name in ("config.json", "preprocessor_config.json"):
            left[name] = path.read_text()
        elif path.name == "metrics.jsonl":
            timed = ("images_per_second", "data_wait_share")
            records = map(json.loads, path.read_text().splitlines())
            left[name] = [{key: value for key, value in record.items() if key not in timed} for record in records]
        elif path.name == "README.md":
            left[name] = path.read_text().partition("---\n\n")[0]  # what the Hub reads; the recipe is below
    return left


def outcome(main, flags: list[str], folder: Path) -> dict | str:
    """What a run leaves, or the sentence that refuses it."""
    forget_accelerate()
    try:
        main([*flags[:2], "--output_dir", str(folder), *flags[2:]])
    except SystemExit as stop:
        return str(stop.code)
    return what_it_leaves(folder) if folder.exists() else "nothing where it was before"


def other_value(kinds: tuple, name: str, base: dict, **paths: str) -> list[str]:
    """Flags that give `name` another value than it has in the run that is compared with."""
    if name in VALUES:
        return [f"--{name}", *(word.format(**paths) for word in VALUES[name])]
    value = base[name]
    assert isinstance(value, bool | int | float), name  # else it belongs into the table above
    if isinstance(value, bool):
        return [f"--{name}", str(not value).lower()]
    return [f"--{name}", str(value * 2 if isinstance(value, int) and value else value / 2 or 1)]


@pytest.fixture(scope="module")
def pretraining(no_pictures, recipe, images, masks, tmp_path_factory):
    """`main`, the flags that runs have in common, their values and what they leave."""
    module, folder = load_example("pretrain"), tmp_path_factory.mktemp("pretraining") / "run"
    flags = ["--config", recipe, "--train_data", str(images), *BASE]
    flags += ["--eval_data", str(images), "--eval_split", "train", "--dense_eval_data", str(masks)]
    args, *configs = parse_recipe(flags, PreTrainingArguments, [*PRETRAINING[1:]])
    values = dataclasses.asdict(args) | {name: value for config in configs for name, value in config.items()}
    return module.main, flags, values, outcome(module.main, flags, folder), folder


@pytest.fixture(scope="module")
def distillation(pretraining, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    module = load_example("distill")
    own = {name: value for name, value in yaml.safe_load(TINY).items() if name not in ("num_prototypes",)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(own))
    flags = ["--config", str(folder / "recipe.yaml"), "--train_data", str(images), "--teacher", str(pretraining[-1])]
    flags += BASE
    args, *configs = parse_recipe(flags, DistillationArguments, [*DISTILLATION[1:]])
    values = dataclasses.asdict(args) | {name: value for config in configs for name, value in config.items()}
    return module.main, flags, values, outcome(module.main, flags, folder / "run"), folder / "run"


def test_every_name_of_the_help_is_walked():
    for kinds in (PRETRAINING, DISTILLATION):
        help = build_parser(options_of_run(kinds)).format_help()
        assert set(re.findall(r"^  --(\w+)", help, re.MULTILINE)) == {*NAMES[kinds]}
    assert {*VALUES, *SAME_IN_DISTILLATION} <= {*NAMES[DISTILLATION]}
    assert not {*VALUES} & {*SAME_RESULT} - {"max_skipped_fraction", "gradient_checkpointing"}


def walk(case, kinds, name, why_not, tmp_path, other_images) -> None:
    main, flags, values, expected, run = case
    assert isinstance(expected, dict), expected
    if name in ELSEWHERE:
        pytest.skip(ELSEWHERE[name])
    paths = {"other": str(other_images), "run": str(run), "folder": str(tmp_path)}
    found = outcome(main, [*flags, *other_value(kinds, name, values, **paths)], tmp_path / "run")
    if isinstance(found, str):
        assert found.startswith(("error: ", "stopped: ", "nothing where it was before"))
        assert "\n" not in found
    if name in why_not:
        assert found == expected, f"{name} has an effect after all: take it out of the table"
    else:
        assert found != expected, f"{name} is accepted and changes nothing"


@pytest.mark.parametrize("name", NAMES[PRETRAINING])
def test_pretraining(pretraining, other_images, tmp_path, name):
    walk(pretraining, PRETRAINING, name, SAME_RESULT, tmp_path, other_images)


@pytest.mark.parametrize("name", OF_DISTILLATION)
def test_distillation(distillation, other_images, tmp_path, name):
    walk(distillation, DISTILLATION, name, SAME_IN_DISTILLATION, tmp_path, other_images)
