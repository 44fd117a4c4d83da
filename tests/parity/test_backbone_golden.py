"""Our backbone gives the numbers of the original network, written by `write_backbone_golden.py`, to 1e-5."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dinov2_hf import DINOv2Config, DINOv2Model

from .backbone_cases import Case, all_cases, fill_with_random_values, fingerprints, largest_difference


GOLDEN = json.loads(Path(__file__).with_name("golden_backbone.json").read_text())["cases"]
CASES = all_cases()


def build(case: Case) -> DINOv2Model:
    with torch.device("meta"):  # the fill replaces every value: none needs to be drawn first
        model = DINOv2Model(DINOv2Config(**case.config))
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    fill_with_random_values(model, case.embeddings_scale)
    return model.eval()


def our_fingerprints(case: Case, model: DINOv2Model) -> dict[str, list[float]]:
    first_patch = 1 + model.config.num_register_tokens

    def forward(images: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        outputs = model(images, bool_masked_pos=mask, output_hidden_states=True)
        assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
        return {
            "embeddings": outputs.hidden_states[0],
            "x_prenorm": outputs.hidden_states[-1],
            "class_token": outputs.pooler_output,
            "registers": outputs.last_hidden_state[:, 1:first_patch],
            "patches": outputs.last_hidden_state[:, first_patch:],
        }

    return fingerprints(case, forward, model.get_intermediate_layers)


def test_golden_numbers_belong_to_the_cases():
    assert list(GOLDEN) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_original(name):
    case = CASES[name]
    assert largest_difference(our_fingerprints(case, build(case)), GOLDEN[name]) < 1e-5


def without_offset(model: DINOv2Model) -> None:
    model.embeddings.interpolate_offset = 0.0


def without_antialias(model: DINOv2Model) -> None:
    model.embeddings.interpolate_antialias = False


def transposed_positions(model: DINOv2Model) -> None:
    patches = model.embeddings.position_embeddings[:, 1:]
    patches.copy_(patches.unflatten(1, (37, 37)).transpose(1, 2).flatten(1, 2).clone())


def exchanged_query_and_key(model: DINOv2Model) -> None:
    attention = model.encoder.layer[0].attention.attention
    attention.query, attention.key = attention.key, attention.query


def exchanged_gate_halves(model: DINOv2Model) -> None:
    inner = model.encoder.layer[0].mlp.weights_in
    for parameter in (inner.weight, inner.bias):
        parameter.copy_(parameter.roll(len(parameter) // 2, 0))


def approximate_gelu(model: DINOv2Model) -> None:
    for layer in model.encoder.layer:
        layer.mlp.activation = nn.GELU(approximate="tanh")


def wider_epsilon(model: DINOv2Model) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def shifted_registers(model: DINOv2Model) -> None:
    registers = model.embeddings.register_tokens
    registers.copy_(registers.roll(1, 1))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("small-plain-224", without_offset),
        ("narrow-plain-grid-16x16", without_offset),
        ("small-registers-224", without_antialias),
        ("narrow-registers-grid-40x3", transposed_positions),
        ("small-plain-518x518", exchanged_query_and_key),
        ("giant-plain-224", exchanged_gate_halves),
        ("base-plain-224", approximate_gelu),
        ("narrow-plain-quiet", wider_epsilon),
        ("small-registers-98x98", shifted_registers),
    ],
)
def test_a_wrong_network_differs(name, damage):
    """What the comparison would notice: each of these mistakes moves the numbers by more than the tolerance."""
    case = CASES[name]
    model = build(case)
    with torch.no_grad():
        damage(model)
    assert largest_difference(our_fingerprints(case, model), GOLDEN[name]) > 3e-5
