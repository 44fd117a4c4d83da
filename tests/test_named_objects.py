"""A name is found once registered or by its module, and a wrong one is a sentence."""

import sys

import pytest

from dinov2_hf.named_objects import Registry, did_you_mean


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of the user's."""
    (tmp_path / "sawtooth_schedules.py").write_text("def sawtooth(step):\n    return step % 10\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("sawtooth_schedules", "registering", "with_a_gap"):
        sys.modules.pop(name, None)


def schedules():
    registry = Registry("schedule")

    @registry.register("constant", units="steps")
    def constant(step):
        return 1

    return registry


def test_a_registered_name_is_found_with_its_facts():
    registry = schedules()
    assert registry.find("constant")(3) == 1
    assert registry.named("constant").facts == {"units": "steps"}
    assert registry.names() == ["constant"]


def test_a_function_of_the_working_directory_is_found_by_its_module(folder):
    named = schedules().named("sawtooth_schedules:sawtooth")
    assert (named.name, named.object(12), named.facts) == ("sawtooth", 2, {})


def test_an_installed_package_goes_before_a_file_of_the_working_directory(folder):
    (folder / "json.py").write_text("raise SystemExit('not this one')\n")
    sys.modules.pop("json.tool", None)
    assert schedules().find("json.tool:main").__module__ == "json.tool"


def test_what_its_module_registers_keeps_its_name_and_facts(folder):
    (folder / "registering.py").write_text(
        "from tests.test_named_objects import SHARED\n\n\n"
        "@SHARED.register('saw', units='epochs')\ndef sawtooth(step):\n    return step % 10\n"
    )
    named = SHARED.named("registering:sawtooth")
    assert (named.name, named.facts) == ("saw", {"units": "epochs"})
    assert "saw" in SHARED.names()


SHARED = Registry("schedule")


def test_a_place_is_imported_when_it_is_named():
    registry = Registry("module", {"this": "this", "absent": "dinov2_hf.absent"})
    assert registry.names() == ["this", "absent"]
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("constnat", "no schedule 'constnat'. Did you mean `constant`? There are constant"),
        ("a module:name", "is not a `package.module:attribute`"),
        ("absent_package.schedules:saw", "there is no module absent_package among"),
        ("sawtooth_schedules:sawtoot", "no 'sawtoot'. Did you mean `sawtooth`"),
    ],
)
def test_a_wrong_name_is_a_sentence(folder, name, sentence):
    with pytest.raises(ValueError, match=r"schedule") as error:
        schedules().find(name)
    assert sentence in str(error.value)


def test_a_module_that_misses_another_says_which(folder):
    (folder / "with_a_gap.py").write_text("import absent_package\n")
    with pytest.raises(ModuleNotFoundError, match="absent_package"):
        schedules().find("with_a_gap:anything")


def test_two_things_never_share_a_name():
    registry = schedules()
    with pytest.raises(ValueError, match=r"registers the schedule 'constant', which .*constant is"):
        registry.register("constant")(len)


def test_near_names_and_those_that_contain_it():
    assert did_you_mean("decay", ["weight_decay", "layer_decay", "epochs"]) == (
        " Did you mean `weight_decay` or `layer_decay`?"
    )
    assert did_you_mean("xyz", ["epochs"]) == ""
    assert did_you_mean("ViT-S-14", ["vitg14", "vit_s14_long", "vit_s14"]) == (
        " Did you mean `vit_s14_long` or `vit_s14`?"
    )
