"""What a step asks a device to multiply: against torch's counter of the same passes, and against the paper's ViT."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2Model, DINOv2PreTrainingConfig
from dinov2_hf.pretraining.step_flops import StepFlops, backbone_flops
from dinov2_hf.training.recomputation import recompute_blocks
from dinov2_hf.training.trained_parts import train_last_blocks


BACKBONE = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
    "drop_path_rate": 0.0,
}  # fmt: skip
HEADS = {"num_prototypes": 48, "head_hidden_size": 24, "bottleneck_size": 8}
VARIANTS = {
    "plain": ({}, {}),
    "swiglu and registers": ({"use_swiglu_ffn": True, "num_register_tokens": 2}, {}),
    "iBOT head": ({}, {"separate_ibot_head": True, "ibot_num_prototypes": 20}),
    "stochastic depth": ({"drop_path_rate": 0.4}, {}),
}


def model_of(backbone: dict, objective: dict) -> DINOv2ForPreTraining:
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**BACKBONE | backbone), **HEADS | objective)
    return DINOv2ForPreTraining._from_config(config, attn_implementation="eager").train()


def batch_of(num_masked: int) -> dict[str, torch.Tensor]:
    return {
        "global_crops": torch.randn(2, 5, 3, 16, 16),
        "local_crops": torch.randn(3, 5, 3, 8, 8),
        "masked_indices": torch.arange(num_masked),
    }


def counted(model: DINOv2ForPreTraining, batch: dict[str, torch.Tensor]) -> int:
    """The networks by themselves, each pass once, under torch's counter."""

    def run(network) -> torch.Tensor:
        seen = [network.backbone(crops.flatten(0, 1)).last_hidden_state for crops in crops_of[network]]
        cls = torch.cat([tokens[:, 0] for tokens in seen])
        patches = seen[0][:, 1 + network.backbone.config.num_register_tokens :].flatten(0, 1)
        patches = patches[batch["masked_indices"]]
        patch_head = network.ibot_head or network.dino_head
        return network.dino_head(cls).sum() + patch_head(patches).sum()

    crops_of = {
        model.student: [batch["global_crops"], batch["local_crops"]],
        model.teacher: [batch["global_crops"]],
    }
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            run(model.teacher)
        run(model.student).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_what_torch_counts(variant):
    model, batch = model_of(*VARIANTS[variant]), batch_of(7)
    assert StepFlops(model).of_pass(batch, {}) == counted(model, batch)


def test_what_is_not_trained_has_fewer_gradients():
    model, batch = model_of({}, {}), batch_of(7)
    everything = StepFlops(model).of_pass(batch, {})
    train_last_blocks(model.student.backbone, 1)
    assert StepFlops(model).of_pass(batch, {}) == counted(model, batch) < 0.9 * everything


def test_what_is_made_again_counts_once_and_unread_logits_do_not():
    model, batch = model_of({}, {}), batch_of(7)
    expected = StepFlops(model).of_pass(batch, {})
    recompute_blocks(model.student.backbone, "full")
    assert StepFlops(model).of_pass(batch, {}) == expected
    model.config.ibot_loss_weight = 0.0
    assert StepFlops(model).of_pass(batch, {}) == StepFlops(model).of_pass(batch_of(0), {}) < expected


def test_padding_is_not_counted():
    """The number of patches that count is on the device, and so is the answer."""
    model = model_of({}, {})
    padded = batch_of(9) | {"num_masked": torch.tensor(7)}
    found = StepFlops(model).of_pass(padded, {})
    assert isinstance(found, torch.Tensor)
    assert found.item() == StepFlops(model).of_pass(batch_of(7), {})


def test_a_vit_b_needs_what_papers_say():
    """17.6 GMAC for an image of 224 pixels in patches of 16 (DeiT), which is twice as many operations."""
    with torch.device("meta"):
        backbone = DINOv2Model(DINOv2Config(hidden_size=768, num_attention_heads=12, patch_size=16, image_size=224))
    assert backbone_flops(backbone, 1, (224, 224), is_trained=False) / 2e9 == pytest.approx(17.5, rel=0.01)


def test_networks_that_are_not_known_are_not_counted():
    model = model_of({}, {})
    assert StepFlops(model).is_known
    model.teach_with(object())
    assert not StepFlops(model).is_known
