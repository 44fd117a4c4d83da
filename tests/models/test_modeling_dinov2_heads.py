"""Heads and feature maps against their formulas written out."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    Dinov2Backbone,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    pipeline,
)
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput

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


def tiny(**fields) -> DINOv2Config:
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    return DINOv2Config(**shape, num_register_tokens=3, **fields)


def normed_tokens(model: DINOv2Model, pixels: torch.Tensor, block: int, norm: bool = True) -> torch.Tensor:
    """Tokens after a block, by stopping there."""
    tokens = model.embeddings(pixels)
    for layer in model.encoder.layer[: block + 1]:
        tokens = layer(tokens)
    return model.layernorm(tokens) if norm else tokens


@pytest.mark.parametrize("patch_mean", [True, False])
@pytest.mark.parametrize("num_layers", [1, 4])
@torch.no_grad()
def test_classification(spread, num_layers, patch_mean):
    config = tiny(classifier_num_layers=num_layers, classifier_use_patch_mean=patch_mean, num_labels=5)
    model = spread(DINOv2ForImageClassification(config))
    pixels = torch.randn(2, 3, 24, 40)  # 3 x 5 patches
    features = [normed_tokens(model.dinov2, pixels, block)[:, 0] for block in range(4 - num_layers, 4)]
    if patch_mean:
        features.append(normed_tokens(model.dinov2, pixels, 3)[:, 4:].mean(dim=1))
    features = torch.cat(features, dim=1)
    assert features.shape == (2, 32 * (num_layers + patch_mean))
    outputs = model(pixels, labels=torch.tensor([1, 4]))
    torch.testing.assert_close(outputs.logits, model.classifier(features))
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([1, 4])))
    assert outputs.hidden_states is None
    assert len(model(pixels, output_hidden_states=True).hidden_states) == 5


@pytest.mark.parametrize("num_layers", [1, 4])
@torch.no_grad()
def test_segmentation(spread, num_layers):
    model = spread(DINOv2ForSemanticSegmentation(tiny(segmentation_num_layers=num_layers, num_labels=3)))
    model.decode_head.bn.running_mean.uniform_(-1, 1)
    model.decode_head.bn.running_var.uniform_(0.5, 2)
    pixels, labels = torch.randn(2, 3, 24, 40), torch.randint(0, 3, (2, 24, 40))
    labels[0, :7] = 255
    bn, conv = model.decode_head.bn, model.decode_head.conv_seg
    expected = torch.empty(2, 3, 3, 5)
    tokens = torch.cat([normed_tokens(model.dinov2, pixels, block) for block in range(4 - num_layers, 4)], dim=-1)
    for image in range(2):
        for row in range(3):
            for column in range(5):
                patch = tokens[image, 4 + 5 * row + column]
                patch = (patch - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
                expected[image, :, row, column] = conv.weight[:, :, 0, 0] @ patch + conv.bias
    outputs = model(pixels, labels=labels)
    torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)
    upsampled = torch.nn.functional.interpolate(expected, (24, 40), mode="bilinear", align_corners=False)
    negative = -torch.log_softmax(upsampled, dim=1).gather(1, labels.clamp(max=2)[:, None])[:, 0]
    torch.testing.assert_close(outputs.loss, negative[labels != 255].mean())


@pytest.mark.parametrize("layers", [None, [0, 1, 3]])
@torch.no_grad()
def test_depth(spread, layers):
    """The original's order: upsample the features by 4, then project each place to bins, then weigh the bins."""
    model = spread(DINOv2ForDepthEstimation(tiny(depth_layers=layers, depth_num_bins=7, max_depth=80.0)))
    pixels = torch.randn(2, 3, 24, 40)
    maps = []
    for block in layers or [3]:
        tokens = normed_tokens(model.dinov2, pixels, block, norm=False)
        patches = tokens[:, 4:].reshape(2, 3, 5, 32).permute(0, 3, 1, 2)
        maps.append(torch.cat([patches, tokens[:, 0, :, None, None].expand(-1, -1, 3, 5)], dim=1))
    features = torch.nn.functional.interpolate(
        torch.cat(maps, dim=1), scale_factor=4, mode="bilinear", align_corners=False
    )
    convolution = model.decode_head.conv_depth
    logits = torch.einsum("kc,bchw->bkhw", convolution.weight[:, :, 0, 0], features) + convolution.bias.view(
        1, -1, 1, 1
    )
    weights = torch.relu(logits) + 0.1
    bins = [0.001 + index * (80 - 0.001) / 6 for index in range(7)]
    expected = sum(weights[:, index] * depth for index, depth in enumerate(bins)) / weights.sum(dim=1)
    outputs = model(pixels)
    assert outputs.predicted_depth.shape == (2, 12, 20)
    torch.testing.assert_close(outputs.predicted_depth, expected, atol=1e-3, rtol=1e-5)
    assert 0.001 < outputs.predicted_depth.min() < outputs.predicted_depth.max() < 80


@pytest.mark.parametrize("apply_layernorm", [True, False])
@torch.no_grad()
def test_feature_maps(spread, apply_layernorm):
    config = tiny(out_features=["stage1", "stage4"], apply_layernorm=apply_layernorm)
    model = spread(DINOv2Backbone(config))
    pixels = torch.randn(2, 3, 24, 40)
    outputs = model(pixels)
    assert outputs.hidden_states is None
    assert model.channels == [32, 32]
    for block, feature_map in zip((0, 3), outputs.feature_maps, strict=True):
        expected = normed_tokens(model, pixels, block, norm=apply_layernorm)[:, 4:]
        torch.testing.assert_close(feature_map, expected.reshape(2, 3, 5, 32).permute(0, 3, 1, 2))
    model.config.reshape_hidden_states = False
    assert model(pixels).feature_maps[0].shape == (2, 1 + 3 + 15, 32)
    assert len(model(pixels, output_hidden_states=True).hidden_states) == 5
    tokens = model(pixels).feature_maps[0]
    model.config.keep_register_tokens = False
    assert torch.equal(model(pixels).feature_maps[0], tokens[:, [0, *range(4, 19)]])


