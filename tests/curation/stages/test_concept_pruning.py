"""Stages of pruning that a recipe names, in a curation whose vectors are known."""

import json

import numpy as np
import pytest
from pyarrow import parquet

from tests.curation.conftest import planted, planted_files  # noqa: F401
from tests.curation.scenes import write_scenes


PLAIN = {"curated": [], "benchmarks": [], "deduplication_threshold": 0.999}


def dropped(curation) -> dict[str, tuple]:
    rows = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    return {row["id"]: (row["stage"], row["reason"], row["duplicate_of"]) for row in rows}


def test_semantic_duplicates(planted):  # noqa: F811
    """In one cluster: of 0, 1 and 2 (7 degrees apart) and of 3 and 4 the less typical stay."""
    curation = planted.curate(**PLAIN, stages=[{"semdedup": {"threshold": 0.9, "clusters": 1}}])
    found = dropped(curation)
    assert len(found) == 3
    assert {stage for stage, _, _ in found.values()} == {"semdedup"}
    assert len({"pool/0", "pool/1", "pool/2"} & set(found)) == 2
    assert len({"pool/3", "pool/4"} & set(found)) == 1
    assert "no semantic duplicates" in (curation.output_dir / "report.html").read_text()


@pytest.mark.parametrize("name", ["density_pruning", "balance"])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_a_share_stays(planted, name, keep):  # noqa: F811
    curation = planted.curate(**PLAIN, stages=[{name: {"keep": keep, "clusters": 3}}])
    assert len(dropped(curation)) == (6 if keep == 0.5 else 0)
    with pytest.raises(ValueError, match="keep is 2, but must be the share"):
        planted.curate(**PLAIN, stages=[{name: {"keep": 2}}], overwrite=True)


def test_they_follow_each_other_as_the_recipe_has_them(planted, tmp_path):  # noqa: F811
    """By the vectors of retrieval, after which the curated images are retrieved for among what is left."""
    (tmp_path / "others").mkdir()
    for name in ("pool", "curated"):
        np.save(tmp_path / "others" / f"{name}.npy", np.load(planted.folder / "vectors" / f"{name}.npy"))
    stages = [{"semdedup": {"threshold": 0.9, "clusters": 1}}, {"balance": {"keep": 0.5, "clusters": 2}}]
    curation = planted.curate(
        retrieval_embedder=str(tmp_path / "others"), stages=stages, deduplication_threshold=0.999,
        retrieval_num_neighbors=1,
    )  # fmt: skip
    names = list(curation.folders)
    assert names.index("retrieval_embed") < names.index("semdedup") < names.index("balance")
    assert names.index("balance") < names.index("retrieval_train_index")
    gone = {stage for stage, _, _ in dropped(curation).values()}
    assert {"semdedup", "balance"} <= gone


def test_the_report_tells_of_concepts(planted, tmp_path):  # noqa: F811
    """60 images around 3 centres, of which the last has a tenth of the first; balanced over three clusters."""
    write_scenes(tmp_path / "sixty" / "pool", range(60), width=24, height=24)
    labels = np.repeat([0, 1, 2], [40, 16, 4])
    centers = np.eye(3, 8)
    rows = centers[labels] + 0.1 * np.random.default_rng(0).normal(size=(60, 8))
    np.save(tmp_path / "vectors.npy", rows.astype(np.float32))
    curation = planted.curate(
        **{**PLAIN, "deduplication_threshold": 0.99999}, uncurated=str(tmp_path / "sixty" / "pool"),
        embedder=str(tmp_path / "vectors.npy"), stages=[{"balance": {"keep": 0.2, "clusters": 3}}],
        perceptual_hash_distance=None,
    )  # fmt: skip
    found = json.loads((curation.output_dir / "report.json").read_text())["concepts"]
    assert found["clusters"] == 3
    assert found["pool"]["images"] == [40, 16, 4]
    assert found["dataset"]["images"] == [4, 4, 4]
    assert found["dataset"]["effective_number"] == pytest.approx(3)
    share = np.array([40, 16, 4]) / 60
    assert found["pool"]["effective_number"] == pytest.approx(np.prod(share**-share))
    for number, rows in enumerate(found["typical"]):
        assert (labels[rows] == number).all()
