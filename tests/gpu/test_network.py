"""A GPU computes what a CPU does."""

import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2Model


pytestmark = pytest.mark.gpu
SHAPES = {
    "mlp": {},
    "swiglu and registers": {"use_swiglu_ffn": True, "num_register_tokens": 4},
}


def tokens(model: DINOv2Model, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images.to(model.device)).last_hidden_state.float().cpu()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_features(spread, shape, attention):
    config = DINOv2Config(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14, **SHAPES[shape]
    )
    model = spread(DINOv2Model._from_config(config, attn_implementation=attention))
    images = torch.randn(2, 3, 70, 84)  # positions are resized too
    expected = tokens(model, images)
    model.to("cuda")
    torch.testing.assert_close(tokens(model, images), expected, atol=1e-4, rtol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = tokens(model, images)
    assert 0 < (rounded - expected).norm() / expected.norm() < 0.03
