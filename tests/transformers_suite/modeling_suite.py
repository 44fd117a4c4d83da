"""
Our classes under transformers' common model, backbone and pipeline tests.

Runs inside the unpacked source distribution, where `tests` is transformers' own folder; see
`test_transformers_suite.py`.
"""

import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from dinov2_hf import (
    DINOv2Backbone,
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2ImageProcessorPil,
    DINOv2Model,
)
from tests import test_pipeline_mixin
from tests.test_backbone_common import BackboneTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tests.test_pipeline_mixin import PipelineTesterMixin


# By the names in these tables, which registration does not touch, the mixins know which labels a class takes and
# which classes have no loss.
modeling_auto.MODEL_MAPPING_NAMES["dinov2_hf"] = DINOv2Model.__name__
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["dinov2_hf"] = DINOv2Backbone.__name__
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["dinov2_hf"] = DINOv2ForImageClassification.__name__
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["dinov2_hf"] = DINOv2ForSemanticSegmentation.__name__

# The pipeline tests take the processors' classes from the transformers module, and the checks of each pipeline from
# files that the distribution lacks.
test_pipeline_mixin.transformers_module.DINOv2ImageProcessor = DINOv2ImageProcessor
test_pipeline_mixin.transformers_module.DINOv2ImageProcessorPil = DINOv2ImageProcessorPil
test_pipeline_mixin.pipeline_test_mapping |= {
    "image-feature-extraction": {"test": "tests.models.dinov2_hf.pipeline_checks.ImageFeatureExtractionChecks"},
    "image-classification": {"test": "tests.models.dinov2_hf.pipeline_checks.ImageClassificationChecks"},
}


class DINOv2ModelTester:
    """Tiny configurations and inputs, under the attribute names that the mixins read."""

    batch_size = 3
    image_size = 32
    patch_size = 8
    num_channels = 3
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4

    def __init__(self, num_register_tokens: int = 0, use_swiglu_ffn: bool = False, is_training: bool = True):
        self.num_register_tokens = num_register_tokens
        self.use_swiglu_ffn = use_swiglu_ffn
        self.is_training = is_training
        num_patches = (self.image_size // self.patch_size) ** 2
        self.seq_length = 1 + num_register_tokens + num_patches
        # Of `bool_masked_pos`, which covers patches alone.
        self.mask_length, self.num_masks = num_patches, num_patches // 2

    def get_config(self) -> DINOv2Config:
        return DINOv2Config(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_register_tokens=self.num_register_tokens,
            use_swiglu_ffn=self.use_swiglu_ffn,
            attn_implementation="eager",  # the one that returns attention weights
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[DINOv2Config, dict[str, torch.Tensor]]:
        pixel_values = torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": pixel_values.to(torch_device)}


class DINOv2ModelTest(ModelTesterMixin, unittest.TestCase):
    """With the MLP, without registers."""

    all_model_classes = (
        DINOv2Model,
        DINOv2Backbone,
        DINOv2ForImageClassification,
        DINOv2ForSemanticSegmentation,
    )
    test_resize_embeddings = False  # patches are no vocabulary
    test_all_params_have_gradient = False  # the mask token is used in pretraining only
    test_can_init_all_missing_weights_before_2023 = True  # the mixin looks for the year of a licence header

    def setUp(self):
        self.model_tester = DINOv2ModelTester()

    def test_config(self):
        ConfigTester(self, DINOv2Config, has_text_modality=False, hidden_size=36).run_common_tests()

    def test_model_get_set_embeddings(self):
        """The mixin's asks for a vocabulary; the input embeddings here are the patches'."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            base = getattr(model, model.base_model_prefix, model)
            assert model.get_input_embeddings() is base.embeddings.patch_embeddings
            replacement = torch.nn.Identity()
            model.set_input_embeddings(replacement)
            assert base.embeddings.patch_embeddings is replacement
            assert model.get_output_embeddings() is None

    def test_reverse_loading_mapping(self):
        """The mixin's wants renamings undone on saving; ours only read stock checkpoints, and saving keeps names."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                model_class.from_pretrained(folder).save_pretrained(folder)
                saved = load_file(Path(folder, "model.safetensors"))
            assert saved.keys() == model.state_dict().keys()
            for name, parameter in model.state_dict().items():
                assert torch.equal(parameter, saved[name]), name


class DINOv2WithRegistersModelTest(DINOv2ModelTest):
    """With SwiGLU and four registers."""

    def setUp(self):
        self.model_tester = DINOv2ModelTester(num_register_tokens=4, use_swiglu_ffn=True)


class DINOv2ForDepthEstimationTest(DINOv2ModelTest):
    """The head without a loss, which the tables above cannot say of it."""

    all_model_classes = (DINOv2ForDepthEstimation,)

    def setUp(self):
        self.model_tester = DINOv2ModelTester(num_register_tokens=4, is_training=False)


class DINOv2BackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (DINOv2Backbone,)
    config_class = DINOv2Config

    def setUp(self):
        self.model_tester = DINOv2ModelTester()


class DINOv2WithRegistersBackboneTest(DINOv2BackboneTest):
    def setUp(self):
        self.model_tester = DINOv2ModelTester(num_register_tokens=4, use_swiglu_ffn=True)


class DINOv2PipelineTest(PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {
        "image-feature-extraction": DINOv2Model,
        "image-classification": DINOv2ForImageClassification,
    }
