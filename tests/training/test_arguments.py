"""Recipes and flags: what wins, what is converted, and what is refused in one sentence."""

import pytest

from dinov2_hf import DINOv2Config, DINOv2PreTrainingConfig
from dinov2_hf.training.arguments import PreTrainingArguments, parse_recipe, recipe_values


CONFIGS = [DINOv2Config, DINOv2PreTrainingConfig]
NEEDED = ["--train_data", "images"]


def parse(*flags: str):
    return parse_recipe([*NEEDED, *flags], PreTrainingArguments, CONFIGS)


def recipe(tmp_path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_are_those_of_the_classes():
    args, backbone, objective = parse()
    assert args == PreTrainingArguments(train_data="images")
    assert DINOv2Config(**backbone).to_dict() == DINOv2Config().to_dict()
    assert DINOv2PreTrainingConfig(**objective).num_prototypes == 65536


def test_flags_override_the_recipe(tmp_path):
    path = recipe(tmp_path, "learning_rate: 1e-3\nhidden_size: 128\nmask_ratio: [0.2, 0.4]\nstreaming: true\n")
    args, backbone, _ = parse("--config", path, "--hidden_size", "256", "--max_steps=7")
    assert args.learning_rate == 1e-3  # YAML itself reads 1e-3 as a text
    assert args.mask_ratio == [0.2, 0.4]
    assert args.streaming is True
    assert args.max_steps == 7
    assert backbone["hidden_size"] == 256


def test_every_value_survives_a_recipe(tmp_path):
    """The resolved recipe that a run writes gives the same run again."""
    import dataclasses

    import yaml

    args, backbone, objective = parse("--separate_ibot_head", "true", "--ibot_num_prototypes", "16", "--seed", "3")
    path = recipe(tmp_path, yaml.safe_dump({**backbone, **objective, **dataclasses.asdict(args)}))
    assert parse_recipe(["--config", path], PreTrainingArguments, CONFIGS) == (args, backbone, objective)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1e-3", "unknown key `learning_rat`; did you mean `learning_rate`"),
        ("max_steps: many", "max_steps.*: invalid int value: 'many'"),
        ("- 1", "it must be a list of `name: value` lines"),
        ("max_steps: 0", "`max_steps` is 0; it must be at least 1"),
        ("teacher_momentum: 1.5", "`teacher_momentum` is 1.5; it must lie between 0 and 1"),
        ("teacher_temperature: 0", "`teacher_temperature` is 0.0; it must be above 0"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse("--config", recipe(tmp_path, text))


def test_bad_flags_are_named():
    with pytest.raises(ValueError, match="there is no flag --learning_rat; did you mean `learning_rate`"):
        parse("--learning_rat", "1")
    with pytest.raises(ValueError, match="nowhere.yaml, which is not a file"):
        parse("--config", "nowhere.yaml")
    with pytest.raises(ValueError, match="--train_data"):
        parse_recipe([], PreTrainingArguments, CONFIGS)


def test_what_belongs_to_one_start_stays_out_of_the_recipe():
    uploaded = (
        "--push_to_hub",
        "--hub_model_id",
        "ada/vits",
        "--hub_private_repo",
        "true",
        "--hub_token",
        "hf_secret",
    )
    args, _, _ = parse(*uploaded, "--output_dir", "there", "--overwrite_output_dir", "--seed", "3")
    plain, _, _ = parse("--seed", "3")
    assert recipe_values(args) == recipe_values(plain)
    assert recipe_values(args)["seed"] == 3
    assert "hf_secret" not in repr(args)


def test_options_of_an_upload_that_was_not_asked_for():
    with pytest.raises(ValueError, match="`hub_model_id` is ada/vits, but nothing would be uploaded"):
        parse("--hub_model_id", "ada/vits")


def test_a_misspelled_flag_does_not_repeat_its_value():
    with pytest.raises(ValueError, match="there is no flag --hub_tokn; did you mean `hub_token`") as mistake:
        parse("--push_to_hub", "--hub_tokn=hf_secret")
    assert "hf_secret" not in str(mistake.value)
