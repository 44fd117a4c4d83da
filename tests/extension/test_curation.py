"""A stage, a filter and an embedder of the user's own, in a curation: everything that is told of it tells of them."""

import json

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from dinov2_hf.cli import main
from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.storage.embeddings import EmbeddingStore
from tests.curation.conftest import planted, planted_files  # noqa: F401
from tests.curation.scenes import encoded, scene


SEMDEDUP = {"semdedup:semdedup": {"threshold": 0.9, "clusters": 1}}


def records(output_dir) -> dict[str, tuple]:
    rows = parquet.read_table(output_dir / "dropped.parquet").to_pylist()
    return {row["id"]: (row["stage"], row["reason"]) for row in rows}


def test_a_stage(planted, capsys):  # noqa: F811
    """It says what it drops; plan, command line, records, report, page and card learn of it from that."""
    changes = {"deduplication_threshold": 0.999, "curated": [], "benchmarks": [], "stages": [SEMDEDUP]}
    recipe = planted.folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**vars(planted.arguments(**changes)), "trust_torchscript": False}))
    for step in ("ingest", "embed", "deduplicate"):
        main(["curate", "--config", str(recipe), "--stage", step])
    main(["curate", "--config", str(recipe), "--stage", "semdedup"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["semdedup", "1", "of", "1", "shards,", "9", "rows"] in lines
    main(["curate", "--config", str(recipe)])
    assert "no semantic duplicates" in capsys.readouterr().out

    output_dir = planted.folder / "out"
    found = records(output_dir)
    assert len(found) == 3
    assert set(found.values()) == {("semdedup", "semantic duplicate (cosine > 0.9)")}
    assert len({"pool/0", "pool/1", "pool/2"} & set(found)) == 2  # 7 and 14 degrees apart
    assert len({"pool/3", "pool/4"} & set(found)) == 1
    report = json.loads((output_dir / "report.json").read_text())
    (row,) = (row for row in report["funnel"] if row["stage"] == "semdedup")
    assert (row["images_in"], row["images_out"]) == (12, 9)
    assert report["sources"][0]["dropped"] == {"semdedup": 3}
    assert report["histograms"]["Nearest image that stays in its cluster"]["above"] == 3
    page, card = (output_dir / "report.html").read_text(), (output_dir / "dataset" / "README.md").read_text()
    for text in (page, card):
        assert "no semantic duplicates" in text
        assert "semdedup:semdedup" in text
    assert "semantic duplicate (cosine &gt; 0.9): 3" in page  # its examples
    assert "Nearest image that stays in its cluster" in page


def test_help_tells_of_what_is_named(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"stages": [SEMDEDUP]}))
    with pytest.raises(SystemExit):
        main(["curate", "--config", str(recipe), "--filters", "detail:detail", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "semdedup:semdedup has the options threshold=0.95, clusters=100." in text
    assert "detail:detail has the options channels=3." in text


def test_a_stage_in_other_processes(planted):  # noqa: F811
    changes = {"deduplication_threshold": 0.999, "curated": [], "benchmarks": [], "stages": [SEMDEDUP]}
    curation = planted.curate(**changes, num_processes=2)
    assert len(records(curation.output_dir)) == 3


def test_options_of_a_stage(planted):  # noqa: F811
    planted.curate(stages=[SEMDEDUP])
    other = {"semdedup:semdedup": {"threshold": 0.95, "clusters": 1}}
    with pytest.raises(ValueError, match="stage 'semdedup' .* was made with threshold = 0.9, which is now 0.95"):
        planted.curate(stages=[other])
    with pytest.raises(ValueError, match="the stage 'semdedup' has no option 'treshold'. Did you mean `threshold`"):
        planted.curate(stages=[{"semdedup:semdedup": {"treshold": 0.9}}])
    with pytest.raises(ValueError, match="`stages` names 'detail:detail', which is a function, but must be a stage"):
        planted.curate(stages=["detail:detail"])
    with pytest.raises(ValueError, match="a stage 'semdedup' which there is already"):
        planted.curate(stages=[SEMDEDUP, SEMDEDUP])


def test_a_filter(tmp_path):
    """A photograph, and two of one colour; of those one is very large."""
    images = [scene(0), Image.new("RGB", (96, 72), "red"), Image.new("RGB", (400, 300), "blue")]
    rows = {"image": [{"bytes": encoded(image), "path": None} for image in images]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "pool.parquet")
    arguments = CurationArguments(
        uncurated=str(tmp_path / "pool.parquet"), output_dir=str(tmp_path / "out"), progress=False,
        embedder="colour_histogram:colour_histogram", filters=[{"detail:detail": {"min": 0.5, "channels": 1}}],
    )  # fmt: skip
    curation = curate(arguments)
    reason = ("ingest", "detail below 0.5")
    assert records(curation.output_dir) == {"pool/1": reason, "pool/2": reason}
    (scores,) = curation.folders["ingest"].files("scores.parquet")
    expected = [
        8 * len(row["bytes"]) / (image.width * image.height) for row, image in zip(rows["image"], images, strict=True)
    ]
    assert parquet.read_table(scores)["detail"].to_pylist() == pytest.approx(expected)
    report = json.loads((curation.output_dir / "report.json").read_text())
    assert report["histograms"]["Scores of the filter detail"]["below"] == 2
    assert "Scores of the filter detail" in (curation.output_dir / "report.html").read_text()
    card = (curation.output_dir / "dataset" / "README.md").read_text()
    assert "detail:detail" in card
    assert str(tmp_path) not in card


def test_an_embedder(planted):  # noqa: F811
    changes = {"embedder": "colour_histogram:colour_histogram", "curated": [], "benchmarks": []}
    curation = planted.curate(**changes, num_processes=2)
    store = EmbeddingStore(curation.folders["embed"].path, "shard-*/uncurated.npy")
    for row, vector in zip(store.ids, store.read(0, len(store)), strict=True):
        pixels = np.asarray(scene(row).resize((32, 32))).reshape(-1, 3) // 64
        counts = np.histogramdd(pixels, bins=4, range=[(0, 4)] * 3)[0].ravel()
        np.testing.assert_allclose(vector, np.sqrt(counts / counts.sum()), atol=1e-3)  # half precision
    card = (curation.output_dir / "dataset" / "README.md").read_text()
    assert "embedder: colour_histogram:colour_histogram" in card
