"""Rows of a dataset name files of their own folder only, and only regular ones are read."""

import os

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.data import UndecodableImage, decode_channels, decode_image, first_images, load_image_dataset
from dinov2_hf.data.decoding.video_frames import decode_frames
from dinov2_hf.data.reading.row_paths import allowed_path, refuse_unreadable_files, undecoded, with_content
from dinov2_hf.data.reading.video_dataset import load_video_dataset
from dinov2_hf.feature_files import write_features
from dinov2_hf.features import FeatureExtractor
from tests.data.conftest import encode, noise_image


PNG = encode(noise_image(0))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "private.png"
    path.write_bytes(encode(noise_image(1)))
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "own.png").write_bytes(PNG)
    return folder


def write_rows(path, **columns):
    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(pa.table({name: pa.array(rows, file) for name, rows in columns.items()}), path)


def outcome(value):
    try:
        return decode_image(value).tobytes()
    except UndecodableImage as reason:
        return str(reason)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_row_reads_inside_its_folder_only(folder, private, streaming, as_folder, monkeypatch):
    monkeypatch.chdir(private.parent)  # where relative paths would count from otherwise
    paths = [str(private), f"{folder}/../private.png", "../private.png", "private.png", f"file://{private}"]
    hostile = [{"bytes": None, "path": path} for path in paths]
    own = [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "own.png"}]
    own += [{"bytes": None, "path": f"{folder}/own.png"}]
    target = folder / "sub" if as_folder else folder
    target.mkdir(exist_ok=True)
    write_rows(target / "train.parquet", image=own + hostile)
    if as_folder:
        (target / "own.png.txt").write_text("")
        os.link(folder / "own.png", target / "own")  # of no suffix that would make it data of another kind
        own[1]["path"], own[2]["path"] = "own", f"{target}/own"
        write_rows(target / "train.parquet", image=own + hostile)
    dataset = load_image_dataset(str(target if as_folder else target / "train.parquet"), streaming=streaming)
    found = [outcome(row["image"]) for row in dataset]
    assert found[:3] == [decode_image(PNG).tobytes()] * 3
    assert [reason for reason in found[3:] if "outside of the folder of its dataset" not in reason] == [
        f"FileNotFoundError: [Errno 2] No such file or directory: '{target}/private.png'"
    ]
    assert str(private) in found[3]


def test_bytes_win_over_a_file_of_the_same_name(folder, private, monkeypatch):
    monkeypatch.chdir(private.parent)
    write_rows(folder / "train.parquet", image=[{"bytes": PNG, "path": "private.png"}])
    row = next(iter(load_image_dataset(str(folder / "train.parquet"))))
    assert outcome(row["image"]) == decode_image(PNG).tobytes()
    stream = load_image_dataset(str(folder / "train.parquet"), streaming=True)
    assert outcome(next(iter(stream))["image"]) != decode_image(private).tobytes()


def test_every_image_column_is_confined(folder, private):
    """Masks and columns to keep are read as well."""
    rows = [{"bytes": PNG, "path": None}]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image(), "n": datasets.Value("int64")})
    hostile = [{"bytes": None, "path": str(private)}]
    table = pa.table({"image": rows, "mask": hostile, "n": [1]}, schema=features.arrow_schema)
    parquet.write_table(table, folder / "train.parquet")
    dataset = load_image_dataset(str(folder / "train.parquet"))
    assert dataset["n"][:] == [1]
    mask = dataset.cast_column("mask", datasets.Image(decode=False))[0]["mask"]
    assert "outside of the folder" in outcome(mask)
    with pytest.raises(ValueError, match="outside-of-its-dataset"):
        dataset[0]["mask"]
    assert len(first_images(dataset, "image", 1)) == 1
    (row,) = load_image_dataset(str(folder / "train.parquet"), image_column="image", streaming=True)
    assert outcome(row["image"]) == decode_image(PNG).tobytes()
    assert "outside of the folder" in outcome(row["mask"])  # not opened while others are read


