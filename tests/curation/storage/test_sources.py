"""Every layout that images come in, in one numbering."""

import pickle

import datasets
import pytest

from dinov2_hf.curation.storage.image_source import ImageSource, named_apart, read_source
from dinov2_hf.curation.storage.sources import OpenSources
from dinov2_hf.data import decode_image
from tests.curation.scenes import encoded, scene, write_scenes
from tests.curation.storage.layouts import parquet_of, tar_of, write_layouts


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("layouts"))


@pytest.mark.parametrize(
    "name",
    [
        "folder",
        "table.parquet",
        "webdataset",
        "img2dataset",
        "img2dataset_files",
        "img2dataset_parquet",
        "saved",
        "folder/*.png",
        "list.csv",
        "list.jsonl",
    ],
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
    with pytest.raises(ValueError, match="keep_columns has 'colour', but no source has such a column"):
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


def test_packed_files_are_read_where_they_are(tmp_path, monkeypatch):
    """Nothing goes to the cache of `datasets`; of several row groups and files each row is the one of its number."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tars").mkdir()
    for number, seeds in enumerate((range(0, 3), range(3, 4), range(4, 9))):
        rows = {"image": [{"bytes": encoded(scene(seed)), "path": None} for seed in seeds], "seed": list(seeds)}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        table.to_parquet(str(tmp_path / "tables" / f"{number}.parquet"), batch_size=2)
        members = {}
        for seed in seeds:
            members |= {f"{seed}.png": encoded(scene(seed)), f"{seed}.cls": str(seed).encode()}
        tar_of(tmp_path / "tars" / f"{number}.tar", members)
    for name, column, rows in (("tables", "seed", range(9)), ("tars", "cls", range(9))):
        sources = OpenSources([("uncurated", read_source(str(tmp_path / name)))])
        order = [8, *rows, 0, 4]
        assert [decode_image(sources.image(row)).tobytes() for row in order] == [scene(r).tobytes() for r in order]
        assert [sources.values(row, [column])[column] for row in order] == order
    part = {"path": str(tmp_path / "tables" / "*.parquet"), "split": "train[2:7]"}
    sources = OpenSources([("uncurated", read_source(part))])
    assert [sources.values(row, ["seed"])["seed"] for row in range(len(sources))] == [2, 3, 4, 5, 6]
    assert not (tmp_path / "cache").exists()


def test_tars_of_several_kinds_of_images(tmp_path):
    """One column, as long as no sample has two images; a sample without any is a row without an image."""
    jpeg = encoded(scene(1), "JPEG")
    members = {"0.png": encoded(scene(0)), "1.jpg": jpeg, "2.txt": b"no image", "._3.jpg": b"hidden", "README": b"x"}
    tar_of(tmp_path / "a.tar", members)
    sources = OpenSources([("uncurated", read_source(str(tmp_path / "a.tar")))])
    assert sources.image_columns == ["image"]
    assert sources.listings[0].content.unread == {".jpg": 1, "no suffix": 1}
    assert [value and value["bytes"] for value in map(sources.image, range(3))] == [encoded(scene(0)), jpeg, None]
    assert sources.values(2, ["txt"]) == {"txt": "no image"}
    tar_of(tmp_path / "b.tar", {"0.png": encoded(scene(0)), "0.mask.png": encoded(scene(1))})
    sources = OpenSources([("uncurated", read_source(str(tmp_path / "b.tar")))])
    assert sources.image(0)["bytes"] == encoded(scene(0))


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_damaged_packed_files_are_named(tmp_path, name):
    if name == "a.tar":
        tar_of(tmp_path / name, {f"{seed}.png": encoded(scene(seed)) for seed in range(3)})
    else:
        parquet_of(tmp_path / name, range(3))
    content = (tmp_path / name).read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}' is not a whole {'tar' if name == 'a.tar' else 'parquet file'}"):
            OpenSources([("uncurated", read_source(str(tmp_path / name)))])
