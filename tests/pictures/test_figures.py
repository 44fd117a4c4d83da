"""Plots are honest, words in them are no formulas, and a picture never costs the numbers beside it."""

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.pictures import figures
from dinov2_hf.pictures.figures import draw_beside_numbers, draw_curves, new_figure, save_figure
from dinov2_hf.pictures.nearest_images import draw_nearest_images


BAD_WORDS = r"$\frac{$ and a_b^{"


def test_axes_of_shares_go_from_0_to_1_beside_a_baseline(tmp_path, monkeypatch):
    drawn = []

    def keep(figure, path):
        drawn.append(figure)
        return save_figure(figure, path)

    monkeypatch.setattr(figures, "save_figure", keep)
    curves = {"whole bank": {10: 0.944, 20: 0.952}}
    path = draw_curves(
        curves, tmp_path / "knn.png", x="k", y="top-1", title="k-NN", log_x=True, baselines={"most frequent": 0.4}
    )
    assert Image.open(path).width > 300
    (axes,) = drawn[0].axes
    low, high = axes.get_ylim()
    assert low == 0
    assert 1 <= high < 1.1
    assert axes.get_title(loc="left") == "k-NN"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "whole bank: best 0.952 at 20", "most frequent: 0.400",
    ]  # fmt: skip
    assert [line.get_ydata()[0] for line in axes.lines] == [0.944, 0.4]


def test_words_are_drawn_as_they_are(tmp_path):
    curves = {BAD_WORDS: {1e-5: 0.5, 1.0: 0.6}}
    draw_curves(
        curves, tmp_path / "a.png", x=BAD_WORDS, y=BAD_WORDS, title=BAD_WORDS, log_x=True, baselines={BAD_WORDS: 0}
    )
    picture = Image.new("RGB", (8, 8))
    draw_nearest_images(
        [picture], [[picture]], np.ones((1, 1)), tmp_path / "b.png", labels=[[BAD_WORDS, BAD_WORDS]], title=BAD_WORDS
    )
    for name in ("a", "b"):
        assert Image.open(tmp_path / f"{name}.png").width > 100


def test_a_failing_picture_is_a_warning(tmp_path, caplog):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        save_figure(new_figure(1, 1), tmp_path / "x.png")
    draw_beside_numbers(tmp_path, "x.png", save_figure, new_figure(1, 1))
    assert "x.png could not be drawn (ValueError: " in caplog.text
