"""Options from signatures and dataclasses, and the words and values that they read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from dinov2_hf.command_lines import build_parser, read_recipe_and_words, read_words, values_of
from dinov2_hf.options import REQUIRED, OptionError, argument, check_options, keyword_options, options_of, read_mapping
from dinov2_hf.value_ranges import AT_LEAST_ONE, NOT_NEGATIVE


def paint(
    canvas: Path,
    *,
    colour: Literal["red", "blue"],
    strokes: Annotated[int, AT_LEAST_ONE] = 3,
    size: tuple[float, float] | None = None,
    dry: bool = False,
    layers: Sequence[int] = (1, 4),
    weight: float | dict[str, Any] = 1.0,
    extras: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    """Paint.

    Args:
        canvas: what to paint on; 50 % of it
            stays white.
        strokes, layers: how many.
        colour: of the paint.
    """


OPTIONS = options_of(paint)


def test_a_signature_says_what_its_options_are():
    assert list(OPTIONS) == ["canvas", "colour", "strokes", "size", "dry", "layers", "weight", "extras"]
    assert OPTIONS["canvas"].is_positional
    assert OPTIONS["canvas"].help == "what to paint on; 50 % of it stays white."
    assert OPTIONS["colour"].default is REQUIRED
    assert OPTIONS["strokes"].help == OPTIONS["layers"].help == "how many."
    assert list(keyword_options(paint, without=["dry"])) == [name for name in OPTIONS if name not in ("canvas", "dry")]
    said = " ".join(build_parser(OPTIONS, "paint").format_help().split())
    assert said.startswith("usage: paint CANVAS --colour ... [options]")
    for text in ("50 % of it", "--colour red|blue of the paint.", "It is at least 1. (default: 3)", "(default: 1 4)"):
        assert text in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["c", "--colour", "red"], {"canvas": Path("c"), "colour": "red"}),
        (["--dry", "c"], {"canvas": Path("c"), "dry": True}),
        (["--no-dry", "c"], {"canvas": Path("c"), "dry": False}),
        (["c", "--dry", "false"], {"canvas": Path("c"), "dry": False}),
        (["c", "--layers", "2", "3"], {"canvas": Path("c"), "layers": [2, 3]}),
        (["c", "--size", "1.5", "-2.5"], {"canvas": Path("c"), "size": [1.5, -2.5]}),
        (["c", "--layers", "2,3", "4"], {"canvas": Path("c"), "layers": [2, 3, 4]}),
        (["--canvas", "c", "--dry"], {"canvas": Path("c"), "dry": True}),
        (["c", "--size=null"], None),
        (["c", "--weight", "2"], {"canvas": Path("c"), "weight": 2.0}),
        (["c", "--weight", "{kind: linear}"], {"canvas": Path("c"), "weight": {"kind": "linear"}}),
        (["c", "--extras", "a=1", "b.c:d=[x]"], {"canvas": Path("c"), "extras": {"a": 1, "b.c:d": ["x"]}}),
    ],
)
def test_words(words, expected):
    if expected is None:
        with pytest.raises(OptionError, match="expected 2 arguments"):
            read_words(OPTIONS, words)
    else:
        assert read_words(OPTIONS, words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--colour", "green"], '`colour` is "green"; it must be "red" or "blue"'),
        (["--strokes", "0"], "`strokes` is 0; it must be at least 1"),
        (["--strokes", "2.5"], "`strokes` is 2.5; it must be a whole number"),
        (["--strokes", "1", "--strokes=2"], "`--strokes` is given twice"),
        (["--stroke", "1"], "there is no flag --stroke. Did you mean `strokes`"),
        (["--dry=maybe"], "`dry` is maybe; it must be true or false"),
        (["--extras", "a"], "`extras` has 'a', which must be NAME=VALUE"),
        (["-x"], "a word on the command line belongs to no flag"),
        (["other"], "a word on the command line belongs to no flag"),
    ],
)
def test_mistakes_of_words(words, message):
    with pytest.raises(OptionError, match=message):
        read_words(OPTIONS, ["c", *words])


@dataclass
class Recipe:
    """
    Args:
        size (`int`, defaults to 3): Of it [3, 7].
    """

    size: int = 3
    name: str = argument("a", "Its name.", needs={"is_named": True})
    is_named: bool = argument(False, "Whether it has one.")
    rates: list[float] = argument([0.5], "Rates.", NOT_NEGATIVE)
    limit: int | None = argument(None, "Limit.")
    items: list[str | dict] = argument([], "Items.")

    def __post_init__(self):
        check_options(self)


FIELDS = options_of(Recipe)


def test_a_recipe_and_flags(tmp_path):
    assert FIELDS["size"].help == "Of it."
    (tmp_path / "recipe.yaml").write_text("size: '4'\nrates: 1e-3\nlimit: null\nitems: [a, {b: {c: 1}}]\n")
    read = read_recipe_and_words(FIELDS, ["--config", str(tmp_path / "recipe.yaml"), "--size", "5", "--size", "6"])
    assert read == {"size": 6, "rates": [0.001], "limit": None, "items": ["a", {"b": {"c": 1}}]}
    assert values_of("config", ["--config=x", "y"]) == values_of("config", ["--config", "x", "--y"]) == ["x"]
    assert values_of("config", ["--other", "x"]) == []
    assert values_of("batch_size", ["--batch-size", "3", "4"]) == ["3", "4"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": None}, "`size` is null; it must be a whole number"),
        ({"size": [1]}, "`size` is a list of 1 values"),
        ({"size": {"a": 1}}, "`size` is a mapping; it must be a whole number"),
        ({"size": True}, "`size` is True; it must be a whole number"),
        ({"name": False}, "`name` is False; it must be a text, in quotes"),
        ({"rates": [1, -1]}, r"`rates` is \[1.0, -1.0\]; each number must be at least 0"),
        ({"sise": 1}, "the recipe has the unknown key `sise`. Did you mean `size`"),
    ],
)
def test_mistakes_of_a_recipe(values, message):
    with pytest.raises(OptionError, match=message):
        read_mapping(FIELDS, values, "the recipe")


def test_a_dataclass_made_in_python_is_checked_too():
    assert Recipe().rates is not Recipe().rates
    with pytest.raises(ValueError, match="`rates` is"):
        Recipe(rates=[float("nan")])
