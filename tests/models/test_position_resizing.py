import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2ForImageClassification, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.models import DINOv2Model, resize_position_embeddings


@pytest.mark.parametrize(("offset", "antialias"), [(0.1, False), (0.0, True)])
@pytest.mark.parametrize("image_size", [16, 72])
def test_features_at_the_new_size_are_those_from_before(tiny_config, spread, offset, antialias, image_size):
    tiny_config.interpolate_offset, tiny_config.interpolate_antialias = offset, antialias
    model = spread(DINOv2Model(tiny_config))
    pixels = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        before = model(pixels).last_hidden_state
        assert resize_position_embeddings(model, image_size) is model
        assert model.embeddings.position_embeddings.shape == (1, 1 + (image_size // 8) ** 2, 32)
        assert torch.equal(model(pixels).last_hidden_state, before)
    assert model.config.image_size == image_size


def test_every_backbone_is_resized_and_stays_trainable_or_not(tiny_config, tmp_path):
    config = DINOv2PreTrainingConfig(
        backbone_config=tiny_config, num_prototypes=8, head_hidden_size=8, bottleneck_size=4
    )
    model = resize_position_embeddings(DINOv2ForPreTraining(config), 48)
    student, teacher = (network.backbone.embeddings.position_embeddings for network in (model.student, model.teacher))
    assert student.shape == teacher.shape == (1, 37, 32)
    assert student.requires_grad
    assert not teacher.requires_grad
    model.save_pretrained(tmp_path)
    assert DINOv2ForPreTraining.from_pretrained(tmp_path).config.backbone_config.image_size == 48


def test_a_model_with_a_head(tiny_config):
    model = resize_position_embeddings(DINOv2ForImageClassification(tiny_config), 64)
    assert model.config.image_size == model.dinov2.config.image_size == 64


def test_what_cannot_be_resized(tiny_config):
    with pytest.raises(ValueError, match="`image_size` is 30; it must be a multiple of the patch size, 8"):
        resize_position_embeddings(DINOv2Model(tiny_config), 30)
    with pytest.raises(ValueError, match="`model` is a DINOv2Encoder"):
        resize_position_embeddings(DINOv2Model(DINOv2Config(**tiny_config.to_dict())).encoder, 32)
