"""The recipes of the package, as `dinov2-hf recipes` lists them."""

import json

import pytest
import yaml

from dinov2_hf.cli.main import options_of_command
from dinov2_hf.recipe_files import RECIPES, recipe_names
from tests.cli.typed_commands import mistake, run


@pytest.fixture
def listed(capsys):
    run("recipes", "--json")
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def test_every_recipe_is_listed(listed):
    found, said = listed
    assert list(found) == recipe_names() == sorted(path.stem for path in RECIPES.iterdir())
    assert "  hardware:  2 CPU cores\n  time:      5 minutes as two processes" in said


@pytest.mark.parametrize("name", recipe_names())
def test_its_header_says_what_it_needs_and_takes(listed, name):
    said = listed[0][name]
    assert set(said) == {"purpose", "command", "hardware", "time", "expected"}
    assert all(said.values())
    assert "measured" in said["time"] or name in ("quickstart_digits", "curate_small")
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert values.keys() <= options_of_command(said["command"], []).keys()


def test_a_recipe_of_another_command_is_named(capsys):
    for command, name in (("pretrain", "curate_small"), ("pretrain", "vits14_distilled"), ("curate", "vits14_short")):
        with pytest.raises(SystemExit):
            run(command, "--config", name)
        other = "curate" if "curate" in name else "distill" if "distilled" in name else "pretrain"
        assert f"`--config` is {name}, a recipe for `dinov2-hf {other}`." in capsys.readouterr().err


def test_one_is_shown_as_it_is(capsys):
    run("recipes", "show", "vits14_short")
    assert capsys.readouterr().out == (RECIPES / "vits14_short.yaml").read_text()
    assert "`--name` is vits14_shrt, which is neither a file" in mistake("recipes", "show", "vits14_shrt")
    assert "Did you mean `vits14_short`?" in mistake("recipes", "--action", "show", "--name", "vits14_shrt")
    said = mistake("recipes", "--action", "show", "--name", "vits_14")
    assert "Did you mean `vits14_distilled` or `vits14_features` or `vits14_one_gpu` or `vits14_short`?" in said
    assert "`--name` must be given" in mistake("recipes", "show")
    assert "the action is list; leave `--name` out" in mistake("recipes", "list", "vitg14")
