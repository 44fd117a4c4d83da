"""The curves of a page, as a browser draws them."""

import json

import pytest

from dinov2_hf.pictures.interactive_curves import SCRIPT, interactive_curves
from tests.browsers import open_page


@pytest.mark.parametrize(
    ("steps", "numbers", "places"),
    [([6], ["5", "6", "7"], ["279"]), ([6, 8], ["6", "7", "8"], ["58", "500"])],  # a panel is drawn from 58 to 500
)
def test_only_whole_steps_are_numbered_and_a_single_one_stands_in_the_middle(tmp_path, steps, numbers, places):
    pytest.importorskip("playwright.sync_api")
    curves = interactive_curves([{"step": step, "learning_rate": 0.1 * step} for step in steps])
    (tmp_path / "page.html").write_text(
        f'<div id="curves"></div><script>{SCRIPT.read_text()}\n'
        f'drawCurves(document.getElementById("curves"), {json.dumps(curves)});</script>'
    )
    with open_page(tmp_path / "page.html") as page:
        labels = page.locator("svg .tick.middle").all_text_contents()
        assert labels == numbers
        found = [circle.get_attribute("cx") for circle in page.locator("circle").all()]
        assert [str(round(float(one))) for one in found] == places
