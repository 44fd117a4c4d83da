"""What is made again in the backward pass: the same numbers, and no kernel that is said to be kept."""

import copy
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2_hf import DINOv2Model
from dinov2_hf.options import options_of
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.training.recomputation import recompute_blocks


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.kernels = Counter()

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        self.kernels[kernel._schema.name.removeprefix("aten::")] += 1
        return kernel(*args, **(kwargs or {}))


def run(model: DINOv2Model, packed: bool) -> tuple[list, Counter]:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(4)
    crops = [torch.randn(4, 3, size, size, generator=generator) for size in (32, 16)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(out.square().sum() for out in model.forward_crops(crops, packed=packed))
    with Counted() as counted:
        loss.backward()
    return [parameter.grad for parameter in model.parameters()], counted.kernels


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_gradients_are_equal(tiny_config, how, drop_path_rate, swiglu):
    tiny_config.drop_path_rate, tiny_config.use_swiglu_ffn = drop_path_rate, swiglu
    model = DINOv2Model._from_config(tiny_config, attn_implementation="sdpa").train()
    recomputed = copy.deepcopy(model)
    recompute_blocks(recomputed, how)
    for packed in (True, False):
        (expected, usual), (gradients, kernels) = (run(one, packed) for one in (model, recomputed))
        for one, other in zip(expected, gradients, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
        attentions, products = (
            sum(number for name, number in (kernels - usual).items() if name.startswith(start))
            for start in ("_scaled_dot_product", ("mm", "addmm"))
        )
        # Of two blocks, each of two resolutions: attention; the widest product, which packing makes for both at once.
        widest = 2 if packed else 4
        assert (attentions, products > 3 * widest) == (4, True) if how == "full" else (0, False)
        assert how == "full" or products == widest


def test_true_and_false_are_words_for_two_of_them():
    option = options_of(PreTrainingArguments)["gradient_checkpointing"]
    assert [option.read(value) for value in (True, False, "true", "full")] == ["true", "false", "true", "full"]
    with pytest.raises(ValueError, match='must be "no" or "selective" or "full" or "true" or "false"'):
        option.read("some")
