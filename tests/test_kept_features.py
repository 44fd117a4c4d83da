"""Features of a dataset are made once, for all protocols that ask and for later programs; checks before work."""

import datasets
import pytest
import torch
from PIL import Image

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.evaluation import FeatureExtractor, evaluate_knn, evaluate_linear
from dinov2_hf.feature_kinds import FEATURE_FUNCTIONS
from tests.evaluation.coloured_images import coloured_dataset


@pytest.fixture
def model(tiny_config, spread):
    model = spread(DINOv2Model(tiny_config))
    model.images_seen = 0

    def count(module, arguments):
        module.images_seen += len(arguments[0])

    model.embeddings.register_forward_pre_hook(lambda module, arguments: count(model, arguments))
    return model


@pytest.fixture
def processor():
    return DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})


@pytest.fixture
def dataset():
    return coloured_dataset(["red", "green"], 3, 0)


@pytest.mark.parametrize("kind", ["cls", "mean_patch", "last_layers"])
def test_what_another_needs_holds_the_columns_of_this(model, processor, dataset, kind):
    expected = FeatureExtractor(model, processor).features(dataset, kind=kind, num_layers=1)
    model.images_seen = 0
    extractor = FeatureExtractor(model, processor)
    extractor.begin(dataset, kind="last_layers_and_mean_patch", num_layers=2)
    found = extractor.features(dataset, kind=kind, num_layers=1)
    torch.testing.assert_close(found.values, expected.values)
    wide = extractor.features(dataset, kind="last_layers_and_mean_patch", num_layers=2)
    assert model.images_seen == len(dataset)
    again = FeatureExtractor(model, processor).features(dataset, kind="last_layers_and_mean_patch", num_layers=2)
    torch.testing.assert_close(wide.values, again.values)


def test_two_protocols_see_every_image_once(model, processor, dataset):
    evaluated = coloured_dataset(["red", "green"], 2, 1)
    extractor = FeatureExtractor(model, processor)
    linear = {"cache_features": True, "num_layers": (1, 2), "num_steps": 3, "train_batch_size": 4}
    with extractor.only_checks():
        evaluate_linear(extractor, dataset, evaluated, **linear)
    assert model.images_seen == 0
    knn = evaluate_knn(extractor, dataset, evaluated, ks=(1,))
    assert evaluate_linear(extractor, dataset, evaluated, **linear)
    assert model.images_seen == len(dataset) + len(evaluated)
    assert knn == evaluate_knn(FeatureExtractor(model, processor), dataset, evaluated, ks=(1,))


def test_rows_of_a_list_may_change(model, processor):
    rows = [{"image": Image.new("RGB", (32, 32), "red")}]
    extractor = FeatureExtractor(model, processor)
    before = extractor.features(rows).values
    rows[0]["image"] = Image.new("RGB", (32, 32), "blue")
    assert not torch.equal(extractor.features(rows).values, before)


def test_a_later_program_reads_the_file(model, processor, dataset, tmp_path):
    broken = dataset.cast_column("image", datasets.Image(decode=False)).to_list()
    broken[1]["image"] = {"bytes": b"no image", "path": None}
    features = datasets.Features({**dataset.features, "image": datasets.Image()})
    broken = datasets.Dataset.from_list(broken, features)

    def read(kind="cls", processor=processor, **options):
        model.images_seen = 0
        extractor = FeatureExtractor(model, processor, folder=tmp_path, **options)
        return extractor.features(broken, kind=kind, num_layers=2, skip_undecodable=True)

    first, second = read(), read()
    assert model.images_seen == 0
    assert torch.equal(first.values, second.values)
    assert second.rows.tolist() == [0, 2, 3, 4, 5]
    assert list(second.undecodable_rows) == [1]
    assert second.rule == first.rule == "the CLS token after the final norm"
    with pytest.raises(ValueError, match="row 1 cannot be decoded"):
        FeatureExtractor(model, processor, folder=tmp_path).features(broken)
    for other in ({"kind": "mean_patch"}, {"processor": DINOv2ImageProcessor()}, {"autocast_dtype": torch.bfloat16}):
        read(**other)
        assert model.images_seen == 5
    with torch.no_grad():
        model.layernorm.bias.add_(1)
    assert not torch.equal(read().values, first.values)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    read()
    assert model.images_seen == 5  # damaged, so they are made again


@pytest.mark.parametrize("kind", FEATURE_FUNCTIONS)
def test_kinds_hold_themselves(model, processor, dataset, kind):
    extractor = FeatureExtractor(model, processor)
    first = extractor.features(dataset, kind=kind, num_layers=2).values
    assert torch.equal(extractor.features(dataset, kind=kind, num_layers=2).values, first)
    assert model.images_seen == len(dataset)


def test_work_that_does_not_say_so_is_found(model, processor):
    with (
        pytest.raises(ValueError, match="it must call `extractor.begin"),
        FeatureExtractor(model, processor).only_checks(),
    ):
        pass
