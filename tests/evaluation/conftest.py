import pytest

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.features import FeatureExtractor


@pytest.fixture
def model(tiny_config, spread):
    return spread(DINOv2Model(tiny_config))


@pytest.fixture
def processor():
    return DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})


@pytest.fixture
def extractor(model, processor):
    return FeatureExtractor(model, processor)
