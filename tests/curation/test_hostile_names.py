"""Names, ids and reasons are text: in the page, in the card and in the pictures."""

import json
import os
import re
from html.parser import HTMLParser

import datasets
import numpy as np
import pytest

from dinov2_hf.curation import CurationArguments, Dropped, curate, read_arguments, stage
from dinov2_hf.curation.report.dataset_card import dataset_card
from dinov2_hf.curation.storage.image_source import read_source

from .scenes import encoded, scene, write_scenes


HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$\\frac{$", "{{ 7 * 7 }}", "a|b",
    "[x](javascript:1)", "line\nbreak", "```\n# heading", "' onload='alert(1)", "\u202egnp", "&lt;b&gt;",
)  # fmt: skip


@stage("refuse_some", title="narrow", after="embed")
def refuse_some(curation, shard):
    row_ids, _ = curation.left()
    widths = curation.facts(row_ids, ["width"])["width"].to_numpy()
    return Dropped(row_ids[widths > 100], [HOSTILE[width % len(HOSTILE)] for width in widths[widths > 100]])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_report_and_the_card_show_them_as_they_are(tmp_path):
    count = 2 * len(HOSTILE)
    rows = {
        "image": [{"bytes": encoded(scene(seed)), "path": None} for seed in range(count)]
        + [{"bytes": encoded(scene(seed, width=110 + seed)), "path": None} for seed in range(len(HOSTILE))],
        "key": [f"{name}{number}" for number, name in enumerate((*HOSTILE, *HOSTILE, *HOSTILE))],
    }
    path = str(tmp_path / "pool.parquet")
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(path)
    vectors = np.eye(len(rows["key"]), dtype=np.float32)
    vectors[len(HOSTILE) : count] = vectors[: len(HOSTILE)]
    np.save(tmp_path / "vectors.npy", vectors)
    name = HOSTILE[1].replace("/", "") + "$\\frac{$ | `"
    curation = curate(
        CurationArguments(
            uncurated=[{"path": path, "name": name, "id_column": "key"}], output_dir=str(tmp_path / "out"),
            embedder=str(tmp_path / "vectors.npy"), stages=[f"{__name__}:refuse_some"], license="```", progress=False,
        )
    )  # fmt: skip
    page = (curation.output_dir / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not [tag for tag, _ in tags.found if tag == "script"]
    images = [attributes for tag, attributes in tags.found if tag == "img"]
    assert len(images) >= len(HOSTILE)
    assert all(set(attributes) == {"src", "title", "alt"} for attributes in images)
    shown = {attributes["title"] for attributes in images}
    assert {f"{name}/{HOSTILE[0]}0", f"{name}/{HOSTILE[2]}2"} <= shown
    assert "49" not in {title.split("/")[-1] for title in shown}
    report = json.loads((curation.output_dir / "report.json").read_text())
    card = dataset_card(read_arguments(curation.output_dir / "curation.yaml"), report, "ada/images")
    text = card.split("---", 2)[2]
    before, configuration = text.split("\n````yaml\n")  # a longer fence than any in what it holds
    assert not re.search(r"<script|<img|(?<!\\)\[x", before)
    assert configuration.endswith("\n````")
    assert "license: '```'" in configuration
    (row,) = (line for line in text.splitlines() if line.startswith("| ") and "| uncurated |" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "# heading" not in before.splitlines()


def test_a_file_name_that_is_no_text_is_counted(tmp_path):
    folder = write_scenes(tmp_path / "pool", range(21))
    try:
        os.rename(os.fsencode(folder / "020.png"), os.fsencode(folder) + b"/\xff\xfe.png")
    except OSError:
        pytest.skip("this file system has names of text only")
    curation = curate(CurationArguments(uncurated=str(folder), output_dir=str(tmp_path / "out"), progress=False))
    (pool,) = json.loads((curation.output_dir / "report.json").read_text())["sources"]
    assert (pool["images"], pool["unread"]) == (20, {"names that are not UTF-8": 1})


def test_the_query_of_a_url_is_in_no_name():
    assert read_source("https://host/a/images.parquet?signature=SECRET").name == "images"
    assert read_source("https://host/a/images?signature=SE.CRET/x").name == "images"
