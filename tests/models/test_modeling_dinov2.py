"""The network: golden numbers of the specification, stock transformers as a second implementation, invariances."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from dinov2_hf import DINOv2Config, DINOv2Model
from dinov2_hf.models.modeling_dinov2 import DINOv2SwiGLUFFN
from dinov2_hf.models.position_interpolation import interpolate_position_embeddings


# Specification, section 1.4: a stored grid of 37 x 37, D = 1; out[0, 0], out[h // 2, w // 3], sum.
INTERPOLATED = [
    ((16, 16), 0.1, False, 1.1706163, -1.4370449, 61.02786),
    ((16, 16), 0.0, False, 1.1725361, -1.4092665, 58.50713),
    ((16, 16), 0.0, True, 1.1996589, -1.4085110, 59.21969),
    ((7, 7), 0.1, False, 1.4736118, -1.7679086, 12.65518),
    ((7, 7), 0.0, True, 1.4587978, -1.6464185, 12.19778),
    ((16, 20), 0.1, False, 1.1698915, -1.3346170, 75.93704),
    ((74, 50), 0.1, False, 0.9666090, -1.5371227, 852.17126),
]


@pytest.mark.parametrize(("grid", "offset", "antialias", "first", "middle", "total"), INTERPOLATED)
def test_position_interpolation(grid, offset, antialias, first, middle, total):
    rows, columns = torch.meshgrid(torch.arange(37.0), torch.arange(37.0), indexing="ij")
    stored = (
        torch.sin(0.3 * rows) + torch.cos(0.22 * columns) + 0.05 * torch.cos(1.7 * rows) * torch.sin(1.3 * columns)
    )
    positions = torch.cat([torch.tensor([[[5.0]]]), stored.view(1, -1, 1)], dim=1)
    out = interpolate_position_embeddings(positions, grid, offset=offset, antialias=antialias)
    assert out[0, 0, 0] == 5
    out = out[0, 1:, 0].view(grid)
    assert out[0, 0].item() == pytest.approx(first, abs=1e-5)
    assert out[grid[0] // 2, grid[1] // 3].item() == pytest.approx(middle, abs=1e-5)
    assert out.sum().item() == pytest.approx(total, abs=2e-3)


def test_positions_of_the_stored_grid_are_not_touched():
    positions = torch.randn(1, 17, 3)
    assert interpolate_position_embeddings(positions, (4, 4), offset=0.1, antialias=False) is positions
    assert interpolate_position_embeddings(positions, (2, 8), offset=0.1, antialias=False).shape == (1, 17, 3)


@pytest.mark.parametrize(
    ("hidden_size", "layers", "heads", "swiglu", "patch", "size", "expected"),
    [
        (384, 12, 6, False, 14, 518, 22_056_576),
        (768, 12, 12, False, 14, 224, 85_725_696),
        (1024, 24, 16, True, 14, 224, 303_655_168),
        (1024, 24, 16, False, 16, 224, 303_351_808),
        (1536, 40, 24, True, 14, 518, 1_136_480_768),
    ],
)
def test_parameter_counts(hidden_size, layers, heads, swiglu, patch, size, expected):
    config = DINOv2Config(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        use_swiglu_ffn=swiglu,
        patch_size=patch,
        image_size=size,
    )
    for registers in (0, 4):
        config.num_register_tokens = registers
        with torch.device("meta"):
            model = DINOv2Model(config)
        assert sum(p.numel() for p in model.parameters()) == expected + registers * hidden_size


@pytest.mark.parametrize(("hidden_size", "expected"), [(1024, 2736), (1536, 4096), (768, 2048), (384, 1024)])
def test_swiglu_width(hidden_size, expected):
    config = DINOv2Config(hidden_size=hidden_size, num_attention_heads=hidden_size // 64)
    assert DINOv2SwiGLUFFN(config).weights_out.in_features == expected


def test_initial_weights():
    model = DINOv2Model(
        DINOv2Config(hidden_size=256, num_hidden_layers=1, num_attention_heads=4, num_register_tokens=4,
                     layerscale_value=1e-5)
    )  # fmt: skip
    weights = model.state_dict()
    bound = (3 * 14 * 14) ** -0.5
    for name in ("weight", "bias"):
        projection = weights[f"embeddings.patch_embeddings.projection.{name}"]
        assert projection.abs().max() <= bound
        assert projection.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    for name in ("embeddings.position_embeddings", "encoder.layer.0.mlp.fc1.weight"):
        assert weights[name].std() == pytest.approx(0.02, rel=0.05)
    for name in ("embeddings.cls_token", "embeddings.register_tokens"):
        assert weights[name].std() == pytest.approx(1e-6, rel=0.2)
    assert weights["embeddings.mask_token"].abs().max() == 0
    assert (weights["encoder.layer.0.layer_scale1.lambda1"] == 1e-5).all()


def test_every_parameter_is_initialised(tiny_config):
    """Memory is poisoned with NaN before the weights are made: a forgotten tensor would show."""
    tiny_config.num_register_tokens = 2
    with torch.device("meta"):
        model = DINOv2Model(tiny_config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
            parameter._is_hf_initialized = False
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def stock_twin(config: DINOv2Config) -> torch.nn.Module:
    shared = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
        "use_swiglu_ffn": config.use_swiglu_ffn,
    }  # fmt: skip
    if config.num_register_tokens:
        return Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**shared, num_register_tokens=config.num_register_tokens)
        )
    return Dinov2Model(Dinov2Config(**shared))


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 3])
def test_equal_to_stock_transformers(tmp_path, tiny_config, registers, swiglu):
    """Saved weights have the Hub's names, so stock classes load them as they are; masks and other sizes agree."""
    tiny_config.num_register_tokens, tiny_config.use_swiglu_ffn = registers, swiglu
    tiny_config.interpolate_offset, tiny_config.interpolate_antialias = 0.0, registers > 0
    model = DINOv2Model(tiny_config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    stock = stock_twin(tiny_config)
    stock.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "ours")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "ours" / "model.safetensors").rename(tmp_path / "model.safetensors")
    stock, report = type(stock).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    stock.eval()
    mask = torch.rand(2, 16) < 0.4
    for size, masked in (((32, 32), mask), ((32, 32), None), ((48, 24), None)):
        pixels = torch.randn(2, 3, *size)
        with torch.no_grad():
            ours = model(pixels, bool_masked_pos=masked).last_hidden_state
            theirs = stock(pixels, bool_masked_pos=masked).last_hidden_state
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_crops_equal_separate_passes(tiny_config, registers, implementation):
    tiny_config.num_register_tokens = registers
    model = DINOv2Model._from_config(tiny_config, attn_implementation=implementation).train()
    crops = [torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)]
    mask = torch.rand(4, 16) < 0.4
    packed = model.forward_crops(crops, [mask, None], packed=True)
    separate = [
        model(crops[0], bool_masked_pos=mask).last_hidden_state,
        model(crops[1]).last_hidden_state,
    ]
    for one, other in zip(model.forward_crops(crops, [mask, None]), separate, strict=True):
        assert torch.equal(one, other)  # what a CPU does
    for one, other in zip(packed, separate, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = [torch.randn_like(one) for one in packed]
    losses = [sum((o * w).sum() for o, w in zip(out, weights, strict=True)) for out in (packed, separate)]
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_the_residual_stream_stays_float32_under_autocast(tiny_config, drop_path_rate):
    tiny_config.drop_path_rate, tiny_config.layerscale_value = drop_path_rate, 1e-5
    model = DINOv2Model(tiny_config).train()
    stream = []
    for layer in model.encoder.layer:
        layer.register_forward_hook(lambda module, inputs, output: stream.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.forward_crops([torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)], packed=True)
    assert stream == [(torch.float32, torch.float32)] * 2


def test_gradient_checkpointing_changes_nothing(tiny_config):
    tiny_config.drop_path_rate = 0.5
    model = DINOv2Model(tiny_config).train()
    recomputed = copy.deepcopy(model)
    recomputed.gradient_checkpointing_enable()
    crops = [torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)]
    for network in (model, recomputed):
        torch.manual_seed(3)
        sum(out.square().sum() for out in network.forward_crops(crops, packed=True)).backward()
    for one, other in zip(model.parameters(), recomputed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


def test_auto_model_and_hidden_states(tmp_path, tiny_config):
    model = DINOv2Model(tiny_config).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(loaded) is DINOv2Model
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels)
        outputs = loaded(pixels, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    assert len(outputs.hidden_states) == 3
    torch.testing.assert_close(model.layernorm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    assert [a.shape for a in outputs.attentions] == [(2, 2, 17, 17)] * 2
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 2, 17))
    tokens, as_tuple = loaded(pixels, return_dict=False)[0], loaded(pixels)[0]
    assert torch.equal(tokens, as_tuple)


def test_bad_input_is_one_sentence(tiny_config):
    model = DINOv2Model(tiny_config)
    with pytest.raises(ValueError, match="30 x 32 pixels; both must be multiples of the patch size, 8"):
        model(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="4 channels; this model was configured for 3"):
        model(torch.zeros(1, 4, 32, 32))
    with pytest.raises(StrictDataclassError, match="`hidden_size` is 100"):
        DINOv2Config(hidden_size=100, num_attention_heads=3)
    with pytest.raises(StrictDataclassError, match="`image_size` is 30, which is not a multiple of `patch_size`"):
        DINOv2Config(image_size=30, patch_size=8)
    with pytest.raises(StrictDataclassError, match="`drop_path_rate` is 1"):
        DINOv2Config(drop_path_rate=1)
