"""A copy is not lost because the image that stays for it has no vector."""

import numpy as np
import pytest
from pyarrow import parquet

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.stages.stand_ins import find_stand_ins
from tests.curation.scenes import encoded, scene, write_scenes


def test_copies_are_tried_until_one_has_a_vector():
    """Copies of 1 are 10, 11, ...; of 2 is 20; only 12, 13 and 30 have vectors."""
    copies = np.array([[10, 1], [11, 1], [13, 1], [12, 1], [14, 1], [15, 1], [20, 2], [30, 3]])
    asked = []

    def embed(rows):
        asked.append(rows.tolist())
        found = np.array([row for row in rows if row in (12, 13, 30)], np.int64)
        return found, found[:, None].astype(np.float32)

    pairs, vectors = find_stand_ins(np.array([1, 2, 3, 4]), copies, embed)
    assert asked == [[10, 20, 30], [11, 12, 13, 14]]
    assert pairs.tolist() == [[30, 3], [13, 1]]  # 13 is preferred to 12
    assert vectors.tolist() == [[30], [13]]
    pairs, _ = find_stand_ins(np.array([], np.int64), copies, embed)
    assert pairs.shape == (0, 2)


@pytest.fixture
def pool(tmp_path):
    """0 to 3 differ; 4 and 6 are the file 0, 5 is the picture 0 in another file, 7 is the file 1."""
    folder = write_scenes(tmp_path / "pool", range(4))
    (folder / "004.png").write_bytes((folder / "000.png").read_bytes())
    (folder / "005.bmp").write_bytes(encoded(scene(0), "BMP"))
    (folder / "006.png").write_bytes((folder / "000.png").read_bytes())
    (folder / "007.png").write_bytes((folder / "001.png").read_bytes())
    return folder


@pytest.mark.parametrize(("num_shards", "selection"), [(1, {}), (4, {}), (4, {"hierarchy": [3, 2], "target_size": 4})])
@pytest.mark.parametrize("missing", [[0, 1], [0, 4, 1]])
def test_a_copy_stands_in_for_an_image_without_a_vector(pool, tmp_path, missing, num_shards, selection):
    vectors = np.eye(8, dtype=np.float32)
    vectors[missing] = np.nan
    np.save(tmp_path / "vectors.npy", vectors)
    curation = curate(
        CurationArguments(
            uncurated=str(pool), output_dir=str(tmp_path / "out"), embedder=str(tmp_path / "vectors.npy"),
            num_shards=num_shards, progress=False, **selection,
        )
    )  # fmt: skip
    rows = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    found = {row["row_id"]: (row["stage"], row["duplicate_of"], row["similarity"]) for row in rows}
    assert len(found) == len(rows)
    kept = [
        int(id.split("/")[1])
        for path in sorted((curation.output_dir / "dataset" / "data").iterdir())
        for id in parquet.read_table(path)["id"].to_pylist()
    ]
    stands = 5 if 4 in missing else 4
    assert kept == sorted([stands, 2, 3, 7])
    assert found[0] == found[1] == ("embed", None, None)
    others = {4, 5, 6} - {stands}
    assert {row: found[row] for row in others} == dict.fromkeys(others, ("hash_deduplicate", f"pool/{stands}", None))
    assert len(found) == 4
