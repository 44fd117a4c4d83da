import io
import tarfile

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from dinov2_hf.data.decoding.rgb import decode_image
from dinov2_hf.data.reading.image_dataset import evaluation_split, load_image_dataset
from tests.data.conftest import encode, noise_image


PNG = encode(noise_image(0, 8, 8))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def write_files(folder, *names, content=PNG):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_parquet(path, num_rows, features=None, **columns):
    columns = columns or {"image": [{"bytes": PNG, "path": f"{i}.png"} for i in range(num_rows)]}
    features = features or Features({"image": Image()})
    Dataset.from_dict(columns, features=features).to_parquet(path)


def write_tar(path, names, content=PNG):
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def paths_of(dataset, root):
    return [row["path"].removeprefix(f"{root}/") for row in dataset["image"]]


def check_undecoded(dataset, column, num_rows):
    assert dataset.features[column] == Image(decode=False)
    rows = list(dataset)
    assert len(rows) == num_rows
    assert set(rows[0][column]) == {"bytes", "path"}


def test_a_folder_of_any_depth_without_labels(folder):
    write_files(folder, "b/2.JPG", "a.png", "b/c/d/1.webp", ".hidden/x.png", ".y.png", "notes.txt", "b/3.jpeg")
    dataset = load_image_dataset(str(folder))
    assert dataset.column_names == ["image"]
    assert paths_of(dataset, folder) == ["a.png", "b/2.JPG", "b/3.jpeg", "b/c/d/1.webp"]
    check_undecoded(dataset, "image", 4)


def test_broken_files_do_not_disturb_the_loading(folder):
    write_files(folder, "a.jpg", "b.jpg", content=b"")
    write_files(folder, "c.png", content=b"not an image")
    check_undecoded(load_image_dataset(str(folder)), "image", 3)


def test_one_folder_per_class_gives_labels(folder):
    write_files(folder, "dog/1.png", "cat/1.png", "cat/2.png", "eel/1.png")
    dataset = load_image_dataset(str(folder))
    assert dataset.features["label"] == ClassLabel(names=["cat", "dog", "eel"])
    assert dataset["label"][:] == [0, 0, 1, 2]


def test_a_single_subfolder_is_no_class(folder):
    write_files(folder, "all/1.png", "all/2.png")
    assert load_image_dataset(str(folder)).column_names == ["image"]


def test_split_folders_share_their_classes(folder):
    write_files(folder, "train/ant/1.png", "train/cat/1.png", "train/dog/1.png", "val/dog/2.png", "val/ant/2.png")
    write_files(folder, "labels/list.txt")
    train = load_image_dataset(str(folder))
    validation = load_image_dataset(str(folder), split="validation")
    assert len(train) == 3
    assert paths_of(validation, folder) == ["val/ant/2.png", "val/dog/2.png"]
    assert train.features["label"].names == validation.features["label"].names == ["ant", "cat", "dog"]
    assert validation["label"][:] == [0, 2]
    assert len(load_image_dataset(str(folder), split="val")) == 2


def test_one_split_folder_beside_other_data_is_refused(folder):
    write_files(folder, "bus/1.png", "train/1.png")
    with pytest.raises(ValueError, match="'train' beside 1 other images .bus/1.png, ....: it could be"):
        load_image_dataset(str(folder))


def test_each_split_has_labels_by_itself(folder, caplog):
    write_files(folder, "train/a/1.png", "train/b/1.png", "val/b/2.png", "test/3.png", "test/4.png")
    assert load_image_dataset(str(folder))["label"][:] == [0, 1]
    assert load_image_dataset(str(folder), split="val")["label"][:] == [1]
    with caplog.at_level("INFO", logger="dinov2_hf.data.reading.folders"):
        assert load_image_dataset(str(folder), split="test").column_names == ["image"]
    assert "test (2, no labels), train (2, 2 classes), validation (1, 1 classes)" in caplog.text


