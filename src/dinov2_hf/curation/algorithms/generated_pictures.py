"""Generated pictures, whose edges and textures resemble those of photographs on the whole.

Dead leaves (shapes whose sizes follow a power law, each covering those before) give the edges of photographs (Lee,
Mumford & Huang 2001). Noise with a falling spectrum gives their textures. These pictures stand for "any picture" if
there are too few others.
"""

import numpy as np
from PIL import Image, ImageDraw


SIDE = 128
NUM_LEAVES = 300
SMALLEST, LARGEST = 0.0125, 0.5  # radii, as shares of the side


def generated_picture(seed: int) -> Image.Image:
    """A generated picture, RGB, `SIDE` pixels square; the same for the same seed."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (SIDE, SIDE), _colour(random))
    draw = ImageDraw.Draw(image)
    share = random.uniform(size=NUM_LEAVES)
    for radius in SIDE * (SMALLEST**-2 - share * (SMALLEST**-2 - LARGEST**-2)) ** -0.5:
        x, y = random.uniform(-0.1 * SIDE, 1.1 * SIDE, 2)
        if random.integers(2):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(random))
        else:
            corners = random.uniform(-radius, radius, (random.integers(3, 5), 2))
            draw.polygon([(x + dx, y + dy) for dx, dy in corners], fill=_colour(random))
    leaves = np.asarray(image, dtype=np.float64) * random.uniform(0.3, 1)
    return Image.fromarray(np.clip(leaves + random.uniform(0, 60) * _noise(random), 0, 255).astype(np.uint8))


def _colour(random: np.random.Generator) -> tuple[int, ...]:
    return tuple(random.integers(0, 256, 3).tolist())


def _noise(random: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 1) noise of variance 1, whose amplitude falls with a power of the frequency near 1."""
    frequency = np.fft.fftfreq(SIDE)
    amplitude = np.maximum(np.hypot(frequency[:, None], frequency), 1 / SIDE) ** -random.uniform(0.8, 1.6)
    noise = np.fft.ifft2(np.fft.fft2(random.normal(size=(SIDE, SIDE))) * amplitude).real
    return (noise / noise.std())[..., None]
