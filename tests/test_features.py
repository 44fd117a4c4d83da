import io
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    BeitConfig,
    BeitModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    IJepaConfig,
    IJepaModel,
    ResNetConfig,
    ResNetModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput

import dinov2_hf.features
from dinov2_hf import DINOv2Config, DINOv2Model
from dinov2_hf.data import decode_image
from dinov2_hf.feature_kinds import FEATURE_FUNCTIONS
from dinov2_hf.features import FeatureExtractor, evaluation_mode, image_features


TINY = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture
def processor():
    return BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


@pytest.fixture(params=["dinov2", "vit"])
def model(request):
    torch.manual_seed(0)
    if request.param == "vit":
        return ViTModel(ViTConfig(**TINY))
    return Dinov2Model(Dinov2Config(**TINY, drop_path_rate=0.5))


cls_features = image_features
mean_patch_features = partial(image_features, kind="mean_patch")
patch_grid_features = partial(image_features, kind="patch_grid")
last_layers_features = partial(image_features, kind="last_layers")
last_layers_and_mean_patch_features = partial(image_features, kind="last_layers_and_mean_patch")


def make_images(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (30 + i, 40, 3), dtype=np.uint8)) for i in range(count)]


def make_dataset(images: list[Image.Image]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": images, "label": list(range(len(images)))}, features=features)


def png_bytes(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def extract(model, dataset, processor, *, kind="cls", num_layers=4, **run) -> torch.Tensor:
    return FeatureExtractor(model, processor, **run).features(dataset, kind=kind, num_layers=num_layers).values


def one_by_one(model, images, processor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat(
            [model(**processor(images=image, return_tensors="pt")).last_hidden_state[:, 0] for image in images]
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_row_i_is_the_final_normed_cls_token_of_image_i(model, processor, num_workers):
    images = make_images(7)
    features = extract(model, make_dataset(images), processor, batch_size=3, num_workers=num_workers)
    assert features.shape == (7, 12)
    assert features.dtype == torch.float32
    assert features.device.type == "cpu"
    assert not features.requires_grad
    torch.testing.assert_close(features, one_by_one(model, images, processor))


def test_every_form_of_the_image_column_gives_the_same_features(model, processor, tmp_path):
    images = make_images(3)
    dataset = make_dataset(images)
    expected = extract(model, dataset, processor)

    undecoded = dataset.cast_column("image", datasets.Image(decode=False))
    images[0].save(tmp_path / "0.png")
    rows = [
        {"picture": {"bytes": None, "path": str(tmp_path / "0.png")}},
        {"picture": {"bytes": png_bytes(images[1]), "path": None}},
        {"picture": images[2]},
    ]
    torch.testing.assert_close(extract(model, undecoded, processor), expected)
    torch.testing.assert_close(extract(model, dataset.with_format("torch"), processor), expected)
    torch.testing.assert_close(extract(model, rows, processor, image_column="picture"), expected)


def test_rows_follow_the_dataset_order_after_a_shuffle(model, processor):
    dataset = make_dataset(make_images(5))
    order = [3, 0, 4, 1, 2]
    features = extract(model, dataset, processor)
    torch.testing.assert_close(extract(model, dataset.select(order), processor), features[order])


def test_every_submodule_gets_its_mode_back_even_after_an_error(model, processor):
    model.train()
    model.encoder.eval() if hasattr(model, "encoder") else model.layernorm.eval()
    modes = [module.training for module in model.modules()]
    extract(model, make_dataset(make_images(2)), processor)
    assert [module.training for module in model.modules()] == modes

    def fail():
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [module.training for module in model.modules()] == modes


def test_autocast_features_are_float32_of_half_precision_values(model, processor):
    dataset = make_dataset(make_images(4))
    full = extract(model, dataset, processor)
    half = extract(model, dataset, processor, autocast_dtype=torch.bfloat16)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


def test_the_model_can_be_trained_after_extraction(model, processor):
    extract(model, make_dataset(make_images(2)), processor)
    cls_features(model, torch.randn(2, 3, 28, 28)).square().sum().backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_an_image_is_upright_and_rgb():
    picture = Image.new("L", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by a quarter.
    picture.paste(255, (0, 0, 10, 10))
    stored = png_bytes(picture, exif=exif.tobytes())
    for value in ({"bytes": stored, "path": None}, Image.open(io.BytesIO(stored))):
        image = decode_image(value)
        assert (image.mode, image.size) == ("RGB", (10, 20))
        assert image.getpixel((5, 2)) == (255, 255, 255)
        assert image.getpixel((5, 17)) == (0, 0, 0)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("broken", ["no image", "truncated", "missing file", "null"])
def test_a_broken_image_is_an_error_that_names_the_row(model, processor, decode, broken):
    dataset = make_dataset(make_images(4)).cast_column("image", datasets.Image(decode=False))
    rows = dataset.to_list()
    intact = rows[2]["image"]["bytes"]
    rows[2]["image"] = {
        "no image": {"bytes": b"text", "path": None},
        "truncated": {"bytes": intact[: len(intact) // 2], "path": None},
        "missing file": {"bytes": None, "path": "missing.png"},
        "null": None,
    }[broken]
    dataset = datasets.Dataset.from_list(rows, features=dataset.features)
    dataset = dataset.cast_column("image", datasets.Image(decode=decode))
    with pytest.raises(ValueError, match="'image' of row 2 cannot be decoded"):
        extract(model, dataset, processor, batch_size=2)


def test_user_mistakes_are_named(model, processor):
    dataset = make_dataset(make_images(2))
    with pytest.raises(ValueError, match=r"image_column='img' is not a column .* has image, label\."):
        extract(model, dataset, processor, image_column="img")
    with pytest.raises(ValueError, match="0 rows"):
        extract(model, dataset.select([]), processor)
    with pytest.raises(ValueError, match="DatasetDict, but one split"):
        extract(model, datasets.DatasetDict(train=dataset), processor)
    with pytest.raises(ValueError, match="IterableDataset, but one split"):
        extract(model, dataset.to_iterable_dataset(), processor)
    with pytest.raises(ValueError, match="row 0 cannot be decoded"):
        extract(model, dataset, processor, image_column="label")


def test_a_model_without_tokens_is_refused():
    resnet = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic"))
    for function in (mean_patch_features, patch_grid_features):
        with pytest.raises(ValueError, match=r"no config\.patch_size"):
            function(resnet, torch.randn(1, 3, 32, 32))

    with pytest.raises(ValueError, match="ViTForImageClassification.* gives no last_hidden_state"):
        cls_features(ViTForImageClassification(ViTConfig(**TINY)), torch.randn(1, 3, 28, 28))


class TraceableTokens(nn.Module):
    """Tokens that say what they are: -1 CLS, -2 registers, and the mean pixel of each patch."""

    def __init__(self, num_registers: int, patch_size: int | tuple[int, int]):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.config = Dinov2Config(patch_size=14)
        self.config.patch_size = patch_size
        if num_registers:
            self.config.num_register_tokens = num_registers
        self.num_registers = num_registers

    def forward(self, pixel_values):
        patches = nn.functional.avg_pool2d(pixel_values, self.config.patch_size).flatten(2).transpose(1, 2)
        start = torch.tensor([-1.0] + [-2.0] * self.num_registers)
        start = start.view(1, -1, 1).expand(len(patches), -1, patches.shape[-1])
        return BaseModelOutput(last_hidden_state=torch.cat([start, patches], dim=1) * self.scale)


@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize("patch_size", [7, (14, 7)])
def test_the_patch_grid_has_each_patch_in_its_place(num_registers, patch_size):
    model = TraceableTokens(num_registers, patch_size)
    images = torch.rand(2, 3, 28, 42)
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    grid = patch_grid_features(model, images)
    assert grid.shape == (2, 28 // patch_height, 42 // patch_width, 3)
    for row in range(grid.shape[1]):
        for column in range(grid.shape[2]):
            top, left = row * patch_height, column * patch_width
            patch = images[:, :, top : top + patch_height, left : left + patch_width]
            torch.testing.assert_close(grid[:, row, column], patch.mean(dim=(2, 3)))
    torch.testing.assert_close(mean_patch_features(model, images), images.mean(dim=(2, 3)))
    assert (cls_features(model, images) == -1).all()


def tiny_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    tiny = {**TINY, "num_hidden_layers": 3}
    if name == "dinov2_hf":
        del tiny["intermediate_size"]
        model = DINOv2Model(DINOv2Config(**tiny, num_register_tokens=2))
    elif name == "dinov2":
        model = Dinov2Model(Dinov2Config(**tiny))
    elif name == "dinov2_with_registers":
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**tiny, num_register_tokens=4))
    else:
        model = ViTModel(ViTConfig(**tiny))
    norm = model.layernorm
    with torch.no_grad():  # so that a norm left out or applied twice is seen
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return model.eval()


MODELS = {"dinov2_hf": 2, "dinov2": 0, "dinov2_with_registers": 4, "vit": 0}  # and their registers


@pytest.mark.parametrize("name", MODELS)
def test_patches_come_without_cls_and_registers(name):
    model = tiny_model(name)
    size = (28, 28) if name == "vit" else (42, 28)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        tokens = model(images).last_hidden_state
        patches = tokens[:, 1 + MODELS[name] :]
        height = size[0] // 14
        assert patches.shape[1] == height * 2
        grid = torch.stack([patches[:, 2 * row : 2 * row + 2] for row in range(height)], dim=1)
        torch.testing.assert_close(patch_grid_features(model, images), grid)
        torch.testing.assert_close(mean_patch_features(model, images), patches.mean(dim=1))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_last_layers_are_the_models_cut_after_each_of_them(name, num_layers):
    model = tiny_model(name)
    images = torch.randn(2, 3, 28, 28)
    features = last_layers_features(model, images, num_layers=num_layers)
    assert features.shape == (2, num_layers * 12)
    layers = model.layers if name == "vit" else model.encoder.layer
    expected = []
    for depth in range(3, 3 - num_layers, -1):
        del layers[depth:]
        expected.insert(0, model(images).last_hidden_state[:, 0])
    torch.testing.assert_close(features, torch.cat(expected, dim=-1))


def test_last_layers_are_the_same_with_and_without_the_method_of_the_model(monkeypatch):
    model = tiny_model("dinov2_hf")
    images = torch.randn(2, 3, 42, 28)
    features = last_layers_features(model, images, num_layers=2)
    monkeypatch.delattr(DINOv2Model, "get_intermediate_layers")
    torch.testing.assert_close(last_layers_features(model, images, num_layers=2), features)


@pytest.mark.parametrize("name", ["dinov2_hf", "dinov2_with_registers"])
def test_last_layers_and_mean_patch_are_the_two_together(name):
    model = tiny_model(name)
    images = torch.randn(2, 3, 42, 28)
    expected = torch.cat(
        [last_layers_features(model, images, num_layers=2), mean_patch_features(model, images)], dim=-1
    )
    torch.testing.assert_close(last_layers_and_mean_patch_features(model, images, num_layers=2), expected)


@pytest.mark.parametrize("kind", FEATURE_FUNCTIONS)
def test_every_kind_over_a_dataset_is_a_loop_over_its_images(processor, kind):
    model = tiny_model("dinov2_with_registers")
    images = make_images(5)
    options = {"num_layers": 2} if kind.startswith("last_layers") else {}
    with torch.no_grad():
        expected = torch.cat(
            [
                image_features(model, processor(images=image, return_tensors="pt")["pixel_values"], kind, **options)
                for image in images
            ]
        )
    for batch_size in (1, 2, 5, 64):
        features = extract(model, make_dataset(images), processor, kind=kind, num_layers=2, batch_size=batch_size)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, expected)


def test_batches_name_their_rows_and_leave_the_caller_alone_between_them(model, processor):
    images = make_images(7)
    rows = [{"image": b"no image" if row in (0, 1, 4) else images[row]} for row in range(7)]
    model.train()
    batches = []
    extractor = FeatureExtractor(model, processor, batch_size=2, autocast_dtype=torch.bfloat16)
    found = extractor.batches(rows, skip_undecodable=True)
    for batch_rows, features in found:
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert model.training
        assert len(features) == len(batch_rows)
        batches.append(batch_rows)
    assert batches == [[2, 3], [5], [6]]
    assert list(found.undecodable_rows) == [0, 1, 4]
    assert "not an image" in found.undecodable_rows[0]
    together = extractor.features(rows, skip_undecodable=True)
    assert len(together.values) == 4
    assert together.rows.tolist() == [2, 3, 5, 6]
    assert list(together.undecodable_rows) == [0, 1, 4]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", FEATURE_FUNCTIONS)
def test_a_batch_of_features_holds_no_other_tokens_in_memory(model, processor, kind, batch_size):
    extractor = FeatureExtractor(model, processor, batch_size=batch_size)
    for _, features in extractor.batches(make_dataset(make_images(2)), kind=kind, num_layers=2):
        assert features.is_contiguous()
        assert features.untyped_storage().nbytes() == features.numel() * 4


def test_mistakes_about_kinds_are_named(model, processor):
    dataset = make_dataset(make_images(2))
    images = torch.randn(1, 3, 28, 28)
    with pytest.raises(ValueError, match="'pooled' is not a kind .* 'cls', 'mean_patch', 'patch_grid', 'last_layers'"):
        FeatureExtractor(model, processor).batches(dataset, kind="pooled")
    for num_layers in (0, 3):
        with pytest.raises(ValueError, match=f"num_layers is {num_layers}, but must be from 1 to the 2 blocks"):
            extract(model, dataset, processor, kind="last_layers", num_layers=num_layers)
    padded = SwinModel(SwinConfig(**SWIN))
    for function in (patch_grid_features, mean_patch_features):
        with pytest.raises(ValueError, match="SwinModel, as it gives 64 tokens .* 16 x 16 patches .* are 257"):
            function(padded, torch.randn(1, 3, 32, 32))
    without = TraceableTokens(0, 7)
    with pytest.raises(ValueError, match="no final norm called layernorm or norm"):
        last_layers_features(without, images)
    without.config = None
    with pytest.raises(ValueError, match=r"no config\.patch_size"):
        patch_grid_features(without, images)
    with pytest.raises(ValueError, match=r"no config\.num_hidden_layers"):
        last_layers_features(without, images)


SMALL = {**TINY, "image_size": 32, "patch_size": 8}  # 16 patches
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 2}
TEXT = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 99}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
CONVOLUTIONS = {"depths": [1, 1], "hidden_sizes": [4, 8]}
CLS = "the CLS token after the final norm"
NO_NORM = "as its CLS token has not passed the final norm"
PATCHES_ONLY = "as it has only patch tokens"
# How to make each model, the rule of `cls`, and the feature from its output.
ZOO = {
    "vit": (lambda: ViTModel(ViTConfig(**SMALL)), CLS, lambda model, output: output.last_hidden_state[:, 0]),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SMALL)), CLS, lambda model, output: output.last_hidden_state[:, 0]),
    "dinov2_with_registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL)),
        CLS,
        lambda model, output: output.last_hidden_state[:, 0],
    ),
    "deit": (lambda: DeiTModel(DeiTConfig(**SMALL)), CLS, lambda model, output: output.last_hidden_state[:, 0]),
    "clip_vision": (
        lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL)),
        NO_NORM,
        lambda model, output: model.post_layernorm(output.last_hidden_state[:, 0]),
    ),
    "beit": (
        lambda: BeitModel(BeitConfig(**SMALL)),
        NO_NORM,
        lambda model, output: model.pooler.layernorm(output.last_hidden_state[:, 1:].mean(dim=1)),
    ),
    "siglip_vision": (
        lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL)),
        PATCHES_ONLY,
        lambda model, output: model.head(output.last_hidden_state),
    ),
    "swin": (
        lambda: SwinModel(SwinConfig(**SWIN)),
        "as it gives 64 tokens for an image of 32 x 32 pixels",
        lambda model, output: output.last_hidden_state.mean(dim=1),
    ),
    "convnext": (
        lambda: ConvNextModel(ConvNextConfig(num_stages=2, **CONVOLUTIONS)),
        "as there are no tokens",
        lambda model, output: model.layernorm(output.last_hidden_state.mean(dim=(2, 3))),
    ),
    "resnet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=4, layer_type="basic", **CONVOLUTIONS)),
        "as there are no tokens",
        lambda model, output: output.last_hidden_state.mean(dim=(2, 3)),
    ),
}


