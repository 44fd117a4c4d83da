"""Images are read and decoded once for facts, filters and vectors; what comes of it is what comes of each alone."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pyarrow import parquet

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.algorithms.image_hashes import perceptual_hash
from dinov2_hf.curation.embedders import Embedder, VectorModel
from dinov2_hf.curation.pixels import REDUCED_SIDE, is_reduced, reduction
from dinov2_hf.curation.stages import embed, first_pass
from dinov2_hf.curation.stages.first_pass import read_images
from dinov2_hf.curation.stages.first_vectors import FirstVectors
from dinov2_hf.curation.storage.image_source import read_source
from dinov2_hf.curation.storage.sources import OpenSources
from dinov2_hf.data import decode_image
from dinov2_hf.features import FeatureExtractor
from tests.curation.scenes import encoded, scene, write_scenes


def drops_dark(images, columns):
    return [np.asarray(image).mean() for image in images]


def mean_colours(images):
    return [np.asarray(image).mean(axis=(0, 1)) for image in images]


class MeanColour(torch.nn.Module):
    def forward(self, pixel_values):
        return pixel_values.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Ten scenes, a copy of one as a file and one as a picture, and no image."""
    folder = write_scenes(tmp_path_factory.mktemp("first") / "pool", range(10))
    (folder / "copy.png").write_bytes((folder / "003.png").read_bytes())
    (folder / "copy.webp").write_bytes(encoded(scene(4), "WEBP", lossless=True))
    (folder / "broken.png").write_bytes(b"no image")
    torch.jit.script(MeanColour()).save(str(folder.parent / "copies.pt"))
    return folder


def curated(pool, output_dir, **changes):
    arguments = {"uncurated": str(pool), "output_dir": str(output_dir), "num_shards": 2, "progress": False}
    return curate(CurationArguments(**{**arguments, **changes}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"filters": [{f"{__name__}:drops_dark": {"min": 100}}], "min_side": 60},
        {"embedder": f"{__name__}:mean_colours", "representative": "best_quality"},
        {"embedder": "copies.pt", "trust_torchscript": True, "num_workers": 2},
    ],
)
def test_the_vectors_of_the_first_pass_are_those_of_a_second(pool, tmp_path, monkeypatch, options):
    monkeypatch.chdir(pool.parent)
    decoded = []

    def counted(*args, **named):
        decoded.append(1)
        return decode_image(*args, **named)

    monkeypatch.setattr(first_pass, "decode_image", counted)
    monkeypatch.setattr(embed.RowsOfSources, "__getitem__", None)  # no image is read for vectors alone
    once = curated(pool, tmp_path / "once", **options)
    if "num_workers" not in options:
        assert len(decoded) == 13
    monkeypatch.undo()
    monkeypatch.chdir(pool.parent)
    monkeypatch.setattr(embed, "first_vectors", lambda *_: (np.empty(0, np.int64), np.empty((0, 1), np.float32)))
    twice = curated(pool, tmp_path / "twice", **options)
    one, other = once.pool_vectors(), twice.pool_vectors()
    assert np.array_equal(one.ids, other.ids)
    np.testing.assert_allclose(one.read(0, len(one)), other.read(0, len(other)), atol=1e-3)
    records = [parquet.read_table(made.output_dir / "dropped.parquet") for made in (once, twice)]
    assert records[0].drop_columns("similarity").equals(records[1].drop_columns("similarity"))


def test_another_embedder_reads_the_images_again(pool, tmp_path):
    curated(pool, tmp_path / "out")
    changed = curated(pool, tmp_path / "out", embedder=f"{__name__}:mean_colours", overwrite=True)
    alone = curated(pool, tmp_path / "alone", embedder=f"{__name__}:mean_colours")
    store, expected = changed.pool_vectors(), alone.pool_vectors()
    assert np.array_equal(store.read(0, len(store)), expected.read(0, len(expected)))


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [(1279, 1279, 1), (1280, 1280, 2), (5000, 1280, 2), (5120, 2560, 4), (20000, 5120, 8), (20000, 20000, 8)],
)
def test_the_rule_of_large_files(width, height, factor):
    assert reduction(width, height) == factor
    assert factor == 1 or min(width, height) // factor >= REDUCED_SIDE


def test_who_sees_large_files_smaller():
    def reduced(**options) -> bool:
        arguments = CurationArguments(uncurated="x", **options)
        return is_reduced(arguments, arguments.copy_embedder)

    assert reduced()
    assert reduced(min_side=10, max_aspect_ratio=2.0)
    assert not reduced(filters=[f"{__name__}:drops_dark"])
    assert not reduced(embedder=f"{__name__}:mean_colours")


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_file_has_its_own_size_in_the_records(tmp_path, orientation):
    """A quarter of the pixels are decoded; the size is that of the file, upright; the picture is nearly the same."""
    picture = scene(0, width=2000, height=1400)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (tmp_path / "large.jpg").write_bytes(encoded(picture, "JPEG", quality=95, exif=exif))
    sources = OpenSources([("uncurated", read_source(str(tmp_path)))])
    ((small,),), ((full,),) = (read_images(sources, [0], is_reduced=how, batch_size=4) for how in (True, False))
    expected = (2000, 1400) if orientation == 1 else (1400, 2000)
    assert full.image.size == expected
    assert small.image.size == (expected[0] // 2, expected[1] // 2)
    for found in (small, full):
        assert (found.facts["width"], found.facts["height"]) == expected
    assert bin(int(perceptual_hash(small.image)) ^ int(perceptual_hash(full.image))).count("1") <= 2
    difference = np.asarray(full.image.reduce(2), np.float32) - np.asarray(small.image, np.float32)
    assert np.abs(difference).mean() < 1


def test_the_report_says_how_images_were_decoded(pool, tmp_path):
    made = curated(pool, tmp_path / "out")
    said = json.loads((made.output_dir / "report.json").read_text())["decoding"]
    assert said == "JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if 640 pixels of the shorter side remain"
    assert said in (made.output_dir / "report.html").read_text()


def test_a_damaged_file_is_damaged_at_any_size(tmp_path):
    content = encoded(scene(0, width=2000, height=1400), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "pixels.png").write_bytes(io.BytesIO(encoded(scene(1))).getvalue())
    sources = OpenSources([("uncurated", read_source(str(tmp_path)))])
    for how in (True, False):
        ((cut, whole),) = read_images(sources, [0, 1], is_reduced=how, batch_size=4)
        assert "truncated" in cut.reason
        assert whole.reason is None


def test_the_network_is_where_its_pictures_are_sent():
    """As on a GPU: a network that stays behind would fail at the first batch."""
    extractor = FeatureExtractor(VectorModel(torch.nn.Linear(3, 3)), None, batch_size=2, device="meta")
    FirstVectors(Embedder(extractor))
    assert {parameter.device.type for parameter in extractor.model.parameters()} == {"meta"}
