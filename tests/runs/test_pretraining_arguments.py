"""Recipes and flags: what wins, what is converted, and what is refused in one sentence."""

import math
import re
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError

from dinov2_hf import DINOv2Config, DINOv2DistillationConfig, DINOv2PreTrainingConfig
from dinov2_hf.command_lines import build_parser
from dinov2_hf.options import options_of
from dinov2_hf.public_names import public_name, without_secrets
from dinov2_hf.runs.distillation_arguments import DistillationArguments
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments, recipe_values
from dinov2_hf.runs.recipe.recipe_parsing import options_of_run, parse_recipe


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


# Shaped as the Hub's are.
TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ12345678"

MISTAKES = {
    "unknown": ("learning_rat: 1e-3", "unknown key `learning_rat`. Did you mean `learning_rate`"),
    "part of a name": ("batch_size: 1", "`batch_size`. Did you mean `per_device_train_batch_size` or"),
    "text": ("max_steps: many", "`max_steps` is many; it must be a whole number"),
    "half": ("max_steps: 1.5", "`max_steps` is 1.5; it must be a whole number"),
    "list": ("- 1", "it must be a list of `name: value` lines"),
    "list of values": ("max_steps: [1, 2]", "`max_steps` is a list of 2 values; it must be a whole number"),
    "twice": ("seed: 1\nmax_steps: 3\nseed: 2\n", r"recipe.yaml has `seed` twice, in the lines 1 and 3"),
    "twice inside": ("seed: 1\nstudents:\n- {name: a, name: b}", "has `name` twice, in the lines 3 and 3"),
    "zero": ("max_steps: 0", "`max_steps` is 0; it must be between 1 and 1000000000"),
    "above": ("teacher_momentum: 1.5", "`teacher_momentum` is 1.5; it must be between 0 and 1"),
    "not above": ("teacher_temperature: 0", "`teacher_temperature` is 0.0; it must be above 0"),
    "negative": ("learning_rate: -1", "`learning_rate` is -1.0; it must be above 0"),
    "infinite": ("weight_decay: .inf", "`weight_decay` is inf; it must be at least 0"),
    "not a number": ("adam_beta1: .nan", "`adam_beta1` is nan; it must be at least 0 and below 1"),
    "in a list": ("mask_ratio: [0.1, 1.5]", r"`mask_ratio` is \[0.1, 1.5\]; each number must be between 0 and 1"),
    "order": ("mask_ratio: [0.5, 0.1]", r"`mask_ratio` is \[0.5, 0.1\]; the smaller number comes first"),
    "word": ("mixed_precision: fp8", '`mixed_precision` is "fp8"; it must be "auto" or "no" or "bf16" or "fp16"'),
    "no text": ("\x00", "is not valid YAML"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_bad_recipe_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as mistake:
        parse("--config", recipe(tmp_path, text))
    assert "\n" not in str(mistake.value)


def test_a_recipe_may_not_set_another_flag(tmp_path):
    with pytest.raises(ValueError, match="`mask_ratio` is --push_to_hub; it must be a number"):
        parse("--config", recipe(tmp_path, "mask_ratio: ['0.1', --push_to_hub]"))
    assert parse("--config", recipe(tmp_path, "license: --push_to_hub"))[0].license == "--push_to_hub"


def test_bad_flags_are_named():
    with pytest.raises(ValueError, match="there is no flag --learning_rat. Did you mean `learning_rate`"):
        parse("--learning_rat", "1")
    with pytest.raises(ValueError, match="there is no flag --batch_size. Did you mean `per_device_train_batch_size`"):
        parse("--batch_size", "0")
    with pytest.raises(ValueError, match="nowhere.yaml, which is neither a file"):
        parse("--config", "nowhere.yaml")
    with pytest.raises(ValueError, match="vits14_shrt, which is neither a file .* Did you mean `vits14_short`"):
        parse("--config", "vits14_shrt")
    with pytest.raises(ValueError, match="`--config` is given twice"):
        parse("--config", "a.yaml", "--config=b.yaml")
    with pytest.raises(ValueError, match="--config: expected one argument"):
        parse("--config")
    with pytest.raises(ValueError, match="--train_data"):
        parse_recipe([], PreTrainingArguments, CONFIGS)


NUMBERS = {
    (kind, name): option
    for kind in (DistillationArguments, *CONFIGS, DINOv2DistillationConfig)
    for name, option in options_of(kind).items()
    if option.kind in (int, float)
}


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda part: part if isinstance(part, str) else "")
def test_every_number_has_a_range(kind, name):
    """And is refused outside of it, by its name, also where Python makes the configuration."""
    option = NUMBERS[kind, name]
    allowed = option.allowed
    assert allowed is not None
    outside = [math.nan, math.inf]
    outside += [allowed.low - 1] if allowed.low > -math.inf else []
    outside += [allowed.high + 1] if allowed.high < math.inf else []
    needed = {"train_data": "images", "teacher": "a"} if kind is DistillationArguments else {}
    for value in outside:
        if option.kind is int and not math.isfinite(value):
            continue  # of which there is no whole number
        with pytest.raises((ValueError, StrictDataclassError)) as mistake:
            kind(**needed, **{name: [value, value] if option.is_list else value})
        sentence = str(mistake.value.__cause__ or mistake.value)
        assert sentence.startswith(f"`{name}` is ")
        assert str(allowed) in sentence


@pytest.mark.parametrize("kind", ["pretraining", "distillation"])
def test_every_flag_has_a_help_text(kind):
    kinds = (PreTrainingArguments, CONFIGS)
    if kind == "distillation":
        kinds = DistillationArguments, [*CONFIGS, DINOv2DistillationConfig]
    options = options_of_run([kinds[0], *kinds[1]])
    assert len(options) > 100
    for name, option in options.items():
        assert not name.startswith("_")
        assert len(option.help) > 12, name
        if option.kind in (int, float):
            assert re.search(r"(It is|Each) (at|above|between|a finite)", option.full_help()), name
    assert build_parser(options).format_help()  # no percent sign that argparse would read


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hub_model_id", "ada/vits"], "`hub_model_id` is ada/vits, but has no effect without `push_to_hub`"),
        (["--hub_token", "hf_secret"], "`hub_token` is set, but has no effect without `push_to_hub`"),
        (["--eval_split", "val"], "`eval_split` is val, but has no effect without `eval_data`; leave it out, or set"),
        (["--eval_bank_data", "/nowhere"], "`eval_bank_data` is /nowhere, but has no effect without `eval_data`"),
        (["--label_column", "kind"], "`label_column` is kind, but has no effect without `eval_data`"),
        (["--eval_data", "a", "--eval_bank_split", "b"], "`eval_bank_split` is b, but .* without `eval_bank_data`"),
        (["--linear_eval_steps", "9"], "`linear_eval_steps` is 9, but has no effect without `eval_data`"),
        (["--dense_eval_steps", "9"], "`dense_eval_steps` is 9, but has no effect without `dense_eval_data`"),
        (["--max_dense_eval_images", "9"], "`max_dense_eval_images` is 9, but .* without `dense_eval_data`"),
        (["--shuffle_buffer_size", "9"], "`shuffle_buffer_size` is 9, but has no effect without `streaming`"),
        (["--streaming", "--sample_order", "sharded"], "`sample_order` is sharded, but .* with `streaming`; leave it"),
        (
            ["--centering", "sinkhorn_knopp", "--center_momentum", "0.5"],
            "`center_momentum` is 0.5, but has no effect with `centering` sinkhorn_knopp; leave it out, or set"
            " `centering` to softmax",
        ),
        (
            ["--use_swiglu_ffn", "--hidden_act", "relu"],
            "`hidden_act` is relu, but has no effect with `use_swiglu_ffn`",
        ),
    ],
)
def test_what_would_have_no_effect(flags, message):
    with pytest.raises(ValueError, match=message) as mistake:
        parse(*flags)
    assert "hf_secret" not in str(mistake.value)


