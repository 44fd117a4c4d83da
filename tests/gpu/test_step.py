"""A pretraining step on a GPU: its gradients, its waiting, its memory."""

import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe


pytestmark = pytest.mark.gpu


def arguments_of(*flags: str):
    words = ["--config", "vits14_short", "--train_data", "", *flags]
    args, backbone, objective = parse_recipe(words, PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig])
    return args, DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)


SMALL = arguments_of("--num_hidden_layers", "2", "--per_device_train_batch_size", "4", "--num_prototypes", "512")


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp"])
def test_gradients_are_those_of_a_cpu(centering):
    """Packed crops there, one pass for each resolution here."""
    from pretraining_step import random_batch

    args, config = SMALL
    config = DINOv2PreTrainingConfig(**{**config.to_dict(), "centering": centering})
    model, batch = DINOv2ForPreTraining(config).train(), random_batch(args, config)
    state, gradients = model.state_dict(), []
    for device, packed in (("cpu", False), ("cuda", True)):
        model = DINOv2ForPreTraining(config).train()
        model.load_state_dict(state)
        model.to(device)
        model.is_packed = packed
        there = {name: value.to(device) for name, value in batch.items()}
        loss = model(**there, teacher_temperature=0.07).loss
        loss.backward()
        found = {name: parameter.grad for name, parameter in model.student.named_parameters()}
        gradients.append({name: value.cpu() for name, value in found.items() if value is not None} | {"": loss.cpu()})
    of_cpu, of_gpu = gradients
    assert of_cpu.keys() == of_gpu.keys()
    for name, expected in of_cpu.items():
        assert (of_gpu[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-7, name


@pytest.fixture
def variant():
    """The step as it is timed: bfloat16, packed crops, clipping, AdamW and the teacher's update; and its batch."""
    from pretraining_step import Variant, random_batch

    def build(args, config):
        batch = {name: value.to("cuda") for name, value in random_batch(args, config).items()}
        step = Variant("packed-bf16", args, config, torch.device("cuda"))
        return step, lambda: step.step(batch, "warm up")

    return build


def test_the_host_waits_for_nothing(variant, monkeypatch):
    own, step = variant(*SMALL)
    step()
    monkeypatch.setattr(own, "now", lambda: 0.0)  # the clock waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_wait_is_noticed():
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(2, device="cuda").sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_what_the_simulation_says(variant):
    from simulated_step import simulate

    args, config = arguments_of("--num_hidden_layers", "4", "--per_device_train_batch_size", "32")
    simulated = simulate(args, config).peak_bytes
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    _, step = variant(args, config)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(simulated, rel=0.1)
