"""What files declare, read from their text: the same as what they declare when they are imported."""

import inspect
from importlib import import_module

import pytest
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dinov2_hf.conversion.exports.formats import EXPORTS
from dinov2_hf.declarations import declared, registered
from dinov2_hf.evaluation.protocols import PROTOCOLS
from dinov2_hf.options import keyword_options, options_of
from dinov2_hf.runs import distillation_plan, pretraining_plan
from dinov2_hf.runs.pretraining_arguments import IMAGENET_MEAN, IMAGENET_STD
from dinov2_hf_command import COMMANDS


def imported(place: str):
    module, _, name = place.partition(":")
    return getattr(import_module(f"dinov2_hf.{module}"), name)


@pytest.mark.parametrize(
    "place",
    [
        *(f"cli.{command}:{command}" for command in COMMANDS),
        "conversion.original.from_original:convert_from_original",
        "conversion.original.to_original:convert_to_original",
        "curation.arguments:CurationArguments",
    ],
)
def test_options(place):
    assert options_of(declared(place)) == options_of(imported(place))


@pytest.mark.parametrize("plan", [pretraining_plan, distillation_plan])
def test_options_of_runs(plan):
    kinds = declared(f"{plan.__name__.removeprefix('dinov2_hf.')}:KINDS")
    assert [options_of(kind) for kind in kinds] == [options_of(kind) for kind in plan.KINDS]


@pytest.mark.parametrize("registry", [PROTOCOLS, EXPORTS], ids=lambda registry: registry.kind)
def test_what_is_registered(registry):
    for name in [*registry.places, *registry.places]:  # the second time as the first
        function = registered(registry, name)
        assert keyword_options(function) == keyword_options(registry.find(name))
        assert inspect.getdoc(function) == inspect.getdoc(registry.find(name))
    with pytest.raises(KeyError):
        registered(registry, "none")


def test_a_registry_and_a_constant():
    assert declared("evaluation.protocols:PROTOCOLS").places == PROTOCOLS.places
    assert declared("curation.arguments:STEPS") == imported("curation.arguments:STEPS")


def test_what_is_only_declared_cannot_be_called():
    with pytest.raises(TypeError, match="only declared"):
        declared("cli.push:push")("folder", repo_id="a/b")
    with pytest.raises(LookupError, match="declares no 'pull'"):
        declared("cli.push:pull")


def test_numbers_of_imagenet_are_those_of_transformers():
    assert (IMAGENET_MEAN, IMAGENET_STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
