import json
import shlex
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import nn
from transformers import BitImageProcessor, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from dinov2_hf import feature_files
from dinov2_hf.data import load_image_dataset
from dinov2_hf.feature_files import write_features
from dinov2_hf.features import FeatureExtractor
from dinov2_hf.output_folders import sole_writer
from tests import forked_python


FORMATS = ("features.parquet", "features.npy", "features")
TABLES = ("features.parquet", "features")
NUM_IMAGES = 7
SHAPES = {"cls": (12,), "mean_patch": (12,), "patch_grid": (3, 2, 12), "last_layers": (24,)}


def write_features_of(model, dataset, processor, output, *, batch_size=None, image_column="image", **options):
    extractor = FeatureExtractor(model, processor, batch_size=batch_size, image_column=image_column)
    return write_features(extractor, dataset, output, **options)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "num_register_tokens": 3,
    }
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config))


@pytest.fixture
def processor():
    return BitImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 28})


@pytest.fixture
def dataset():
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (50, 40 + i, 3), dtype=np.uint8)) for i in range(NUM_IMAGES)]
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog", "owl"]),
        "boxes": datasets.List(datasets.Value("int32")),
        "title": datasets.Value("string"),
        "thumbnail": datasets.Image(),
    }
    columns = {
        "image": images,
        "label": [i % 3 for i in range(NUM_IMAGES)],
        "boxes": [list(range(i)) for i in range(NUM_IMAGES)],
        "title": [None, *"abcdef"],
        "thumbnail": [image.resize((4, 4)) for image in images],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def break_images(dataset: datasets.Dataset, rows: list[int]) -> datasets.Dataset:
    undecoded = dataset.cast_column("image", datasets.Image(decode=False))
    broken = undecoded.to_list()
    for row in rows:
        broken[row]["image"] = {"bytes": b"no image", "path": None}
    return datasets.Dataset.from_list(broken, features=undecoded.features)


def read(path) -> tuple[np.ndarray, datasets.Dataset | None]:
    """The features, and the whole table where there is one."""
    if path.suffix == ".npy":
        return np.load(path), None
    table = datasets.Dataset.from_parquet(str(path)) if path.suffix else datasets.load_from_disk(path)
    return table.with_format("numpy")[:]["features"], table


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_back_the_features_of_memory(model, processor, dataset, tmp_path, name, kind):
    expected = FeatureExtractor(model, processor).features(dataset, kind=kind, num_layers=2).values
    path = tmp_path / "new" / name
    written = write_features_of(model, dataset, processor, path, kind=kind, num_layers=2, batch_size=3)
    assert (written.num_rows, written.shape, written.undecodable_rows) == (NUM_IMAGES, SHAPES[kind], {})
    features, table = read(path)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-6)
    if table is not None:
        assert table["row"][:] == list(range(NUM_IMAGES))
        assert np.shape(table[0]["features"]) == SHAPES[kind]
    assert [file.name for file in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", TABLES)
def test_the_other_columns_keep_their_values_and_types(model, processor, dataset, tmp_path, name):
    order = [4, 0, 6, 1]
    # Neither a format nor a transform of the user's reaches the file.
    shuffled = dataset.select(order).with_transform(lambda rows: {"image": rows["image"]})
    write_features_of(model, shuffled, processor, tmp_path / name, batch_size=3)
    _, table = read(tmp_path / name)
    others = ["label", "boxes", "title"]
    assert table.column_names == ["row", *others, "features"]
    assert {column: table.features[column] for column in others} == {
        column: dataset.features[column] for column in others
    }
    assert table["row"][:] == [0, 1, 2, 3]
    assert table.select_columns(others).to_list() == dataset.select(order).select_columns(others).to_list()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_a_folder_names_the_file_of_each_row(model, processor, dataset, tmp_path, name):
    folder = tmp_path / "images"
    (folder / "cats").mkdir(parents=True)
    files = [folder / "b.png", folder / "cats" / "a.png", folder / "c.png"]
    for row, file in enumerate(files):
        dataset[row]["image"].save(file)
    (folder / "broken.png").write_bytes(b"no image")
    images = load_image_dataset(str(folder))
    order = np.random.default_rng(0).permutation(len(images))
    write_features_of(model, images.select(order), processor, tmp_path / name, batch_size=2)
    features, table = read(tmp_path / name)
    assert table.column_names == ["row", "path", "features"]
    assert sorted(table["path"]) == sorted(map(str, files))  # absolute, and without the broken one
    for path, feature in zip(table["path"], features, strict=True):
        alone = [{"image": Image.open(path)}]
        expected = FeatureExtractor(model, processor).features(alone, kind="cls").values[0]
        np.testing.assert_allclose(feature, expected.numpy(), atol=1e-6)
    write_features_of(model, images, processor, tmp_path / "without" / name, keep_columns=[])
    assert read(tmp_path / "without" / name)[1].column_names == ["row", "features"]


def test_a_column_of_the_dataset_called_path_stays_as_it_is(model, processor, dataset, tmp_path):
    named = dataset.select_columns(["image"]).add_column("path", [f"mine {row}" for row in range(NUM_IMAGES)])
    write_features_of(model, named, processor, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[1]["path"][:] == [f"mine {row}" for row in range(NUM_IMAGES)]


def test_a_table_says_how_its_features_were_taken(model, processor, dataset, tmp_path):
    rule = "the mean of the patch tokens after the final norm"
    origin = {"model": "Dinov2WithRegistersModel", "kind": "mean_patch", "rule": rule}
    for name in FORMATS:
        assert write_features_of(model, dataset, processor, tmp_path / name, kind="mean_patch").rule == rule
    assert json.loads(parquet.read_schema(tmp_path / "features.parquet").metadata[b"dinov2_hf"]) == origin
    assert json.loads(datasets.load_from_disk(tmp_path / "features").info.description) == origin


def test_load_dataset_reads_the_parquet_file_with_its_types(model, processor, dataset, tmp_path):
    write_features_of(model, dataset, processor, tmp_path / "a.parquet", kind="patch_grid")
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train")
    assert table.features["label"] == dataset.features["label"]
    assert table.features["features"] == datasets.Array3D((3, 2, 12), "float32")
    streamed = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train", streaming=True)
    assert np.shape(next(iter(streamed))["features"]) == (3, 2, 12)


@pytest.mark.parametrize("name", TABLES)
def test_chosen_columns_only(model, processor, dataset, tmp_path, name):
    write_features_of(model, dataset, processor, tmp_path / name, keep_columns=["thumbnail"])
    _, table = read(tmp_path / name)
    assert table.column_names == ["row", "thumbnail", "features"]
    assert table.features["thumbnail"] == datasets.Image()
    stored = datasets.Image(decode=False)  # the bytes themselves are copied
    assert (
        table.cast_column("thumbnail", stored)["thumbnail"][:]
        == dataset.cast_column("thumbnail", stored)["thumbnail"][:]
    )
    write_features_of(model, dataset, processor, tmp_path / name, keep_columns=[], overwrite=True)
    assert read(tmp_path / name)[1].column_names == ["row", "features"]


@pytest.mark.parametrize("name", TABLES)
def test_a_plain_list_of_rows(model, processor, dataset, tmp_path, name):
    rows = dataset.to_list()
    rows = [{"image": image, "title": row["title"]} for image, row in zip(dataset["image"], rows, strict=True)]
    write_features_of(model, rows, processor, tmp_path / name, batch_size=2)
    features, table = read(tmp_path / name)
    np.testing.assert_allclose(
        features, FeatureExtractor(model, processor).features(dataset).values.numpy(), atol=1e-6
    )
    assert table["title"][:] == dataset["title"][:]
    bare = [{"image": row["image"]} for row in rows]
    write_features_of(model, bare, processor, tmp_path / f"bare_{name}")
    assert read(tmp_path / f"bare_{name}")[1].column_names == ["row", "features"]


@pytest.mark.parametrize("name", FORMATS)
def test_half_precision_is_the_rounded_feature(model, processor, dataset, tmp_path, name):
    write_features_of(model, dataset, processor, tmp_path / name, dtype="float16", kind="patch_grid")
    expected = FeatureExtractor(model, processor).features(dataset, kind="patch_grid").values.half().numpy()
    features, table = read(tmp_path / name)
    if table is not None:
        assert table.features["features"].dtype == "float16"
    else:
        assert features.dtype == np.float16
    np.testing.assert_array_equal(features.astype(np.float16), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_value_beyond_half_precision_is_refused(model, processor, dataset, tmp_path, name):
    with torch.no_grad():
        model.layernorm.bias[0] = 1e6
    with pytest.raises(ValueError, match="cannot hold the features of row 0, which exceed 65504"):
        write_features_of(model, dataset, processor, tmp_path / name, dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TABLES)
def test_tables_leave_broken_images_out(model, processor, dataset, tmp_path, name):
    broken = break_images(dataset, [0, 1, 5])
    written = write_features_of(model, broken, processor, tmp_path / name, batch_size=2)
    assert (written.num_rows, list(written.undecodable_rows)) == (4, [0, 1, 5])
    assert "not an image" in written.undecodable_rows[5]
    features, table = read(tmp_path / name)
    assert table["row"][:] == [2, 3, 4, 6]
    assert table["title"][:] == ["b", "c", "d", "f"]
    expected = FeatureExtractor(model, processor).features(dataset).values[[2, 3, 4, 6]]
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-6)


def test_npy_keeps_the_place_of_broken_images(model, processor, dataset, tmp_path):
    broken = break_images(dataset, [0, 1, 6])
    written = write_features_of(model, broken, processor, tmp_path / "a.npy", batch_size=2, kind="patch_grid")
    assert (written.num_rows, list(written.undecodable_rows)) == (4, [0, 1, 6])
    features = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert features.shape == (NUM_IMAGES, 3, 2, 12)
    assert np.isnan(features[[0, 1, 6]]).all()
    expected = FeatureExtractor(model, processor).features(dataset, kind="patch_grid").values[2:6]
    np.testing.assert_allclose(features[2:6], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_a_dataset_of_broken_images_is_an_error(model, processor, dataset, tmp_path, name):
    with pytest.raises(ValueError, match="holds no image that can be decoded"):
        write_features_of(model, break_images(dataset, list(range(NUM_IMAGES))), processor, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


class FailsInThirdBatch(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.num_calls = 0

    def forward(self, pixel_values):
        self.num_calls += 1
        if self.num_calls == 3:
            raise RuntimeError("out of memory")
        return self.model(pixel_values)


@pytest.mark.parametrize("name", FORMATS)
def test_an_error_in_the_middle_leaves_nothing_and_what_was_there(model, processor, dataset, tmp_path, name):
    with pytest.raises(RuntimeError, match="out of memory"):
        write_features_of(FailsInThirdBatch(model), dataset, processor, tmp_path / name, batch_size=2)
    assert list(tmp_path.iterdir()) == []

    write_features_of(model, dataset, processor, tmp_path / name)
    before, _ = read(tmp_path / name)
    with pytest.raises(RuntimeError, match="out of memory"):
        write_features_of(FailsInThirdBatch(model), dataset, processor, tmp_path / name, batch_size=2, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} <= {name, "cache"}
    np.testing.assert_array_equal(read(tmp_path / name)[0], before)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_there_is_replaced_only_when_asked(model, processor, dataset, tmp_path, name):
    write_features_of(model, dataset, processor, tmp_path / name)
    with pytest.raises(ValueError, match="exists already; choose another name, or replace it with --overwrite"):
        write_features_of(model, dataset, processor, tmp_path / name)
    written = write_features_of(model, dataset.select(range(3)), processor, tmp_path / name, overwrite=True)
    assert written.num_rows == 3
    assert len(read(tmp_path / name)[0]) == 3
    assert {path.name for path in tmp_path.iterdir()} <= {name, "cache"}


def test_only_own_features_are_ever_replaced(model, processor, dataset, tmp_path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.txt").touch()
    dataset.save_to_disk(tmp_path / "somebodys_dataset")
    (tmp_path / "file").touch()
    (tmp_path / "folder.npy").mkdir()
    write_features_of(model, dataset, processor, tmp_path / "features")
    (tmp_path / "features" / "notes.txt").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    for name, message in [
        ("photographs", "was not written by dinov2_hf"),
        ("somebodys_dataset", "was not written by dinov2_hf"),
        ("features", "holds notes.txt, which dinov2_hf did not write"),
        ("file", "is a file, but features is written to a folder"),
        ("folder.npy", "is a folder, but the name of a file is needed"),
        ("nowhere", "is a link to nowhere"),
        ("file/a.npy", "cannot be created, because .* is a file"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_features_of(model, dataset, processor, tmp_path / name, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", FORMATS)
def test_a_source_is_never_replaced(model, processor, dataset, tmp_path, name):
    dataset.save_to_disk(tmp_path / "images")
    loaded = datasets.load_from_disk(tmp_path / "images")
    for output, sources in [
        (tmp_path / "images", ()),  # known by the files in use
        (tmp_path / "images" / name, (tmp_path / "images",)),
        (tmp_path / "model" / name, (tmp_path / "model", tmp_path / "images")),
    ]:
        (tmp_path / "model").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="is (inside|around) the source"):
            write_features_of(model, loaded, processor, output, overwrite=True, sources=sources)
    dataset.to_parquet(tmp_path / "images.parquet")
    with pytest.raises(ValueError, match="is the same as the source"):
        write_features_of(
            model, dataset, processor, tmp_path / "images.parquet", overwrite=True, sources=[f"{tmp_path}/*.parquet"]
        )
    assert datasets.load_from_disk(tmp_path / "images")["title"][:] == dataset["title"][:]


@pytest.mark.parametrize("name", FORMATS)
def test_two_writers(model, processor, dataset, tmp_path, name):
    with sole_writer(tmp_path / name, beside=True):
        with pytest.raises(ValueError, match="is being written by another process"):
            write_features_of(model, dataset, processor, tmp_path / name)
    write_features_of(model, dataset, processor, tmp_path / name)


KILLED_IN_SECOND_BATCH = """
import os, signal, sys
import datasets, torch
from transformers import BitImageProcessor, Dinov2WithRegistersModel
from dinov2_hf.feature_files import write_features
from dinov2_hf.features import FeatureExtractor

model_folder, images, *outputs = sys.argv[1:]
model = Dinov2WithRegistersModel.from_pretrained(model_folder)
processor = BitImageProcessor.from_pretrained(model_folder)
dataset = datasets.load_from_disk(images)
torch.set_num_threads(1)  # what is forked has no other threads
calls = []
model.register_forward_hook(lambda *_: calls.append(1) if not calls else os.kill(os.getpid(), signal.SIGKILL))
for output in outputs:
    child = os.fork()
    if child == 0:
        write_features(FeatureExtractor(model, processor, batch_size=2), dataset, output, overwrite=True)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def test_a_kill_leaves_what_was_there_and_the_next_run_cleans_up(model, processor, dataset, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    dataset.save_to_disk(tmp_path / "images")
    outputs = [tmp_path / "out" / name for name in FORMATS]
    for output in outputs:
        write_features_of(model, dataset, processor, output)
    before = [read(output)[0] for output in outputs]
    command = ["-c", KILLED_IN_SECOND_BATCH, tmp_path / "model", tmp_path / "images", *outputs]
    assert forked_python.run(command).returncode == 0
    assert sum(path.name.endswith(".unfinished") for path in (tmp_path / "out").iterdir()) == 3
    for output, features in zip(outputs, before, strict=True):
        np.testing.assert_array_equal(read(output)[0], features)
        write_features_of(model, dataset.select(range(3)), processor, output, overwrite=True)
        assert len(read(output)[0]) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FORMATS)


ON_A_FULL_DISK = """
import sys
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
from dinov2_hf.feature_files import write_features
from dinov2_hf.features import FeatureExtractor

size = {"height": 14, "width": 14}
processor = BitImageProcessor(size=size, crop_size=size)
config = {"hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 14, "patch_size": 14}
model = Dinov2Model(Dinov2Config(**config, mlp_ratio=1))
images = [{"image": Image.effect_noise((14, 14), 90).convert("RGB")} for _ in range(512)]  # 2 MB of features
for output in sys.argv[1:]:
    write_features(FeatureExtractor(model, processor), images[:4], output)
    try:
        write_features(FeatureExtractor(model, processor, batch_size=256), images, output, overwrite=True)
    except ValueError as error:
        print(error)
"""


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path):
    disk, left = tmp_path / "disk", tmp_path / "left"
    disk.mkdir()
    own_disk = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=1M none {shlex.quote(str(disk))}"
    if subprocess.run([*own_disk, mount], capture_output=True).returncode:
        pytest.skip("no disk of its own can be made here")
    run = shlex.join([sys.executable, "-c", ON_A_FULL_DISK, *(str(disk / name) for name in FORMATS)])
    keep = shlex.join(["cp", "-r", str(disk), str(left)])
    done = subprocess.run([*own_disk, f"{mount} && {run} && {keep}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sentences = done.stdout.splitlines()
    assert len(sentences) == 3
    for name, sentence in zip(FORMATS, sentences, strict=True):
        assert f"{name} could not be written, as the disk is full" in sentence
        assert "what was there before is unchanged" in sentence
        assert len(read(left / name)[0]) == 4
    assert sorted(path.name for path in left.iterdir()) == sorted(FORMATS)


def test_mistakes_are_named_before_any_compute(processor, dataset, tmp_path):
    class Untouched(nn.Module):
        def forward(self, pixel_values):
            raise AssertionError("compute was spent")

    def write(name="a.parquet", data=dataset, **options):
        write_features_of(Untouched(), data, processor, tmp_path / name, **options)

    for name in ("features.csv", "features.npz"):
        with pytest.raises(ValueError, match=r"must end in \.parquet or \.npy, or have no ending for a folder"):
            write(name)
    with pytest.raises(ValueError, match="dtype='bfloat16' is not a type for features"):
        write(dtype="bfloat16")
    with pytest.raises(ValueError, match="a .npy file holds only features"):
        write("a.npy", keep_columns=["label"])
    with pytest.raises(ValueError, match="must be a list of columns of the dataset, which has .*'label'"):
        write(keep_columns=["lable"])
    with pytest.raises(ValueError, match="keep_columns='label' must be a list"):
        write(keep_columns="label")
    with pytest.raises(ValueError, match="'row', but the output has its own column of this name"):
        write(data=dataset.rename_column("title", "row"))
    with pytest.raises(ValueError, match="kind='pooled' is not a kind of features"):
        write(kind="pooled")
    with pytest.raises(ValueError, match="image_column='img' is not a column"):
        write(image_column="img")
    with pytest.raises(ValueError, match="IterableDataset, but one split"):
        write(data=dataset.to_iterable_dataset())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_have_a_version_in_its_name(model, processor, dataset, tmp_path):
    write_features_of(model, dataset, processor, tmp_path / "dinov2_v1.5")
    assert len(datasets.load_from_disk(tmp_path / "dinov2_v1.5")) == NUM_IMAGES


def test_small_batches_are_gathered_into_row_groups(model, processor, dataset, tmp_path, monkeypatch):
    write_features_of(model, dataset, processor, tmp_path / "one.parquet", batch_size=1)
    assert parquet.ParquetFile(tmp_path / "one.parquet").num_row_groups == 1
    monkeypatch.setattr(feature_files, "ROW_GROUP_BYTES", 1)
    write_features_of(model, dataset, processor, tmp_path / "many.parquet", batch_size=3)
    assert parquet.ParquetFile(tmp_path / "many.parquet").num_row_groups == 3
    one, many = (
        parquet.read_table(tmp_path / f"{name}.parquet", columns=["row", "label"]) for name in ("one", "many")
    )
    assert one.equals(many)


def test_each_batch_is_on_the_disk_before_the_next_is_computed(model, processor, dataset, tmp_path):
    rows_on_disk = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            for unfinished in tmp_path.glob(".a.npy.*.unfinished/a.npy"):
                rows_on_disk.append(int((np.load(unfinished, mmap_mode="r") != 0).any(axis=1).sum()))
            return self.model(pixel_values)

    write_features_of(Watching(), dataset, processor, tmp_path / "a.npy", batch_size=2)
    assert rows_on_disk == [2, 4, 6]
