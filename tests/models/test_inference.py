"""Ways to run the network: intermediate layers, dtypes, devices, shards, attention, compilation, channels."""

import pytest
import torch
from PIL import Image
from transformers import AutoModel

from dinov2_hf import (
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2ImageProcessorPil,
    DINOv2Model,
    adapt_num_channels,
)


@pytest.fixture
def model(tiny_config, spread):
    tiny_config.num_register_tokens = 2
    tiny_config.num_hidden_layers = 3
    return spread(DINOv2Model(tiny_config))


@torch.no_grad()
def test_intermediate_layers(model):
    pixels = torch.randn(2, 3, 16, 40)  # 2 x 5 patches
    hidden_states = model(pixels, output_hidden_states=True).hidden_states
    for n, blocks in ((1, [2]), (3, [0, 1, 2]), ([2, 0], [0, 2]), ((1,), [1])):
        layers = model.get_intermediate_layers(pixels, n)
        assert isinstance(layers, tuple)
        for block, patches in zip(blocks, layers, strict=True):
            torch.testing.assert_close(patches, model.layernorm(hidden_states[block + 1])[:, 3:])
    for patches, cls in model.get_intermediate_layers(pixels, [1], return_class_token=True, norm=False):
        torch.testing.assert_close(patches, hidden_states[2][:, 3:])
        torch.testing.assert_close(cls, hidden_states[2][:, 0])
    (maps,) = model.get_intermediate_layers(pixels, reshape=True)
    assert maps.shape == (2, 32, 2, 5)
    last = model(pixels).last_hidden_state
    for row in range(2):
        for column in range(5):
            torch.testing.assert_close(maps[:, :, row, column], last[:, 3 + 5 * row + column])