@pytest.fixture
def small_processor():
    return BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def zoo_model(name: str, spread) -> nn.Module:
    model = spread(ZOO[name][0]())
    norm = getattr(model, "layernorm", None)
    if isinstance(norm, nn.LayerNorm):
        nn.init.normal_(norm.weight)
    return model


@pytest.mark.parametrize("name", ZOO)
def test_cls_of_models_with_and_without_a_cls_token(small_processor, spread, name, caplog):
    model = zoo_model(name, spread)
    images = make_images(3)
    pixel_values = small_processor(images=images, return_tensors="pt")["pixel_values"]
    _, words, feature_of = ZOO[name]
    with torch.no_grad():
        expected = feature_of(model, model(pixel_values))
    dinov2_hf.features._warn_once.cache_clear()
    batches = FeatureExtractor(model, small_processor).batches(make_dataset(images))
    ((_, features),) = batches
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert expected.ndim == 2
    assert words in batches.rule
    assert (words == CLS) == (batches.rule == CLS) == ("pooled output of" not in batches.rule)
    assert [record.message for record in caplog.records] == (
        [] if words == CLS else [f"the feature of an image is {batches.rule}"]
    )


def test_a_model_of_images_and_texts_is_its_vision_model(small_processor, spread):
    for model in (
        CLIPModel(CLIPConfig(vision_config=SMALL, text_config=TEXT)),
        SiglipModel(SiglipConfig(vision_config=SMALL, text_config={**TEXT, "projection_size": 12})),
    ):
        spread(model)
        dataset = make_dataset(make_images(2))
        features = extract(model, dataset, small_processor)
        torch.testing.assert_close(features, extract(model.vision_model, dataset, small_processor))
    naflex = {name: value for name, value in SMALL.items() if name != "image_size"}
    model = Siglip2VisionModel(Siglip2VisionConfig(**naflex, num_patches=16))
    with pytest.raises(ValueError, match="Siglip2VisionModel, which needs pixel_attention_mask, spatial_shapes besid"):
        extract(model, dataset, small_processor)


