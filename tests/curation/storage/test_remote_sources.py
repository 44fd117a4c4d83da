"""Sources in stores: a real S3 server on this machine, and memory."""

import json
import pickle

import fsspec
import pytest

from dinov2_hf.curation.storage.image_source import read_source
from dinov2_hf.curation.storage.sources import OpenSources
from dinov2_hf.data import decode_image
from tests.curation.scenes import encoded, scene, write_scenes
from tests.curation.storage.layouts import write_layouts
from tests.s3_server import s3_server


IN_STORES = ["folder", "folder/*.png", "table.parquet", "webdataset", "img2dataset", "img2dataset_files",
             "img2dataset_parquet", "list.csv", "list.jsonl"]  # fmt: skip


def upload(folder, store, place: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"{place}/{path.relative_to(folder)}", path.read_bytes())


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module", params=["s3", "memory"])
def layouts(request, local):
    """The address of the layouts in a store."""
    if request.param == "s3":
        with s3_server("images") as store:
            upload(local, store, "images/layouts")
            yield "s3://images/layouts"
    else:
        store = fsspec.filesystem("memory")
        upload(local, store, "/images/layouts")
        yield "memory://images/layouts"
        store.rm("/images", recursive=True)


def opened(source) -> OpenSources:
    return OpenSources([("uncurated", read_source(source))])


@pytest.mark.parametrize("name", IN_STORES)
def test_a_store_gives_the_images_of_a_folder(layouts, name, tmp_path):
    sources = opened(f"{layouts}/{name}")
    sources.store(tmp_path, is_sole_writer=True)
    for found in (sources, pickle.loads(pickle.dumps(sources))):
        assert len(found) == 4
        for row in range(4):
            assert decode_image(found.image(row)).tobytes() == scene(row).tobytes()
        found.refuse_changed(range(4))
    assert opened(f"{layouts}/{name}").describe() == sources.describe()
    (described,) = sources.describe()
    assert (described["name"], described["rows"]) == (name.split("/")[0].split(".")[0], 4)


def test_columns_of_a_store(layouts):
    sources = opened({"path": f"{layouts}/img2dataset", "id_column": "__key__"})
    assert sources.image_id(2) == "img2dataset/000000002"
    assert sources.values(2, ["json"]) == {"json": {"url": "https://example.org/2"}}
    assert opened({"path": f"{layouts}/list.csv", "id_column": "key"}).image_id(3) == "list/d"


def test_a_change_in_a_store_changes_the_fingerprint():
    store = fsspec.filesystem("memory")
    store.pipe_file("/changing/0.png", encoded(scene(0)))
    before = opened("memory://changing").fingerprints
    assert opened("memory://changing").fingerprints == before
    store.pipe_file("/changing/0.png", encoded(scene(1)))
    assert opened("memory://changing").fingerprints != before
    store.pipe_file("/changing/notes.dcm", b"x")
    found = opened("memory://changing")
    assert (len(found), found.listings[0].content.unread) == (1, {".dcm": 1})
    store.rm("/changing", recursive=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://images-that-are-not-there", "has no files, or is not there"),
        ("memory://images/*.png", "has no files, or is not there"),
        ("file:///etc", "give the plain path of a file on this machine"),
        ("zip://a.png::memory://x.zip", "give the plain path of a file on this machine"),
        ("nothing://x", "Protocol not known: nothing"),
    ],
)
def test_addresses_that_are_refused(path, message):
    with pytest.raises(ValueError, match=message):
        opened(path)


def test_a_list_names_files_below_its_root_only(tmp_path):
    write_scenes(tmp_path / "elsewhere", range(2))
    (tmp_path / "lists").mkdir()
    place = tmp_path / "lists" / "list.jsonl"

    def with_rows(*names: str) -> str:
        place.write_text("".join(json.dumps({"path": name, "caption": "x"}) + "\n" for name in names))
        return str(place)

    names = [
        str(tmp_path / "elsewhere" / "000.png"),
        "../elsewhere/001.png",
        "s3://private/a.png",
        "file:///etc/a.png",
    ]
    with pytest.raises(
        ValueError, match=r"list.jsonl' names 4 files that do not lie below .*lists \(.*, set `root` of the"
    ):
        opened(with_rows(*names))
    sources = opened({"path": with_rows(names[0], "elsewhere/001.png"), "root": str(tmp_path)})
    assert [decode_image(sources.image(row)).tobytes() for row in range(2)] == [scene(n).tobytes() for n in range(2)]
    assert sources.values(0, ["caption"]) == {"caption": "x"}
    assert opened(with_rows("https://example.org/a.png?signed=1")).image(0)["path"].startswith("https://")
    place.write_text('{"path": "a.png", "url": "b.png"}\n')
    with pytest.raises(ValueError, match="of which path and url could name the images"):
        opened(str(place))
    place.write_text('{"caption": "a.png"}\n')
    with pytest.raises(ValueError, match="the columns caption, of which none could name the images"):
        opened(str(place))


def test_a_list_of_files_that_change(tmp_path):
    """Rows without a file are rows, and a file of a row that has changed is noticed."""
    write_scenes(tmp_path, range(2))
    (tmp_path / "list.csv").write_text('file_name\n000.png\n""\n001.png\n')
    sources = opened(str(tmp_path / "list.csv"))
    assert [sources.image(row)["path"] is None for row in range(len(sources))] == [False, True, False]
    sources.refuse_changed(range(3))
    (tmp_path / "001.png").write_bytes(encoded(scene(7)))
    sources.refuse_changed(range(2))
    with pytest.raises(ValueError, match="001.png of the source 'list' has changed"):
        sources.refuse_changed(range(3))
    assert opened(str(tmp_path / "list.csv")).fingerprints != sources.fingerprints