@pytest.mark.parametrize("n", [0, 4, [], [0, 0], [-1], [3]])
def test_intermediate_layers_that_do_not_exist(model, n):
    with pytest.raises(ValueError, match="it must be a number from 1 to 3, or different blocks from 0 to 2"):
        model.get_intermediate_layers(torch.zeros(1, 3, 32, 32), n)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def test_attention_implementations_agree(model, implementation):
    """Of flex attention the formula: what a compiler makes of it is torch's own, and takes half a minute here."""
    pixels = torch.randn(2, 3, 32, 24)
    model.set_attn_implementation("eager")
    expected = model(pixels).last_hidden_state
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_flash_attention_without_an_accelerator_says_why(tmp_path, model):
    model.save_pretrained(tmp_path)
    if torch.cuda.is_available():
        pytest.skip("flash attention may be usable here")
    with pytest.raises((ImportError, ValueError), match="(?i)flash"):
        DINOv2Model.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "head", [DINOv2Model, DINOv2ForImageClassification, DINOv2ForSemanticSegmentation, DINOv2ForDepthEstimation]
)
@torch.no_grad()
def test_compiles_without_graph_breaks(tiny_config, spread, head):
    tiny_config.num_register_tokens = 2
    network = spread(head(tiny_config))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=False)
    for pixels in (torch.randn(2, 3, 32, 32), torch.randn(1, 3, 16, 48)):
        outputs, expected = compiled(pixels), network(pixels)
        for name in expected:
            torch.testing.assert_close(outputs[name], expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_training_compiles_without_graph_breaks(tiny_config):
    """With stochastic depth, over several resolutions in one sequence."""
    tiny_config.drop_path_rate = 0.4
    network = DINOv2Model(tiny_config).train()
    crops = [torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)]
    forward_crops = torch.compile(network.forward_crops, fullgraph=True, backend="aot_eager", dynamic=False)
    sum(tokens.square().sum() for tokens in forward_crops(crops, packed=True)).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.encoder.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(tmp_path, model, dtype):
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    pixels = torch.randn(2, 3, 32, 48)  # float32 pixels are cast; positions are interpolated in float32
    outputs = half(pixels).last_hidden_state
    assert outputs.dtype == dtype
    expected = model(pixels).last_hidden_state
    cosine = torch.cosine_similarity(outputs.float(), expected, dim=-1)
    assert cosine.min() > (0.9999 if dtype == torch.float16 else 0.999)
    half.save_pretrained(tmp_path / "half")
    assert AutoModel.from_pretrained(tmp_path / "half").dtype == dtype  # as it was saved
    assert AutoModel.from_pretrained(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


@torch.no_grad()
def test_int8_weights(tmp_path, model):
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    model.save_pretrained(tmp_path)
    quantized = AutoModel.from_pretrained(tmp_path, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    weight = quantized.encoder.layer[0].mlp.fc1.weight
    assert type(weight) is not torch.nn.Parameter
    pixels = torch.randn(2, 3, 32, 32)
    outputs, expected = quantized(pixels).last_hidden_state, model(pixels).last_hidden_state
    assert torch.cosine_similarity(outputs.float(), expected, dim=-1).min() > 0.999


@torch.no_grad()
def test_device_map_and_shards(tmp_path, model):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    pixels = torch.randn(1, 3, 32, 32)
    expected = model(pixels).last_hidden_state
    for device_map in (None, "auto", "cpu", {"": "cpu"}):
        loaded = DINOv2Model.from_pretrained(tmp_path, device_map=device_map)
        assert torch.equal(loaded(pixels).last_hidden_state, expected)
    offloaded = DINOv2Model.from_pretrained(
        tmp_path,
        device_map={"embeddings": "cpu", "encoder.layer.0": "cpu", "encoder.layer.1": "disk", "encoder.layer.2": "cpu",
                    "layernorm": "cpu"},
        offload_folder=tmp_path / "offload",
    )  # fmt: skip
    torch.testing.assert_close(offloaded(pixels).last_hidden_state, expected)


def test_a_truncated_file_does_not_load(tmp_path, model):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(Exception, match="(?i)incomplete metadata"):
        DINOv2Model.from_pretrained(tmp_path)


@pytest.mark.parametrize("num_channels", [1, 4, 8])
@torch.no_grad()
def test_other_numbers_of_channels(tmp_path, model, num_channels):
    rgb = torch.randn(2, 1, 32, 32).expand(2, 3, 32, 32)
    expected = model(rgb).last_hidden_state
    assert adapt_num_channels(model, num_channels) is model
    tokens = model(rgb[:, :1].expand(2, num_channels, 32, 32)).last_hidden_state
    if num_channels == 1:
        torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    else:
        assert torch.cosine_similarity(tokens, expected, dim=-1).mean() > 0.9
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.num_channels == num_channels
    pixels = torch.randn(1, num_channels, 32, 32)
    assert torch.equal(loaded(pixels).last_hidden_state, model(pixels).last_hidden_state)
    with pytest.raises(ValueError, match=f"3 channels; this model was configured for {num_channels}"):
        model(rgb)


@torch.no_grad()
def test_six_channels_of_grey_equal_three(tiny_config, spread):
    head = spread(DINOv2ForImageClassification(tiny_config))
    grey = torch.randn(2, 1, 32, 32)
    expected = head(grey.expand(2, 3, 32, 32)).logits
    torch.testing.assert_close(
        adapt_num_channels(head, 6)(grey.expand(2, 6, 32, 32)).logits, expected, atol=1e-5, rtol=1e-5
    )


def test_no_channels():
    with pytest.raises(ValueError, match="`num_channels` is 0"):
        adapt_num_channels(torch.nn.Module(), 0)


@pytest.mark.parametrize("processor_class", [DINOv2ImageProcessor, DINOv2ImageProcessorPil])
def test_images_of_other_numbers_of_channels(processor_class):
    """Four channels need a mean and deviation for each, and no conversion to RGB."""
    processor = processor_class(
        do_convert_rgb=False,
        image_mean=[0.1, 0.2, 0.3, 0.4],
        image_std=[0.5] * 4,
        do_resize=False,
        do_center_crop=False,
    )
    image = torch.randint(0, 256, (4, 32, 24), dtype=torch.uint8)
    pixels = processor(images=image, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    expected = (image / 255 - torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None]) / 0.5
    torch.testing.assert_close(pixels[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("processor_class", [DINOv2ImageProcessor, DINOv2ImageProcessorPil])
def test_a_grey_photograph_becomes_rgb(processor_class):
    image = Image.linear_gradient("L")
    one, other = (
        processor_class()(images=i, return_tensors="pt")["pixel_values"] for i in (image, image.convert("RGB"))
    )
    assert one.shape == (1, 3, 224, 224)
    assert torch.equal(one, other)


class FirstOutput(torch.nn.Module):
    """A model that gives one tensor, or several, as `torch.jit.trace` wants it."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, pixel_values):
        if self.name == "intermediate":
            return self.model.get_intermediate_layers(pixel_values, 2, reshape=True)
        return self.model(pixel_values)[self.name]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("traced_size", [(32, 32), (24, 40)])
@pytest.mark.parametrize(("offset", "antialias", "registers"), [(0.1, False, 0), (0.0, True, 2)])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DINOv2Model, "last_hidden_state"),
        (DINOv2Model, "intermediate"),
        (DINOv2ForImageClassification, "logits"),
        (DINOv2ForSemanticSegmentation, "logits"),
        (DINOv2ForDepthEstimation, "predicted_depth"),
    ],
)
@torch.no_grad()
def test_one_trace_is_right_at_every_size(
    tiny_config, spread, tmp_path, kind, name, offset, antialias, registers, traced_size
):
    tiny_config.interpolate_offset, tiny_config.interpolate_antialias = offset, antialias
    tiny_config.num_register_tokens = registers
    network = FirstOutput(spread(kind(tiny_config)), name).eval()
    torch.jit.trace(network, torch.randn(2, 3, *traced_size)).save(tmp_path / "traced.pt")
    traced = torch.jit.load(tmp_path / "traced.pt")
    for batch_size, height, width in ((2, *traced_size), (1, 32, 32), (3, 16, 48), (2, 64, 64)):
        pixels = torch.randn(batch_size, 3, height, width)
        torch.testing.assert_close(traced(pixels), network(pixels), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("call", ["forward", "get_intermediate_layers", "forward_crops"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), r"has the shape \(3, 32, 32\), but .*; for one image give `pixel_values\[None\]`"),
        (
            (32, 32),
            r"has the shape \(32, 32\), but four dimensions are expected: images, 3 channels, height and width",
        ),
        ((1, 2, 3, 32, 32), r"has the shape \(1, 2, 3, 32, 32\), but four dimensions"),
    ],
)
def test_images_of_other_dimensions_are_one_sentence(model, call, shape, message):
    images = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        getattr(model, call)([images] if call == "forward_crops" else images)
