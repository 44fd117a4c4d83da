"""The demo as people meet it: the command, a browser, clicks, uploads, and files that are none."""

import io
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dinov2_hf.cli.backbone import load_backbone
from dinov2_hf.cli.demo import sample_pictures, shown_name
from dinov2_hf.demo.sight import compare, look
from dinov2_hf.training.checkpointing.checkpoint_folders import STATE_FILE
from tests.browsers import find_chromium, open_page
from tests.cli.typed_commands import mistake
from tests.examples.conftest import load_example

from .conftest import SIDE, bomb


pytest.importorskip("gradio", reason="the demo needs its extra")
SECONDS = 90_000  # that a page may take, in milliseconds; nothing is timed
SPACE = Path(__file__).parents[2] / "examples" / "demo"


@dataclass
class Server:
    process: subprocess.Popen
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def server(folders, gallery_folder) -> Iterator[Server]:
    """As in a Space, but for this machine alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--depth", folders["depth"], "--segmentation", folders["segmentation"], "--gallery", gallery_folder]
    options += ["--max_upload_mb", 1, "--image_size", SIDE, "--device", "cpu"]
    settings = {"MODEL": folders["backbone"], "OPTIONS": shlex.join(map(str, options)), "GRADIO_SERVER_PORT": port}
    command = [sys.executable, SPACE / "app.py"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {name: str(value) for name, value in settings.items()},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert str(port) in line, process.stderr.read()
        yield Server(process, port)
        assert process.poll() is None  # whatever was uploaded
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def page(server):
    with open_page(server.address) as page:
        page.set_default_timeout(SECONDS)
        page.wait_for_selector("#samples_first img")
        yield page


def shown(page, place: str) -> Image.Image:
    """The picture in a place of the page, as the server gave it."""
    answer = page.request.get(page.locator(f"#{place} img").first.get_attribute("src"))
    return Image.open(io.BytesIO(answer.body())).convert("RGB")


def open_sample(page, which: str, number: int) -> None:
    was = [image.get_attribute("src") for image in page.locator(f"#picture_{which} img").all()]
    page.locator(f"#samples_{which} img").nth(number).click()
    wait_for_another(page, f"picture_{which}", was)


def wait_for_another(page, place: str, was: list[str]) -> None:
    page.wait_for_function(
        "([place, was]) => { const image = document.querySelector(`#${place} img`);"
        " return image && image.complete && !was.includes(image.getAttribute('src')); }",
        arg=[place, was],
    )


def test_clicking_a_patch_draws_what_is_like_it(page, folders):
    """To the pixel what the plain functions draw."""
    model, processor = load_backbone(str(folders["backbone"]))
    sights = [look(model, processor, sample_pictures()[number][0], SIDE) for number in (0, 3)]
    open_sample(page, "first", 0)
    open_sample(page, "second", 3)
    for which, sight in zip(("first", "second"), sights, strict=True):
        assert shown(page, f"picture_{which}").tobytes() == sight.picture.tobytes()
    was = [page.locator("#picture_first img").get_attribute("src")]
    box = page.locator("#picture_first img").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.3)  # row 1, column 2 of 4 x 4
    wait_for_another(page, "picture_first", was)
    expected = compare(sights[0], (1, 2), sights[1])
    assert shown(page, "picture_first").tobytes() == expected.own.tobytes()
    assert shown(page, "picture_second").tobytes() == expected.other.tobytes()
    said = page.locator("#matches").inner_text()
    assert "row 2, column 3" in said
    assert f"1 {expected.matches[0][2]:.3f}" in said


def test_an_upload_shows_everything_and_goes_again(page, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8))
    image.save(tmp_path / "mine.png")
    page.locator("#upload_first input[type=file]").set_input_files(tmp_path / "mine.png")
    for place, count in (("picture_first", 1), ("pca_first", 1), ("attention", 3), ("depth", 1), ("segmentation", 1)):
        page.wait_for_selector(f"#{place} img")
        assert page.locator(f"#{place} img").count() >= count
    assert page.locator("#found img").count() == 9
    assert "in the unit of the head" in page.locator("#depth_is").inner_text()
    assert "%" in page.locator("#segmentation_is").inner_text()
    assert page.locator("#picture_second img").count() == 0
    page.locator("#upload_first button[aria-label='Clear']").click()
    page.wait_for_function("!document.querySelector('#picture_first img')")


def hostile_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(whole, "png")
    return {
        "empty.png": (b"", "empty"),
        "torn.png": (whole.getvalue()[:2000], "not a picture that can be shown"),
        "page.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "not an image in a format"),
        "text.jpg": (b"<b>not a picture</b>", "not an image in a format"),
        "bomb.png": (bomb(), "it has more pixels than the 50000000"),
        "strip.png": (_png(Image.new("RGB", (1000, 2))), "at most 100 times"),
        "huge.png": (bytes(2_000_000), "maximum allowed size"),
    }


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def test_hostile_files_are_refused_with_a_message_and_the_server_lives_on(page, server, tmp_path):
    open_sample(page, "first", 1)
    before = shown(page, "picture_first").tobytes()
    for name, (content, said) in hostile_files(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        page.locator("#upload_first input[type=file]").set_input_files(tmp_path / name)
        message = page.locator("[data-testid='toast-body']").last
        message.wait_for()
        assert said in message.inner_text(), name
        assert str(Path.home()) not in message.inner_text()
        assert shown(page, "picture_first").tobytes() == before, name
        page.reload()
        page.wait_for_selector("#samples_first img")
        open_sample(page, "first", 1)
        assert server.process.poll() is None
    open_sample(page, "first", 2)
    assert shown(page, "picture_first").tobytes() != before


def test_the_picture_of_the_readme_is_of_the_page(server):
    """The script of that picture, at another network: what is not text is coloured, down to the patch features."""
    pytest.importorskip("playwright", reason="the tests of pages need the package playwright")
    if find_chromium() is None:
        pytest.skip("there is no Chromium here")
    script = load_example("write_demo_picture")
    shot = script.screenshot(server.address, (0, 3), (0.6, 0.3), find_chromium(), patience=SECONDS / 1000)
    pixels = np.asarray(shot.convert("RGB")).astype(int)
    coloured = pixels.max(axis=2) - pixels.min(axis=2) > 60
    assert shot.width == script.WIDTH
    assert coloured.mean() > 0.2
    assert coloured[-shot.height // 4 :].any()


def test_nobody_else_reaches_it(server):
    """It listens on 127.0.0.1, and on no other address of this machine."""
    with socket.create_connection(("127.0.0.1", server.port)):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port))


def test_the_folder_is_a_space():
    """Its header is as the Hub wants it, and what it installs is the extra of the demo."""
    _, header, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["sdk"] == "gradio"
    assert (SPACE / header["app_file"]).is_file()
    installed, wanted = (value.split(".")[0] for value in (version("gradio"), header["sdk_version"]))
    assert installed == wanted
    assert len(header["short_description"]) <= 60
    assert (SPACE / "requirements.txt").read_text() == "dinov2_hf[demo]\n"
    assert "dinov2-hf demo" in text


def test_a_page_names_no_folder_above_that_of_the_run(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step_0000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / STATE_FILE).touch()
    names = {
        "run": "run", "run/model": "run", "run/checkpoints/step_0000004": "run", "run/checkpoints/latest": "run",
        "run/checkpoints/latest/small": "run small", "file.pth": "file.pth",
    }  # fmt: skip
    assert {name: shown_name(str(tmp_path / name)) for name in names} == names
    assert shown_name("facebook/dinov2-small") == "facebook/dinov2-small"


def test_mistakes_come_before_the_model_is_loaded(folders, tmp_path):
    assert "does not exist" in mistake("demo", tmp_path / "nothing")
    assert "`--gallery` is not given" in mistake("demo", folders["backbone"], "--num_workers", "1")
    assert "multiple of the patch size" in mistake("demo", folders["backbone"], "--image_size", "30")
    assert "decode_head" in mistake("demo", folders["backbone"], "--depth", folders["backbone"])
