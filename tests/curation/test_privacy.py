"""What was to be hidden is neither in the report nor in the dataset."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from dinov2_hf.curation.model_filters import FaceBlur, blur_boxes
from dinov2_hf.curation.storage import published_images

from .scenes import encoded, scene, write_scenes


def blank(colour: str) -> Image.Image:
    """A picture that is told by its colour, with one corner by which it is no copy of another."""
    image = Image.new("RGB", (96, 72), colour)
    image.paste(scene(0).crop((0, 0, 8, 8)), (0, 0))
    return image


def pictures_of(page: str) -> dict[str, Image.Image]:
    """id: picture."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)" title="([^"]+)"', page)
    return {id: Image.open(io.BytesIO(base64.b64decode(data))) for data, id in found}


def images_of(output_dir) -> dict[str, Image.Image]:
    rows = [row for path in output_dir.glob("dataset/data/*.parquet") for row in parquet.read_table(path).to_pylist()]
    return {row["id"]: Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows}


def redness(images, columns):
    pixels = [image.getpixel((90, 60)) for image in images]
    return [red > 200 > 50 > green for red, green, _ in pixels]


@pytest.fixture
def red_pool(planted, tmp_path):
    """Of the planted pool, 9 and 10 are red; 10 is also too small, so that no filter sees it."""
    pool = write_scenes(tmp_path / "other" / "pool", range(12))
    blank("red").save(pool / "009.png")
    Image.new("RGB", (20, 15), "red").save(pool / "010.png")
    return str(pool)


def is_red(image: Image.Image) -> bool:
    red, green, blue = image.convert("RGB").getpixel((image.width - 6, image.height - 6))
    return red > 200 and max(green, blue) < 60


def test_what_filters_drop_is_not_shown(planted, red_pool):
    curation = planted.curate(uncurated=red_pool, min_side=40, output_dir=str(planted.folder / "shown"))
    shown = pictures_of((curation.output_dir / "report.html").read_text())
    assert {id for id, picture in shown.items() if is_red(picture)} == {"pool/9", "pool/10"}  # else nothing is tested
    curation = planted.curate(uncurated=red_pool, min_side=40, filters=[{f"{__name__}:redness": {"max": 0.5}}])
    page = (curation.output_dir / "report.html").read_text()
    shown = pictures_of(page)
    assert shown
    assert not [id for id, picture in shown.items() if is_red(picture)]
    assert not {"pool/9", "pool/10"} & set(shown)
    rows = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    assert "redness above 0.5" in [row["reason"] for row in rows if row["id"] == "pool/9"]  # recorded all the same
    assert " redness above 0.5" in page  # and counted


class Corner(FaceBlur):
    """Takes the upper left quarter of every picture for a face."""

    def __init__(self, *args):
        pass

    def __call__(self, image):
        return blur_boxes(image, [(0, 0, image.width / 2, image.height / 2)])


def test_faces_are_blurred_in_the_report_as_in_the_dataset(planted, monkeypatch):
    monkeypatch.setattr(published_images, "FaceBlur", Corner)
    curation = planted.curate(face_model="detector")
    shown = pictures_of((curation.output_dir / "report.html").read_text())
    assert {"pool/0", "pool/1", "benchmark/0", "curated/0"} <= set(shown)
    seeds = {"pool": 0, "curated": 100, "benchmark": 200}
    for id, picture in {**shown, **images_of(curation.output_dir)}.items():
        source, row = id.split("/")
        clear = scene(seeds[source] + int(row))
        assert picture.size == clear.size
        to_clear, to_blurred = (
            np.abs(np.asarray(picture, int) - np.asarray(other, int))[:36, :48].mean()
            for other in (clear, Corner()(clear))
        )
        assert to_blurred < to_clear / 2, id


def test_of_an_animation_only_the_frame_that_was_looked_at_is_published():
    frames = [scene(0), scene(1)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    class Nothing(FaceBlur):
        def __init__(self):
            pass

        def __call__(self, image):
            return image

    options = {"image_format": None, "strip_metadata": True}
    published = published_images.published_content(content, blur=Nothing(), **options)
    assert getattr(Image.open(io.BytesIO(published)), "n_frames", 1) == 1
    assert Image.open(io.BytesIO(published_images.published_content(content, blur=None, **options))).n_frames == 2


@pytest.mark.parametrize("strip_metadata", [True, False])
def test_metadata_stay_out_of_the_dataset_and_pictures_upright(planted, tmp_path, strip_metadata):
    pool = write_scenes(tmp_path / "other" / "pool", range(12))
    (pool / "007.png").unlink()
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = 6, "secret"
    turned = scene(7).transpose(Image.Transpose.ROTATE_90)
    (pool / "007.jpg").write_bytes(encoded(turned, "JPEG", exif=tags, comment=b"secret", quality=95))
    curation = planted.curate(uncurated=str(pool), strip_metadata=strip_metadata)
    content = b"".join(path.read_bytes() for path in curation.output_dir.glob("dataset/data/*.parquet"))
    assert (b"secret" in content) != strip_metadata
    image = images_of(curation.output_dir)["pool/7"]
    assert dict(image.getexif()) == ({0x0112: 6} if strip_metadata else dict(tags))
    upright = published_images.decode_image(image)
    assert upright.size == scene(7).size
    assert np.abs(np.asarray(upright, int) - np.asarray(scene(7), int)).mean() < 12


@pytest.mark.parametrize("suffix", ["jpeg", "webp"])
def test_nothing_is_copied_into_files_that_are_encoded_anew(suffix):
    content = encoded(scene(0), "JPEG", comment=b"secret", xmp=b"<x>secret</x>", icc_profile=b"secret" * 30)
    options = {"image_format": suffix, "blur": None}
    assert b"secret" not in published_images.published_content(content, strip_metadata=True, **options)
    assert b"secret" not in published_images.thumbnail({"bytes": content, "path": None}, 112, None)
