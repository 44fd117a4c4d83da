"""What the perceptual descriptor cannot carry is asked for by name, and what it can carry is kept."""

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.plan import plan

from .scenes import encoded, scene, write_scenes


@pytest.fixture
def many(tmp_path) -> str:
    """A table of more images than the descriptor can carry; nobody reads them here."""
    rows = {"image": [{"bytes": b"x", "path": None}] * 20_001}
    path = tmp_path / "many.parquet"
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(path)
    return str(path)


def test_a_large_pool_needs_a_named_embedder(many, tmp_path):
    with pytest.raises(
        ValueError, match="pools of up to 20,000 images, but in this of 20,001 .* about 0.2 neighbours"
    ):
        plan(CurationArguments(uncurated=many))
    plan(CurationArguments(uncurated=many, embedder="perceptual"))


def test_large_benchmarks_need_a_named_embedder(many, tmp_path):
    pool = str(write_scenes(tmp_path / "pool", range(2)))
    with pytest.raises(ValueError, match="of up to 2,000 benchmark images, but of these 20,001"):
        plan(CurationArguments(uncurated=pool, benchmarks=many))


def test_a_choice_by_meaning_needs_a_named_embedder(tmp_path):
    pool = str(write_scenes(tmp_path / "pool", range(9)))
    by_meaning = {"uncurated": pool, "curated": str(write_scenes(tmp_path / "curated", range(20, 22)))}
    with pytest.raises(ValueError, match="knows nothing of what is to be seen, .*--retrieval_embedder"):
        plan(CurationArguments(**by_meaning))
    with pytest.raises(ValueError, match="knows nothing of what is to be seen"):
        plan(CurationArguments(uncurated=pool, hierarchy=[2], target_size=2))
    plan(CurationArguments(**by_meaning, embedder="perceptual"))


def test_a_pool_of_two_photographs_loses_none(tmp_path):
    """Of a temple and of a flower; a copy of one of them is found all the same."""
    photographs = [Image.fromarray(np.array(array)) for array in load_sample_images().images]
    pool = tmp_path / "pool"
    pool.mkdir()
    for number, photograph in enumerate(photographs):
        photograph.save(pool / f"{number}.jpg")
    arguments = {"uncurated": str(pool), "progress": False}
    curation = curate(CurationArguments(**arguments, output_dir=str(tmp_path / "two")))
    assert len(curation.array("deduplicate", "kept")) == 2
    copy = photographs[1].crop((20, 20, 600, 400)).resize((400, 260))
    (pool / "2.jpg").write_bytes(encoded(copy, "JPEG", quality=50))
    curation = curate(CurationArguments(**arguments, output_dir=str(tmp_path / "three")))
    assert curation.array("deduplicate", "kept").tolist() == [0, 1]


def test_two_scenes_stay_two(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    for seed in range(2):
        scene(seed).save(pool / f"{seed}.png")
    curation = curate(CurationArguments(uncurated=str(pool), output_dir=str(tmp_path / "out"), progress=False))
    assert len(curation.array("deduplicate", "kept")) == 2