def test_models_that_have_no_feature_of_an_image_are_refused(small_processor):
    dataset = make_dataset(make_images(2))
    jepa = IJepaModel(IJepaConfig(**SMALL))
    for kind, message in [
        ("cls", "feature 'cls' cannot be taken from a IJepaModel, as it has only patch tokens; it has no pooled"),
        ("last_layers", "last blocks cannot be taken from a IJepaModel, as it has only patch tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            extract(jepa, dataset, small_processor, kind=kind, num_layers=1)
    features = extract(jepa, dataset, small_processor, kind="patch_grid")
    pixel_values = small_processor(images=make_images(2), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = jepa.eval()(pixel_values).last_hidden_state
    torch.testing.assert_close(features, tokens.unflatten(1, (4, 4)))
    beit = BeitModel(BeitConfig(**SMALL))
    with pytest.raises(ValueError, match="BeitModel.* no final norm"):
        extract(beit, dataset, small_processor, kind="last_layers", num_layers=1)


@pytest.mark.parametrize("kind", FEATURE_FUNCTIONS)
@pytest.mark.parametrize("mask_ratio", [0.75, 0.0])
def test_a_model_that_hides_or_shuffles_patches_at_random_is_refused(small_processor, kind, mask_ratio):
    """With a ratio of 0 all patches are there, in another order at every call."""
    model = ViTMAEModel(ViTMAEConfig(**SMALL, mask_ratio=mask_ratio))
    message = "draws random numbers" if mask_ratio == 0 else "as it gives 5 tokens"
    with pytest.raises(ValueError, match=message):
        extract(model, make_dataset(make_images(2)), small_processor, kind=kind, num_layers=1)


def test_the_distillation_token_is_no_patch(spread):
    model = zoo_model("deit", spread)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model(images).last_hidden_state
        torch.testing.assert_close(patch_grid_features(model, images).flatten(1, 2), tokens[:, 2:])
        torch.testing.assert_close(
            last_layers_and_mean_patch_features(model, images, num_layers=1),
            torch.cat([tokens[:, 0], tokens[:, 2:].mean(dim=1)], dim=-1),
        )


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": -1}, {"num_workers": -1}])
def test_numbers_out_of_range_are_refused_at_once(model, processor, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is too small"):
        FeatureExtractor(model, processor, **options)


def test_patch_grids_of_different_sizes_are_refused():
    processor = BitImageProcessor(size={"shortest_edge": 28}, do_center_crop=False)
    images = [Image.new("RGB", size) for size in ((28, 28), (42, 28))]
    model = Dinov2Model(Dinov2Config(**TINY))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 12\) for row 1 and of \(2, 2, 12\) for earlier ones"):
        extract(model, make_dataset(images), processor, kind="patch_grid", batch_size=1)
    assert extract(model, make_dataset(images), processor, batch_size=1).shape == (2, 12)