def test_defaults_may_be_repeated_where_they_have_no_effect(tmp_path):
    """As the resolved recipe of a run does; and what weights to start from say is not what the user said."""
    parse("--config", recipe(tmp_path, "eval_split: null\nlabel_column: label\nshuffle_buffer_size: 1000\n"))
    flags = [*NEEDED, "--centering", "sinkhorn_knopp"]
    *_, objective = parse_recipe(flags, PreTrainingArguments, CONFIGS, {"center_momentum": 0.5})
    assert objective["center_momentum"] == 0.5


LEAKS = {
    "after the token": ["--push_to_hub", "--hub_token", TOKEN, "hf_more"],
    "misspelled": ["--push_to_hub", "--hub_tokn=hf_more"],
    "misspelled, apart": ["--push_to_hub", "--hub_tokn", "hf_more"],
    "grown together": [f"--hub_token{TOKEN}", "hf_more"],
    "one dash": ["-hub_token", "hf_more"],
    "the dash of another flag": ["-hf_more"],
    "another flag's": ["--max_steps", TOKEN],
    "a choice": ["--mixed_precision", TOKEN],
    "a file": ["--config", TOKEN],
}
LEAKING_RECIPES = {
    "in a list": f"push_to_hub: true\nhub_token: [{TOKEN}, hf_more]",
    "in a list of words": f"- {TOKEN}",
    "broken": f"seed: 1\nhub_token: '{TOKEN} hf_more",
    "broken before": f"hub_token: {TOKEN}: hf_more",
    "key": f"{TOKEN}: hf_more",
    "another key": f"max_steps: {TOKEN}",
    "numbers": f"mask_ratio: [{TOKEN}, {TOKEN}]",
    "tag": f"hub_token: !{TOKEN} hf_more",
    "alias": "hub_token: *hf_more",
}


@pytest.mark.parametrize("case", [*LEAKS, *LEAKING_RECIPES])
def test_no_sentence_repeats_a_token(tmp_path, case):
    flags = LEAKS.get(case) or ["--config", recipe(tmp_path, LEAKING_RECIPES[case])]
    with pytest.raises(ValueError, match=" ") as mistake:
        parse(*flags)
    sentence = str(mistake.value)
    assert TOKEN not in sentence
    assert "f_more" not in sentence
    assert "\n" not in sentence
    assert mistake.value.__cause__ is None


def test_urls_are_cut_where_secrets_begin():
    signed = "https://me:pass@data.example/a/shard-{0..9}.tar?X-Amz-Signature=c0ffee&Expires=9#part"
    cut = "https://data.example/a/shard-{0..9}.tar"
    assert without_secrets(signed) == cut
    assert without_secrets(f"'{signed}' does not exist") == f"'{cut}' does not exist"
    assert without_secrets(str(Path(signed))) == str(Path(cut))
    assert without_secrets({"students": [{"init_from": signed}], "seed": 3}) == {
        "students": [{"init_from": cut}],
        "seed": 3,
    }
    assert (
        without_secrets("dinov2_hf_pretraining of ada/hf_models, a?b") == "dinov2_hf_pretraining of ada/hf_models, a?b"
    )
    assert public_name(signed) == "shard-{0..9}.tar"
    args, _, _ = parse("--eval_data", signed, "--init_from", signed)
    assert (recipe_values(args)["eval_data"], recipe_values(args)["init_from"]) == (cut, cut)
    assert args.eval_data == signed
