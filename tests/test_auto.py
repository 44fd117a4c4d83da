"""Registration: our folders load through the Auto classes, and transformers' own models stay what they are."""

import subprocess
import sys

import pytest
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


@pytest.mark.slow
@pytest.mark.parametrize("is_first", [True, False])
def test_the_auto_classes_know_ours_whichever_is_imported_first(is_first):
    """And import a class when somebody asks for it."""
    imports = ["import dinov2_hf", "from transformers import AutoConfig, AutoModel"]
    code = "\n".join(["import sys", *(imports if is_first else reversed(imports))])
    code += """
assert not {"transformers.modeling_utils", "torchvision", "accelerate", "datasets"} & set(sys.modules)
assert not {"dinov2_hf.models.modeling_dinov2", "dinov2_hf.models.pipelines"} & set(sys.modules)
small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 14}
model = AutoModel.from_config(AutoConfig.for_model("dinov2_hf", **small))
assert type(model) is dinov2_hf.DINOv2Model
assert not {"datasets", "cv2", "pandas", "sklearn", "faiss", "matplotlib"} & set(sys.modules)
from transformers.pipelines import PIPELINE_REGISTRY
implementation = PIPELINE_REGISTRY.check_task("image-classification")[1]["impl"]
assert implementation.__module__ == "dinov2_hf.models.pipelines"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
