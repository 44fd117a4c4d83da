"""Borders of one colour are found, and nothing else."""

import numpy as np
from PIL import Image, ImageOps

from dinov2_hf.curation.algorithms.picture_borders import trim_borders
from tests.curation.scenes import scene


def test_borders_are_trimmed():
    inner = scene(7)
    framed = ImageOps.expand(inner, (30, 10, 5, 0), "black")
    trimmed = trim_borders(framed)
    assert abs(trimmed.width - inner.width) <= 2
    assert abs(trimmed.height - inner.height) <= 2
    plain = Image.new("RGB", (60, 60), "blue")
    assert trim_borders(plain) is plain
    assert np.asarray(trim_borders(inner)).shape == np.asarray(inner).shape