@pytest.mark.parametrize("stray", ["preview.png", "masks/1.png"])
def test_what_lies_beside_the_splits_is_left_out_and_said(folder, stray, caplog):
    write_files(folder, "train/1.png", "train/2.png", "val/1.png", stray)
    dataset = load_image_dataset(str(folder))
    assert paths_of(dataset, folder) == ["train/1.png", "train/2.png"]
    assert dataset.column_names == ["image"]
    assert f"1 files outside of the splits left out ({stray})" in caplog.text


def test_two_folders_for_one_split_are_refused(folder):
    write_files(folder, "train/1.png", "val/1.png", "dev/1.png")
    with pytest.raises(ValueError, match="'dev' and 'val', which both mean the split validation"):
        load_image_dataset(str(folder))


@pytest.mark.parametrize("stray", ["table.parquet", "shard.tar"])
def test_two_kinds_of_data_are_refused(folder, stray):
    write_files(folder, *(f"{i}.png" for i in range(6)), stray)
    with pytest.raises(ValueError, match=f"files of 2 kinds.*6 of kind image .0.png, .*{stray}"):
        load_image_dataset(str(folder))


def test_parquet_files_of_which_some_tell_a_split_are_refused(folder):
    for name in ("a", "test-0"):
        write_parquet(folder / f"{name}.parquet", 1)
    with pytest.raises(ValueError, match=r"1 files whose names tell no split \(a.parquet, ...\) beside others"):
        load_image_dataset(str(folder))


def test_links_are_followed_but_not_in_a_circle(folder, tmp_path, caplog):
    write_files(folder, *(f"a/{i}.png" for i in range(6)))
    write_files(tmp_path / "elsewhere", "x.png")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    assert len(load_image_dataset(str(folder))) == 7
    assert "1 links to a folder above them not followed (a/up)" in caplog.text


def test_links_to_what_is_above_the_data_or_above_a_link_are_not_followed(folder, tmp_path, caplog):
    write_files(folder, "a/1.png")
    write_files(tmp_path / "more", "deep/x.png", "other/y.png")
    write_files(tmp_path, "beside.png")
    (folder / "a" / "out").symlink_to(tmp_path)
    (folder / "deep").symlink_to(tmp_path / "more" / "deep")
    (tmp_path / "more" / "deep" / "back").symlink_to(tmp_path / "more")
    assert len(load_image_dataset(str(folder))) == 2
    assert "2 links to a folder above them not followed (a/out, deep/back)" in caplog.text


def test_files_that_are_not_read_are_counted_by_suffix(folder, caplog):
    write_files(folder, "a.png", "b.jpe", "1.heic", "2.HEIC", "scan.dcm", "noname", "README.md")
    assert len(load_image_dataset(str(folder))) == 2
    assert "5 files that are not read (2 .heic, 1 " in caplog.text
    for suffix in (".dcm", "no suffix", ".md"):
        assert f"1 {suffix}" in caplog.text
    for name in ("a.png", "b.jpe"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="it has only 5 files that are not read .2 .heic.*suffixes .avif, .bmp"):
        load_image_dataset(str(folder))


