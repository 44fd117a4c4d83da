"""Pictures for the tests: random shapes that are as unlike each other as photographs, and copies of them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def scene(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """60 discs, boxes and triangles of random colours, the larger ones behind."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(int(value) for value in random.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for size in np.sort(random.uniform(0.03, 0.4, 60) ** 1.5)[::-1] * 2 * width:
        x, y = random.uniform(0, width), random.uniform(0, height)
        color = tuple(int(value) for value in random.integers(0, 256, 3))
        kind = random.integers(3)
        if kind == 0:
            draw.ellipse((x - size / 2, y - size / 2, x + size / 2, y + size / 2), fill=color)
        elif kind == 1:
            draw.rectangle((x - size / 2, y - size / 3, x + size / 2, y + size / 3), fill=color)
        else:
            corners = [(x + size * dx, y + size * dy) for dx, dy in random.uniform(-0.6, 0.6, (3, 2))]
            draw.polygon(corners, fill=color)
    return image


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_scenes(folder: Path, seeds, **options) -> Path:
    """One PNG for each seed, `000.png`, `001.png`, ... by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        scene(seed, **options).save(folder / f"{seed:03d}.png")
    return folder