@pytest.mark.parametrize(
    ("feature", "nested"),
    [
        (datasets.Audio(), lambda value: value),
        (datasets.Pdf(), lambda value: value),
        ({"left": datasets.Image(), "n": datasets.Value("int64")}, lambda value: {"left": value, "n": 1}),
        (datasets.List({"left": datasets.Image()}), lambda value: [{"left": value}]),
        (datasets.List(datasets.Image(), length=2), lambda value: [value, value]),
    ],
)
def test_files_of_any_kind_and_depth_are_confined(folder, private, feature, nested):
    """`datasets` reads them when it saves a dataset, and they are columns that are kept by default."""
    features = datasets.Features({"image": datasets.Image(), "kept": feature})
    (folder / "own.txt").write_text("x")
    os.mkfifo(folder / "pipe")
    good = [{"bytes": b"x", "path": str(private)}, {"bytes": None, "path": "own.txt"}]
    for bad, reason in ((str(private), "outside of the folder"), ("pipe", "not a regular file")):
        rows = [nested(value) for value in [*good, {"bytes": None, "path": bad}]]
        table = pa.table({"image": [{"bytes": PNG, "path": None}] * 3, "kept": rows}, schema=features.arrow_schema)
        parquet.write_table(table, folder / "train.parquet")
        dataset = load_image_dataset(str(folder / "train.parquet"))
        with pytest.raises(ValueError, match=f"'kept' names the file .*{reason}"):
            refuse_unreadable_files(dataset, "kept")
        values = undecoded(dataset)["kept"][:]
        with_bytes = {"bytes": b"x", "path": None}
        assert [with_content(value, feature) for value in values[:2]] == [nested(with_bytes)] * 2
        with pytest.raises(UndecodableImage, match=reason):
            with_content(values[2], feature)


def test_files_of_columns_that_are_kept_are_those_of_the_dataset(folder, private, tmp_path):
    model = torch.nn.Linear(1, 1)
    features = datasets.Features({"image": datasets.Image(), "kept": datasets.Audio()})
    rows = [{"bytes": None, "path": str(private)}]
    table = pa.table({"image": [{"bytes": PNG, "path": None}], "kept": rows}, schema=features.arrow_schema)
    parquet.write_table(table, folder / "train.parquet")
    dataset = load_image_dataset(str(folder / "train.parquet"))
    with pytest.raises(ValueError, match="'kept' names the file .*outside of the folder"):
        write_features(FeatureExtractor(model, None), dataset, tmp_path / "features")
    source, output = str(folder / "train.parquet"), str(tmp_path / "out")
    arguments = CurationArguments(uncurated=[source], output_dir=output, keep_columns=["kept"])
    with pytest.raises(ValueError, match="'kept' names the file .*outside of the folder"):
        curate(arguments)


def test_a_picture_that_is_kept_is_copied_without_decoding(folder, tmp_path):
    """Not by the decoders of `datasets`, which know no limits; and a file that a row names is copied in."""
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    masks = [{"bytes": b"%!PS-Adobe-3.0 EPSF-3.0", "path": None}, {"bytes": None, "path": "own.png"}]
    pictures = [{"bytes": encode(noise_image(seed)), "path": None} for seed in (1, 2)]
    parquet.write_table(
        pa.table({"image": pictures, "mask": masks}, schema=features.arrow_schema), folder / "train.parquet"
    )
    arguments = CurationArguments(
        uncurated=[str(folder / "train.parquet")], output_dir=str(tmp_path / "out"), keep_columns=["mask"],
        embedder=str(tmp_path / "vectors.npy"), num_workers=0, progress=False,
    )  # fmt: skip
    np.save(tmp_path / "vectors.npy", np.eye(2))
    curate(arguments)
    (file,) = (tmp_path / "out" / "dataset" / "data").glob("*.parquet")
    kept = parquet.read_table(file).column("mask").to_pylist()
    assert kept == [{"bytes": masks[0]["bytes"], "path": None}, {"bytes": PNG, "path": None}]