METADATA = {
    "csv": b"file_name,label,caption\nb/2.png,1,two\na/1.png,0,one\n",
    "jsonl": b'{"file_name": "b/2.png", "label": 1, "caption": "two"}\n'
    b'{"file_name": "a/1.png", "label": 0, "caption": "one"}\n',
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_becomes_columns(folder, suffix):
    write_files(folder, "a/1.png", "b/2.png")
    if suffix == "parquet":
        rows = {"file_name": ["b/2.png", "a/1.png"], "label": [1, 0], "caption": ["two", "one"]}
        Dataset.from_dict(rows).to_parquet(folder / "metadata.parquet")
    else:
        (folder / f"metadata.{suffix}").write_bytes(METADATA[suffix])
    dataset = load_image_dataset(str(folder))
    assert dataset.column_names == ["image", "label", "caption"]
    assert paths_of(dataset, folder) == ["a/1.png", "b/2.png"]
    assert dataset["label"][:] == [0, 1]
    assert dataset["caption"][:] == ["one", "two"]


def test_metadata_of_each_split(folder):
    write_files(folder, "train/1.png", "val/1.png")
    for split, label in (("train", 3), ("val", 4)):
        (folder / split / "metadata.csv").write_text(f"file_name,label\n1.png,{label}\n")
    assert load_image_dataset(str(folder), split="val")["label"][:] == [4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\na.png,1\n", "no row for 1 of 2 images, such as b.png"),
        ("file_name\na.png\na.png\n", "two rows for a.png"),
        ("name,label\na.png,1\n", "needs `file_name`"),
        ("", "cannot be read"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(folder, text, message):
    write_files(folder, "a.png", "b.png")
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_image_dataset(str(folder))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file(tmp_path, streaming):
    write_parquet(tmp_path / "test.parquet", 3)
    dataset = load_image_dataset(str(tmp_path / "test.parquet"), streaming=streaming)
    check_undecoded(dataset, "image", 3)
    assert isinstance(dataset, datasets.IterableDataset) == streaming


def test_a_slice_of_a_split(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", 4)
    assert len(load_image_dataset(str(tmp_path / "train-0.parquet"), split="test[:50%]")) == 2
    assert len(load_image_dataset(str(tmp_path), split="train[:3]")) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_globs_and_folders_of_parquet_files(folder, streaming):
    for name, num_rows in (("train-00000-of-00002", 2), ("train-00001-of-00002", 3), ("test-00000-of-00001", 1)):
        write_parquet(folder / f"{name}.parquet", num_rows)
    write_files(folder, "README.md", content=b"# Pictures\n")
    check_undecoded(load_image_dataset(f"{folder}/train-*.parquet", streaming=streaming), "image", 5)
    check_undecoded(load_image_dataset(str(folder), streaming=streaming), "image", 5)
    check_undecoded(load_image_dataset(str(folder), split="test", streaming=streaming), "image", 1)
    with pytest.raises(ValueError, match="'validation'.* splits: test, train"):
        load_image_dataset(str(folder), split="validation", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["image", "picture"])
def test_parquet_files_that_do_not_say_what_is_an_image(tmp_path, streaming, column):
    path = tmp_path / "plain.parquet"
    features = Features(
        {
            "id": Value("int64"),
            "picture": Value("binary"),
            "image": {"bytes": Value("binary"), "path": Value("string")},
        }
    )
    write_parquet(
        path,
        2,
        features,
        id=[0, 1],
        picture=[PNG, PNG],
        image=[{"bytes": PNG, "path": "a"}, {"bytes": PNG, "path": "b"}],
    )
    asked = None if column == "image" else column
    dataset = load_image_dataset(str(path), image_column=asked, streaming=streaming)
    check_undecoded(dataset, column, 2)
    assert next(iter(dataset))[column]["bytes"] == PNG


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset_tars(folder, streaming):
    for shard in range(2):
        write_tar(folder / f"train-{shard}.tar", [f"{shard}-{i}.png" for i in range(3)])
    for source, num_rows in ((folder / "train-0.tar", 3), (folder / "*.tar", 6), (folder, 6)):
        check_undecoded(load_image_dataset(str(source), streaming=streaming), "png", num_rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_data_sets(tmp_path, streaming):
    dataset = Dataset.from_dict({"image": [{"bytes": PNG, "path": None}] * 3}, features=Features({"image": Image()}))
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(tmp_path / "several")
    check_undecoded(load_image_dataset(str(tmp_path / "one"), streaming=streaming), "image", 3)
    check_undecoded(load_image_dataset(str(tmp_path / "several"), split="test", streaming=streaming), "image", 1)
    with pytest.raises(ValueError, match="split is 'validation'.* train, test"):
        load_image_dataset(str(tmp_path / "several"), split="validation", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("content", [b"", b"junk" * 500, "cut"])
@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_a_damaged_file_is_named(folder, suffix, content, streaming):
    for name in ("a", "b"):
        if suffix == "parquet":
            write_parquet(folder / f"{name}.parquet", 3)
        else:
            write_tar(folder / f"{name}.tar", [f"{i}.png" for i in range(3)], content=PNG * 20)
    damaged = folder / f"a.{suffix}"
    damaged.write_bytes(damaged.read_bytes()[:600] if content == "cut" else content)
    with pytest.raises(ValueError, match=f"a.{suffix}' is not a whole (parquet file|tar) "):
        load_image_dataset(str(folder), streaming=streaming)


@pytest.mark.parametrize("name", ["state.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_data_set_is_named(tmp_path, name):
    dataset = Dataset.from_dict({"image": [{"bytes": PNG, "path": None}] * 3}, features=Features({"image": Image()}))
    dataset.save_to_disk(tmp_path / "saved")
    path = tmp_path / "saved" / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="the saved data set '.*saved' cannot be read"):
        load_image_dataset(str(tmp_path / "saved"))


def test_streaming_a_folder(folder):
    write_files(folder, *(f"{i}.png" for i in range(5)))
    dataset = load_image_dataset(str(folder), streaming=True)
    assert dataset.num_shards == 5
    check_undecoded(dataset, "image", 5)


def test_a_missing_split_of_a_folder_is_named(folder):
    write_files(folder, "a.png")
    with pytest.raises(ValueError, match="split is 'test'.* splits: train"):
        load_image_dataset(str(folder), split="test")


def test_what_cannot_be_loaded_is_a_clear_error(folder, tmp_path):
    with pytest.raises(ValueError, match="with no images"):
        load_image_dataset(str(folder))
    with pytest.raises(ValueError, match="does not exist"):
        load_image_dataset(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="matches no file"):
        load_image_dataset(str(tmp_path / "*.parquet"))
    with pytest.raises(ValueError, match="'someone/missing' is not a path on this machine"):
        load_image_dataset("someone/missing")
    write_files(folder, "a.csv")
    with pytest.raises(ValueError, match="is not a folder, parquet file or tar"):
        load_image_dataset(str(folder / "a.csv"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_relative_name_of_a_folder(tmp_path, monkeypatch, streaming):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "0.png").write_bytes(encode(noise_image(0, 8, 8)))
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "./photos", "photos/../photos"):
        (row,) = load_image_dataset(name, streaming=streaming)
        assert decode_image(row["image"]).size == (8, 8)


@pytest.mark.parametrize("suffix", ["", ".parquet", ".tar"])
def test_all_splits_of_a_folder(folder, suffix):
    names = ("train/a/1", "train/b/2", "val/a/3", "test/4")
    if not suffix:
        write_files(folder, *(f"{name}.png" for name in names))
    for name in names if suffix else ():
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".parquet":
            write_parquet(path, 1)
        else:
            write_tar(path, [f"{name.replace('/', '_')}.png"])
    dataset = load_image_dataset(str(folder), split="all")
    assert len(dataset) == 4
    if not suffix:
        assert dataset["label"] == [None, 0, 1, 0]


def test_all_splits_of_a_saved_data_set(tmp_path):
    splits = {
        name: Dataset.from_dict({"image": [PNG] * n}).cast_column("image", Image())
        for name, n in (("train", 2), ("x", 3))
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert len(load_image_dataset(str(tmp_path / "saved"), split="all")) == 5
    splits["x"] = splits["x"].add_column("label", ["a"] * 3)
    splits["train"] = splits["train"].add_column("label", [1] * 2)
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(ValueError, match="train, x, have columns of different types"):
        load_image_dataset(str(tmp_path / "other"), split="all")


@pytest.mark.parametrize(
    ("folders", "split"),
    [
        (("train/a", "test/a"), "test"),
        (("train/a", "val/a"), "validation"),
        (("train/a",), "train"),
        (("cats", "dogs"), "train"),
    ],
)
def test_split_to_evaluate_on(tmp_path, folders, split):
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(encode(noise_image(0)))
    assert evaluation_split(str(tmp_path)) == split
    assert len(load_image_dataset(str(tmp_path), split=split))


def test_split_to_evaluate_on_of_files_and_of_what_is_not_there(tmp_path):
    assert evaluation_split("images/*.parquet") == evaluation_split("owner/name") == "test"
    assert evaluation_split(str(tmp_path)) == "test"  # it is empty, which loading it says
