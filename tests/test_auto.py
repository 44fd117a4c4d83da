"""Registration: our folders load through the Auto classes, and transformers' own models stay what they are."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, Dinov2Config, Dinov2Model

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2Model, DINOv2PreTrainingConfig
from dinov2_hf.auto import register


def test_ours_through_the_auto_classes(tiny_config):
    register()  # once more does no harm
    assert type(AutoConfig.for_model("dinov2_hf")) is DINOv2Config
    assert type(AutoModel.from_config(tiny_config)) is DINOv2Model
    config = DINOv2PreTrainingConfig(
        backbone_config=tiny_config, num_prototypes=8, head_hidden_size=8, bottleneck_size=4
    )
    assert type(AutoModelForPreTraining.from_config(config)) is DINOv2ForPreTraining


def test_stock_dinov2_is_still_stock(tmp_path):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    Dinov2Model(config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is Dinov2Config
    assert type(AutoModel.from_pretrained(tmp_path)) is Dinov2Model
