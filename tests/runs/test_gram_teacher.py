"""The Gram teacher of a run: what it reads of a model folder, and what it refuses."""

import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2Model, DINOv2PreTrainingConfig
from dinov2_hf.runs.gram_teacher import load_gram_teacher
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


def loaded(source, **values):
    args = PreTrainingArguments(
        train_data="", gram_teacher=str(source), loss_terms={"gram_anchoring": 1.0}, dataloader_num_workers=0, **values
    )
    return load_gram_teacher(str(source), args, 3, bf16=False, device=torch.device("cpu"))


def test_of_a_run_with_heads_it_is_the_averaged_backbone(tmp_path, spread):
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**SIZES), num_prototypes=8, head_hidden_size=8)
    model = spread(DINOv2ForPreTraining(config))
    model.save_pretrained(tmp_path)
    crops = torch.randn(2, 1, 3, 16, 16)
    tokens = model.teacher.backbone(crops.flatten(0, 1)).last_hidden_state
    found = loaded(tmp_path).tokens(crops)
    torch.testing.assert_close(found.patches.flatten(0, 3), tokens[:, 1:].flatten(0, 1))


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="`gram_teacher`: .* does not exist"):
        loaded("./nowhere")
    DINOv2Model(DINOv2Config(**SIZES, num_channels=4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a network for 4 channels, but the crops have 3; use a network for these"):
        loaded(tmp_path)
    with pytest.raises(ValueError, match="has gram_anchoring, but `gram_teacher` is not set"):
        PreTrainingArguments(train_data="", loss_terms={"gram_anchoring": 1.0})
    with pytest.raises(ValueError, match="is 3, but `export_every` is 2, and the new Gram teacher is"):
        loaded(tmp_path, gram_teacher_update_steps=3, export_every=2)
    with pytest.raises(ValueError, match="but no loss term reads it; add gram_anchoring to `loss_terms`"):
        PreTrainingArguments(train_data="", gram_teacher="somewhere")
