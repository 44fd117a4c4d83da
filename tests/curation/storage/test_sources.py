"""Every layout that images come in, in one numbering."""

import io
import json
import pickle
import tarfile

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from dinov2_hf.curation.storage.sources import ImageSource, OpenSources, named_apart, read_source
from dinov2_hf.data import decode_image
from tests.curation.scenes import encoded, scene, write_scenes


def tar_of(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def parquet_of(path, seeds, **columns) -> None:
    rows = {"image": [{"bytes": encoded(scene(seed)), "path": None} for seed in seeds], **columns}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(path))


@pytest.fixture
def layouts(tmp_path):
    """Scenes 0 to 3 in each layout."""
    write_scenes(tmp_path / "folder", range(4))
    parquet_of(tmp_path / "table.parquet", range(4))
    (tmp_path / "webdataset").mkdir()
    tar_of(tmp_path / "webdataset" / "0.tar", {f"{seed}.png": encoded(scene(seed)) for seed in range(4)})
    downloaded = tmp_path / "img2dataset"  # a tar, and a parquet file of what was downloaded beside it
    downloaded.mkdir()
    members = {}
    for seed in range(4):
        members[f"00000000{seed}.png"] = encoded(scene(seed))
        members[f"00000000{seed}.json"] = json.dumps({"url": f"https://example.org/{seed}"}).encode()
    tar_of(downloaded / "00000.tar", members)
    datasets.Dataset.from_dict({"url": list("abcd")}).to_parquet(str(downloaded / "00000.parquet"))
    (downloaded / "00000_stats.json").write_text("{}")
    files = write_scenes(tmp_path / "img2dataset_files" / "00000", range(4)).parent
    datasets.Dataset.from_dict({"url": list("abcd")}).to_parquet(str(files / "00000.parquet"))
    (tmp_path / "img2dataset_parquet").mkdir()
    table = {"key": [f"00000000{seed}" for seed in range(4)], "jpg": [encoded(scene(seed)) for seed in range(4)]}
    parquet.write_table(pa.table(table), tmp_path / "img2dataset_parquet" / "00000.parquet")
    (tmp_path / "img2dataset_parquet" / "00000_stats.json").write_text("{}")
    datasets.Dataset.from_dict({"image": [str(p) for p in sorted((tmp_path / "folder").iterdir())]}).cast_column(
        "image", datasets.Image()
    ).save_to_disk(str(tmp_path / "saved"))
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["folder", "table.parquet", "webdataset", "img2dataset", "img2dataset_files", "img2dataset_parquet", "saved"],
)
def test_every_layout_gives_the_same_images(layouts, name):
    sources = OpenSources([("uncurated", read_source(str(layouts / name)))])
    assert len(sources) == 4
    for row in range(4):
        assert decode_image(sources.image(row)).tobytes() == scene(row).tobytes()


def test_rows_are_numbered_through(layouts):
    sources = OpenSources(
        [("uncurated", read_source(str(layouts / "folder"))), ("benchmark", read_source(str(layouts / "saved")))]
    )
    assert [sources.locate(row) for row in (0, 3, 4, 7)] == [(0, 0), (0, 3), (1, 0), (1, 3)]
    assert sources.image_id(5) == "saved/1"
    assert list(sources.range_of(1)) == [4, 5, 6, 7]
    again = pickle.loads(pickle.dumps(sources))
    assert again.image_id(5) == "saved/1"
    assert again.describe() == sources.describe()


def test_ids_and_further_columns(tmp_path):
    parquet_of(tmp_path / "a.parquet", range(2), key=["x", "y"], label=[1, 2])
    parquet_of(tmp_path / "b.parquet", range(2), label=["one", "two"])
    source = {"path": str(tmp_path / "a.parquet"), "name": "first", "id_column": "key"}
    sources = OpenSources([("uncurated", read_source(source)), ("curated", read_source(str(tmp_path / "b.parquet")))])
    assert [sources.image_id(row) for row in range(4)] == ["first/x", "first/y", "b/0", "b/1"]
    assert sources.values(1, ["label", "key"]) == {"label": 2, "key": "y"}
    assert sources.values(2, ["key"]) == {"key": None}
    assert sources.column_features(["key"]) == {"key": datasets.Value("string")}
    with pytest.raises(ValueError, match="keep_columns has 'label', which is .*int64.* in 'first' but .*string"):
        sources.column_features(["label"])
    with pytest.raises(ValueError, match="keep_columns has 'colour', which is a column of no source"):
        sources.column_features(["colour"])


def test_a_fingerprint_follows_the_files(tmp_path):
    folder = write_scenes(tmp_path / "pool", range(3))

    def fingerprint():
        return OpenSources([("uncurated", read_source(str(folder)))]).describe()[0]["fingerprint"]

    before = fingerprint()
    assert fingerprint() == before
    (folder / "001.png").write_bytes(encoded(scene(9)))
    assert fingerprint() != before


@pytest.mark.parametrize("change", [{"split": "train[2:]"}, {"image_column": "other"}])
def test_a_description_follows_what_is_read_of_a_file(tmp_path, change):
    rows = {"image": [encoded(scene(seed)) for seed in range(4)], "other": [encoded(scene(seed)) for seed in range(4)]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.cast_column("other", datasets.Image()).to_parquet(str(tmp_path / "a.parquet"))
    source = {"path": str(tmp_path / "a.parquet"), "split": "train[:2]"}
    described = [OpenSources([("uncurated", read_source(each))]).describe() for each in (source, {**source, **change})]
    assert described[0] != described[1]
    assert described[0][0]["fingerprint"] == described[1][0]["fingerprint"]  # the files are the same


def test_names_are_told_apart():
    paths = ("a/x", "b/x.parquet", "c/*.tar", {"path": "d", "name": "x-2"})
    names = [source.name for source in named_apart([read_source(path) for path in paths])]
    assert names == ["x", "x-2", "c", "x-2-2"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"path": "x", "colour": 1}, "the source x is refused: it has the unknown key `colour`"),
        ({"name": "x"}, "is refused: `--path` must be given"),
        ({"path": 3}, "`path` is 3; it must be a text"),
        ({"path": "x", "retrieval": "knn"}, '`retrieval` is "knn"; it must be "sample" or "cluster"'),
        ({"path": "x", "retrieval_num_neighbors": 0}, "`retrieval_num_neighbors` is 0; it must be at least 1"),
    ],
)
def test_mistakes_in_a_source(value, message):
    with pytest.raises(ValueError, match=message):
        read_source(value)


def test_a_source_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        OpenSources([("uncurated", ImageSource(str(tmp_path / "empty")))])
    datasets.Dataset.from_dict({"image": []}, features=datasets.Features({"image": datasets.Image()})).to_parquet(
        str(tmp_path / "none.parquet")
    )
    with pytest.raises(ValueError, match="the source .*none.parquet' has no images"):
        OpenSources([("uncurated", ImageSource(str(tmp_path / "none.parquet")))])
    parquet_of(tmp_path / "a.parquet", range(1))
    with pytest.raises(ValueError, match="id_column='key', but its columns are image"):
        OpenSources([("uncurated", ImageSource(str(tmp_path / "a.parquet"), id_column="key"))])
