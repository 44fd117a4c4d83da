"""
What a pretraining step may cost a GPU: no waiting for the host, and no more memory, bytes and kernels than it reached.

Costs are linear in the number of blocks, so two shallow networks tell those of a deep one; the first test holds that
against a network in full.
"""

from functools import cache

import pytest
import torch
import torch.distributed as dist
from transformers.initialization import no_init_weights

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.pretraining.rank_groups import RankGroups
from dinov2_hf.pretraining.step_flops import StepFlops
from dinov2_hf.pretraining.teachers import TeacherTokens
from dinov2_hf.pretraining.views import Crops
from dinov2_hf.runs import loop
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe


def arguments_of(recipe: str, *flags: str):
    words = ["--config", recipe, "--train_data", "", *flags]
    args, backbone, objective = parse_recipe(words, PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig])
    return args, DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)


@cache
def measure(recipe: str, num_layers: int, *flags: str) -> tuple[float, float, int]:
    """GiB at most, GB moved by kernels that are no products, kernels."""
    import simulated_step

    costs = simulated_step.simulate(*arguments_of(recipe, "--num_hidden_layers", str(num_layers), *flags))
    return costs.peak_bytes / 2**30, sum(costs.other_bytes.values()) / 1e9, costs.num_kernels


def extrapolate(recipe: str, num_layers: int, *flags: str) -> list[float]:
    """`measure` of a network of so many blocks, from those of 2 and 3."""
    two, three = (measure(recipe, few, *flags) for few in (2, 3))
    return [at_two + (num_layers - 2) * (at_three - at_two) for at_two, at_three in zip(two, three, strict=True)]


def test_costs_are_linear_in_depth():
    assert extrapolate("vits14_short", 12) == pytest.approx(measure("vits14_short", 12), rel=0.01)


# What was reached, and the memory that is wanted at most. Before anything was done it was 33.6 GiB, 281 GB and 2,248
# kernels; 47.5, 467, 5,056; 44.4, 371, 8,365. Of half of the bytes, which is wanted too, only the first has it.
BUDGETS = {
    ("vits14_short", 12): (15.97, 134.7, 2568, 16),
    ("vitl16_imagenet1k_short", 24): (25.99, 251.8, 4664, 30),
    ("vitg14", 40, "--per_device_train_batch_size", "12"): (31.46, 242.2, 7370, 38),
}


@pytest.mark.parametrize("network", BUDGETS, ids=lambda network: network[0])
def test_a_step_stays_within_its_budget(network):
    *budgets, wanted_gib = BUDGETS[network]
    found = extrapolate(*network)
    assert found[0] <= wanted_gib
    for reached, budget in zip(found, budgets, strict=True):
        assert reached <= 1.01 * budget


def test_what_is_multiplied_is_what_the_networks_need_and_little_more():
    """Attention and logits are made again in the backward pass, and logits of patches for Sinkhorn-Knopp; no more."""
    import simulated_step
    from simulated_gpu import fake_device

    args, config = arguments_of("vits14_short", "--num_hidden_layers", "2")
    costs = simulated_step.simulate(args, config)
    with fake_device("cpu"), no_init_weights():
        module = DINOv2ForPreTraining._from_config(config).train()
        needed = StepFlops(module).of_pass(simulated_step.fake_batch(args, config), {})
    assert 1 < costs.product_flops / needed < 1.4


RECIPES = {
    "softmax": ["--drop_path_rate", "0.3"],
    "sinkhorn": ["--centering", "sinkhorn_knopp", "--separate_ibot_head", "true"],
    "swiglu": ["--use_swiglu_ffn", "true", "--num_register_tokens", "4"],
}


def simulate_on_cuda(*flags: str):
    import simulated_step

    small = ["--num_hidden_layers", "2", "--per_device_train_batch_size", "4", "--num_prototypes", "512"]
    return simulated_step.simulate(*arguments_of("vits14_short", *small, *flags), device="cuda")


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_never_waits_for_the_host(name):
    """From the first kernel of the teacher to the last of the average, the vote on what is not finite included."""
    assert simulate_on_cuda(*RECIPES[name]).synchronisations == []


def test_an_exchange_of_images_never_waits_for_the_host(monkeypatch):
    """Between ranks of two students, however many patches of which image are masked."""
    from simulated_gpu import Costs, fake_device

    answers = {"get_world_size": 2, "get_rank": 1, "new_group": None, "all_to_all_single": None}
    for name, answer in answers.items():
        monkeypatch.setattr(dist, name, lambda *_, answer=answer: answer)
    with fake_device("cuda"):
        pixels, masks = torch.empty(2, 4, 3, 8, 8), torch.empty(8, 16, dtype=torch.bool)
        crops = Crops(pixels, pixels, masks, torch.empty(20).long(), torch.empty(20), torch.empty(()).long())
        with Costs() as costs:
            found, _ = RankGroups({"a": 1, "b": 1}).exchange_step(crops, TeacherTokens(pixels[..., 0, 0], pixels))
            assert found.is_counted.shape == (2 * 20,)
    assert costs.synchronisations == []


def test_a_wait_that_is_planted_in_the_loop_is_caught(monkeypatch):
    update = loop.Step.update

    def update_and_ask(step, optimizer):
        update(step, optimizer)
        return bool(step.left_out)

    monkeypatch.setattr(loop.Step, "update", update_and_ask)
    (wait,) = simulate_on_cuda().synchronisations
    assert f" at {__file__}:" in wait


def test_a_forgotten_tensor_of_the_host_is_caught(monkeypatch):
    import simulated_step

    make_batch = simulated_step.fake_batch

    def forget(*arguments):
        batch = make_batch(*arguments)
        return {**batch, "masked_weights": torch.empty_like(batch["masked_weights"], device="cpu")}

    monkeypatch.setattr(simulated_step, "fake_batch", forget)
    with pytest.raises(RuntimeError, match="found at least two devices, (cuda:0 and cpu|cpu and cuda:0)"):
        simulate_on_cuda()


@pytest.mark.parametrize("name", RECIPES)
def test_logits_of_many_rows_are_never_float32(name, monkeypatch):
    """Half of 128 rows: of the teacher's targets of crops, and of the first chunks of all others, there are more."""
    import simulated_step

    num_prototypes, large = 8192, []

    class Watching(simulated_step.Costs):
        def __torch_dispatch__(self, *call):
            result = super().__torch_dispatch__(*call)
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (num_prototypes,):
                    large.append((tensor.dtype, tensor.numel() // num_prototypes))
            return result

    monkeypatch.setattr(simulated_step, "Costs", Watching)
    flags = ["--num_hidden_layers", "1", "--per_device_train_batch_size", "64", "--bottleneck_size", "32"]
    flags += ["--num_prototypes", str(num_prototypes), *RECIPES[name]]
    simulated_step.simulate(*arguments_of("vits14_short", *flags))
    assert max(rows for dtype, rows in large if dtype == torch.bfloat16) == 1024
    assert max(rows for dtype, rows in large if dtype == torch.float32) < 64