@torch.no_grad()
def test_feature_maps_equal_stock(tmp_path, spread):
    stock = spread(
        Dinov2Backbone(
            Dinov2Config(
                hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8,
                out_indices=[1, 3],
            )
        )
    )  # fmt: skip
    stock.save_pretrained(tmp_path)
    ours = DINOv2Backbone.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    for one, other in zip(ours(pixels).feature_maps, stock(pixels).feature_maps, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_dense_head_of_transformers_takes_our_backbone(tmp_path):
    backbone = tiny(out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=False)
    backbone.num_register_tokens = 0  # DPT knows the CLS token only
    config = DPTConfig(
        backbone_config=backbone, backbone_out_indices=[1, 2, 3, 4], hidden_size=32, image_size=32, patch_size=8,
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, reassemble_factors=[4, 2, 1, 0.5], head_in_index=-1,
    )  # fmt: skip
    model = DPTForDepthEstimation(config).eval()
    assert isinstance(model.backbone, DINOv2Backbone)
    model.save_pretrained(tmp_path)
    loaded = DPTForDepthEstimation.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).predicted_depth, model(pixels).predicted_depth)


@pytest.mark.parametrize(
    ("auto_class", "our_class"),
    [
        (AutoModelForImageClassification, DINOv2ForImageClassification),
        (AutoModelForSemanticSegmentation, DINOv2ForSemanticSegmentation),
        (AutoModelForDepthEstimation, DINOv2ForDepthEstimation),
        (AutoModel, DINOv2Model),
    ],
)
def test_auto_classes(tmp_path, spread, auto_class, our_class):
    model = spread(our_class(tiny(num_labels=3)))
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is our_class
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    backbone, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(pixels).last_hidden_state, getattr(model, "dinov2", model)(pixels).last_hidden_state
        )


def test_auto_backbone(tmp_path, spread):
    spread(DINOv2Model(tiny())).save_pretrained(tmp_path)
    backbone = DINOv2Backbone.from_pretrained(tmp_path, out_indices=[2, 4])
    assert backbone.out_features == ["stage2", "stage4"]
    config = AutoConfig.from_pretrained(tmp_path, out_features=["stage2", "stage4"])
    assert type(AutoBackbone.from_config(config)) is DINOv2Backbone


def test_pipelines(tmp_path, spread):
    image_processor = DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    labels = {0: "cat", 1: "dog", 2: "eel"}
    model = spread(DINOv2ForImageClassification(tiny(id2label=labels, label2id={v: k for k, v in labels.items()})))
    model.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    image = Image.linear_gradient("L").convert("RGB")
    answers = pipeline("image-classification", model=str(tmp_path))(image, top_k=3)
    pixels = image_processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        scores = model(pixels).logits.softmax(dim=-1)[0]
    assert {answer["label"] for answer in answers} == set(labels.values())
    for answer in answers:
        assert answer["score"] == pytest.approx(scores[model.config.label2id[answer["label"]]].item(), abs=1e-5)
    extract = pipeline("image-feature-extraction", model=str(tmp_path))
    with torch.no_grad():
        expected = model.dinov2(pixels)
    torch.testing.assert_close(extract(image, return_tensors=True), expected.last_hidden_state)
    torch.testing.assert_close(extract(image, pool=True, return_tensors=True), expected.pooler_output)


@pytest.mark.parametrize("processor_class", [DINOv2ImageProcessor, DINOv2ImageProcessorPil])
def test_post_processing_resizes_each_image(processor_class):
    processor, sizes = processor_class(), [(9, 7), (5, 12)]
    logits, depth = torch.randn(2, 3, 4, 6), torch.rand(2, 4, 6)
    masks = processor.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), sizes)
    depths = processor.post_process_depth_estimation(DepthEstimatorOutput(predicted_depth=depth), sizes)
    for index, size in enumerate(sizes):
        resized = torch.nn.functional.interpolate(logits[index, None], size, mode="bilinear")[0]
        assert torch.equal(masks[index], resized.argmax(dim=0))
        resized = torch.nn.functional.interpolate(depth[index, None, None], size, mode="bilinear")[0, 0]
        assert torch.equal(depths[index]["predicted_depth"], resized)
    whole = processor.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits))
    assert torch.equal(torch.stack(whole), logits.argmax(dim=1))
    with pytest.raises(ValueError, match="`target_sizes` has 1 sizes, but there are 2 images"):
        processor.post_process_depth_estimation(DepthEstimatorOutput(predicted_depth=depth), sizes[:1])


def test_depth_has_no_loss():
    with pytest.raises(ValueError, match="`labels` is given, but this model has no loss"):
        DINOv2ForDepthEstimation(tiny())(torch.zeros(1, 3, 32, 32), labels=torch.zeros(1, 32, 32))


def test_heads_start_whole_on_a_saved_backbone(tmp_path, spread):
    spread(DINOv2Model(tiny())).save_pretrained(tmp_path)
    model = DINOv2ForSemanticSegmentation.from_pretrained(tmp_path)
    norm, convolution = model.decode_head.bn, model.decode_head.conv_seg
    for tensor, value in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        assert (tensor == value).all()
    assert norm.num_batches_tracked == 0
    assert (convolution.bias == 0).all()
    assert 0 < convolution.weight.abs().max() < 0.06