def test_a_column_of_paths(folder, private):
    datasets.Dataset.from_dict({"file": ["own.png", str(private)]}).to_parquet(folder / "train.parquet")
    dataset = load_image_dataset(str(folder / "train.parquet"), image_column="file")
    assert outcome(dataset[0]["file"]) == decode_image(PNG).tobytes()
    assert "outside" in outcome(dataset[1]["file"])


def test_saved_datasets_and_frames_of_videos(tmp_path, folder, private):
    features = datasets.Features({"image": datasets.Image(decode=False)})
    saved = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(private)}]}, features=features)
    table = pa.table({"image": saved.data.column("image")})
    datasets.Dataset(table, info=saved.info).save_to_disk(tmp_path / "saved")
    row = load_image_dataset(str(tmp_path / "saved"))[0]["image"]
    assert row["bytes"] is not None or "outside" in outcome(row)  # `datasets` embeds files when it saves
    frames = datasets.Features({"frames": datasets.List(datasets.Image(decode=False))})
    rows = [[{"bytes": PNG, "path": None}, {"bytes": None, "path": str(private)}], [{"bytes": PNG, "path": None}]]
    table = pa.table({"frames": pa.array(rows, frames.arrow_schema.field("frames").type)}, schema=frames.arrow_schema)
    parquet.write_table(table, folder / "train.parquet")
    dataset, column = load_video_dataset(str(folder / "train.parquet"))
    assert len(decode_frames(dataset[1][column], 1)) == 1
    with pytest.raises(UndecodableImage, match="outside of the folder"):
        decode_frames(dataset[0][column], 2)


@pytest.mark.parametrize(
    ("path", "is_allowed"),
    [
        ("hf://datasets/owner/name@main/a.jpg", True),
        ("hf://datasets/owner/name/a.jpg", True),
        ("zip://a.jpg::hf://datasets/owner/name@main/train.zip", True),
        ("hf://datasets/owner/other/a.jpg", False),
        ("hf://datasets/owner/name_of_another/a.jpg", False),
        ("hf://datasets/owner/name/../other/a.jpg", False),
        ("file:///home/me/x.png", False),
        ("simplecache::file:///home/me/x.png", False),
        ("http://169.254.169.254/", False),
        ("/home/me/x.png", False),
        ("x.png", False),
        ("/cache/downloads/x.png", True),
        ("/cache/../home/x.png", False),
    ],
)
def test_paths_of_a_hub_dataset(path, is_allowed):
    assert (allowed_path(path, ["hf://datasets/owner/name", "/cache"]) == path) == is_allowed


def test_two_slashes_make_no_address_of_a_path():
    """No scheme begins with a digit: this is a folder of the dataset."""
    assert allowed_path("12://a.png", ["/data"]) == "/data/12:/a.png"
    assert allowed_path("s3://bucket/a.png", ["/data"]) != "s3://bucket/a.png"


@pytest.mark.parametrize("decode", [decode_image, lambda value: decode_channels(value, 4)])
def test_only_regular_files_are_read(tmp_path, decode):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(UndecodableImage, match="is not a regular file|IsADirectoryError"):
            decode({"bytes": None, "path": str(path)})


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UndecodableImage, match="1099511627776 bytes, more than"):
        decode_image(tmp_path / "x.png")


def test_a_playlist_in_the_place_of_a_video_opens_no_file(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "private.ts"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width = stream.height = 64
        for frame in (av.VideoFrame.from_image(noise_image(i, 64, 64)) for i in range(4)):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(decode_frames(str(tmp_path / "private.ts"), 2)) == 2
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/private.ts\n#EXT-X-ENDLIST\n"
    concatenation = f"ffconcat version 1.0\nfile {tmp_path}/private.ts\n"
    for text in (playlist, concatenation):
        with pytest.raises(UndecodableImage):
            decode_frames(text.encode(), 2)
