"""A curation whose images, lists and dataset are in a store gives what one on this machine gives."""

import datasets
import pytest
from pyarrow import parquet

from dinov2_hf.curation import CuratedImages, CurationArguments, curate
from tests.curation.scenes import scene, write_scenes
from tests.curation.storage.layouts import parquet_of
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A pool with copies, in files and in a table; a list of curated images; a benchmark that the pool repeats."""
    folder = tmp_path_factory.mktemp("images")
    write_scenes(folder / "pool" / "a", range(12))
    scene(3).resize((48, 36)).save(folder / "pool" / "a" / "small.png")
    (folder / "pool" / "a" / "broken.png").write_bytes(b"no image")
    (folder / "pool" / "notes.dcm").write_bytes(b"x")
    (folder / "tables").mkdir()
    parquet_of(folder / "tables" / "0.parquet", range(10, 20))
    write_scenes(folder / "lists" / "files", [30, 31])
    (folder / "lists" / "list.csv").write_text("file_name\nfiles/030.png\nfiles/031.png\n")
    write_scenes(folder / "benchmark" / "test", [5])
    return folder


@pytest.fixture(scope="module")
def store(images):
    with s3_server("curation") as store:
        for path in images.rglob("*"):
            if path.is_file():
                store.pipe_file(f"curation/{path.relative_to(images)}", path.read_bytes())
        yield store


def arguments_for(root, output_dir, **changes) -> CurationArguments:
    return CurationArguments(
        uncurated=[f"{root}/pool", f"{root}/tables"], curated=f"{root}/lists/list.csv", benchmarks=f"{root}/benchmark",
        embedder="perceptual",
        output_dir=str(output_dir), num_shards=2, rows_per_file=3, retrieval_num_neighbors=8, progress=False, **changes
    )  # fmt: skip


def rows_of(paths, read) -> list[dict]:
    return [row for path in paths for row in read(path).to_pylist()]


def test_a_store_gives_the_dataset_of_this_machine(images, store, tmp_path):
    here = curate(arguments_for(images, tmp_path / "here")).output_dir
    url = "s3://curation/made/dataset"
    arguments = arguments_for("s3://curation", tmp_path / "there", dataset_url=url)
    there = curate(arguments).output_dir

    expected = rows_of(sorted((here / "dataset" / "data").iterdir()), parquet.read_table)
    sent = sorted(store.ls("curation/made/dataset/data"))
    assert all(name.endswith(".parquet") for name in sent)
    assert rows_of(sent, lambda name: parquet.read_table(store.open(name))) == expected
    assert len(sent) > 2
    dropped = [
        parquet.read_table(folder / "dropped.parquet").drop_columns("path").to_pylist() for folder in (here, there)
    ]
    assert dropped[0] == dropped[1]
    assert {row["stage"] for row in dropped[0]} >= {"ingest", "hash_deduplicate", "relative_deduplicate"}
    assert not (there / "dataset").exists()
    assert {path.name for path in (there / "stages" / "build").rglob("*.parquet")} == {"dropped.parquet"}
    card = store.cat_file("curation/made/dataset/README.md").decode()
    assert f'load_dataset("parquet", data_files="{url}/data/*.parquet", split="train")' in card
    loaded = datasets.load_dataset("parquet", data_files=f"{url}/data/*.parquet", split="train", streaming=True)
    assert [row["id"] for row in loaded.remove_columns("image")] == [row["id"] for row in expected]

    curate(arguments)  # nothing is missing, nothing changes
    assert sorted(store.ls("curation/made/dataset/data", refresh=True)) == sent
    store.pipe_file("curation/made/dataset/README.md", b"edited")
    store.pipe_file("curation/made/dataset/data/mine.parquet", b"of somebody else")
    fewer = arguments_for("s3://curation", tmp_path / "there", dataset_url=url, min_side=40, overwrite=True)
    fewer.rows_per_file = 100
    curate(fewer)
    left = [name.rsplit("/")[-1] for name in store.ls("curation/made/dataset/data", refresh=True)]
    assert left == ["mine.parquet", "train-00000-00000.parquet", "train-00001-00000.parquet"]
    assert store.cat_file("curation/made/dataset/README.md") != b"edited"


def test_what_a_dataset_in_a_store_refuses(images, store, tmp_path):
    def refused(message: str, **changes) -> None:
        with pytest.raises(ValueError, match=message):
            curate(arguments_for("s3://curation", tmp_path / "out", **changes))
        assert not (tmp_path / "out").exists()

    refused("which is in or around the source s3://curation/pool", dataset_url="s3://curation/pool/out")
    refused("which is in or around the source s3://curation/pool", dataset_url="s3://curation/")
    refused("was not written by dinov2_hf", dataset_url="s3://curation/lists/files")
    refused("must be an address, such as s3://bucket/dataset", dataset_url="out/dataset")
    refused("cannot be looked at .*specified bucket does not exist", dataset_url="s3://no-bucket/x")
    with pytest.raises(ValueError, match=r"is a URL, but .* \(--dataset_url\), .* \(--stages_url\)"):
        arguments_for("s3://curation", "s3://curation/out")
    with pytest.raises(ValueError, match="dataset_url is not for a builder"):
        CuratedImages(uncurated=str(images / "pool"), dataset_url="s3://curation/x")
    curate(arguments_for("s3://curation", tmp_path / "one", dataset_url="s3://curation/one"), "ingest")
    refused("the dataset of a curation with another output_dir", dataset_url="s3://curation/one")


def test_a_file_that_is_lost_in_the_store(store, tmp_path):
    arguments = arguments_for("s3://curation", tmp_path / "out", dataset_url="s3://curation/lost")
    curate(arguments)
    store.rm_file("curation/lost/data/train-00001-00000.parquet")
    with pytest.raises(ValueError, match="has None bytes, but .* the folder of shard 1 of the stage build"):
        curate(arguments)
