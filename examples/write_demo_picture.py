"""Write the picture of the demo in README: a page of `dinov2-hf demo` on which a patch was clicked.

The demo runs already, on its own sample pictures. The browser is Chromium, through the package `playwright`. The
picture in README is of a small network, pretrained on rendered scenes in minutes on one CPU core:

    python examples/write_rendered_scenes.py outputs/scenes
    dinov2-hf pretrain --config quickstart_digits --train_data outputs/scenes/train.parquet \
        --output_dir outputs/scenes_run --image_size 64 --patch_size 8 --local_crop_size 32 \
        --horizontal_flip_probability 0.5 --color_jitter_probability 0.5 --max_steps 120 --warmup_steps 20 \
        --cooldown_steps 20 --teacher_temperature_warmup_steps 40 --per_device_train_batch_size 32
    dinov2-hf demo outputs/scenes_run --image_size 320 --port 7871
    python examples/write_demo_picture.py http://127.0.0.1:7871 docs/images/demo.png
"""

import argparse
import io
from pathlib import Path

from PIL import Image


WIDTH, HEIGHT = 1120, 900  # of the window, in pixels
MARGIN = 12  # below what is shown, in pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the demo, which it prints when it is ready")
    parser.add_argument("output", type=Path, help="the PNG to write")
    parser.add_argument("--samples", type=int, nargs=2, default=(3, 0), help="numbers of the two sample pictures")
    parser.add_argument("--place", type=float, nargs=2, default=(0.57, 0.4), help="of the click: shares from top left")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="path of the browser")
    args = parser.parse_args()
    screenshot(args.address, args.samples, args.place, args.chromium).save(args.output, optimize=True)


def screenshot(
    address: str, samples: tuple[int, int], place: tuple[float, float], chromium: str, patience: float = 600
) -> Image.Image:
    """The page after a click into the first picture; a step of it may take so many seconds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(1000 * patience)
        page.goto(address)
        for which, number in zip(("first", "second"), samples, strict=True):
            page.locator(f"#samples_{which} img").nth(number).click()
            page.wait_for_selector(f"#pca_{which} img")
        picture = page.locator("#picture_first img")
        box = picture.bounding_box()
        picture.click(position={"x": place[0] * box["width"], "y": place[1] * box["height"]})
        page.wait_for_function("document.querySelector('#matches').innerText.includes('Patch in row')")
        page.mouse.move(0, 0)
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        page.evaluate("window.scrollTo(0, 0)")
        colours = page.locator("#pca_first").bounding_box()
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        browser.close()
    below = round(colours["y"] + colours["height"]) + MARGIN
    return shot.convert("RGB").crop((0, 0, WIDTH, below)).quantize(256, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
