"""All of a source is read, or what is not is counted."""

import json
import os
import struct
import zlib

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from dinov2_hf.curation import CurationArguments, curate
from tests.curation.scenes import encoded, scene, write_scenes


def run(tmp_path, **changes):
    arguments = {"output_dir": str(tmp_path / "out"), "perceptual_hash_distance": None, "progress": False}
    curation = curate(CurationArguments(**{**arguments, **changes}))
    rows = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    report = json.loads((curation.output_dir / "report.json").read_text())
    return {row["row_id"]: row for row in rows}, {source["name"]: source for source in report["sources"]}, curation


def test_copies_of_images_of_every_split_of_a_benchmark_are_found(tmp_path):
    pool = write_scenes(tmp_path / "pool", range(30))
    benchmark = tmp_path / "benchmark"
    write_scenes(benchmark / "train", [100, 3])
    write_scenes(benchmark / "test", [7, 101, 102])
    (benchmark / "test" / "200.heic").write_bytes(b"a picture of a telephone")
    (benchmark / "notes.dcm").write_bytes(b"x")
    dropped, sources, curation = run(tmp_path, uncurated=str(pool), benchmarks=str(benchmark))
    assert {row for row, record in dropped.items() if record["stage"] == "relative_deduplicate"} == {3, 7}
    assert sources["benchmark"]["splits"] == {"test": 3, "train": 2}
    assert sources["benchmark"]["splits_not_read"] == {}
    assert sources["benchmark"]["unread"] == {".dcm": 1, ".heic": 1}
    assert sources["pool"]["image_column"] == "image"
    page = (curation.output_dir / "report.html").read_text()
    assert "splits: test (3), train (2)" in page
    assert "<b>files not read</b>: .heic (1), .dcm (1)" in page or "<b>files not read</b>: .dcm (1), .heic (1)" in page


@pytest.mark.parametrize("layout", ["folder", "parquet", "saved"])
def test_a_split_that_is_named_is_read_alone_and_the_others_are_counted(tmp_path, layout):
    place = tmp_path / "pool"
    seeds = {"train": range(20), "test": range(20, 23)}
    if layout == "folder":
        for split, of_split in seeds.items():
            write_scenes(place / split, of_split)
    else:
        splits = {}
        for split, of_split in seeds.items():
            rows = {"image": [{"bytes": encoded(scene(seed)), "path": None} for seed in of_split]}
            splits[split] = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        if layout == "saved":
            datasets.DatasetDict(splits).save_to_disk(str(place))
        else:
            place.mkdir()
            for split, dataset in splits.items():
                dataset.to_parquet(str(place / f"{split}.parquet"))
    source = {"path": str(place), "split": "train"}
    _, sources, curation = run(tmp_path, uncurated=[source])
    assert sources["pool"]["images"] == 20
    number_of_test = 1 if layout == "parquet" else 3
    assert sources["pool"]["splits_not_read"] == {"test": number_of_test}
    assert f"<b>splits not read</b>: test ({number_of_test})" in (curation.output_dir / "report.html").read_text()
    _, sources, _ = run(tmp_path, uncurated=str(place), output_dir=str(tmp_path / "all"))
    assert sources["pool"]["images"] == 23
    assert set(sources["pool"]["splits"]) == {"train", "test"}


def test_rows_that_name_files_outside_of_their_source_are_refused_by_name(tmp_path):
    """A private picture, a device and a pipe of the reader: none is opened, all are counted."""
    private = tmp_path / "home" / "private.png"
    write_scenes(private.parent, [50])
    (private.parent / "050.png").rename(private)
    source = tmp_path / "source"
    write_scenes(source / "files", range(20))
    os.mkfifo(source / "files" / "pipe.png")
    names = [f"files/{seed:03d}.png" for seed in range(20)]
    names += [str(private), "../home/private.png", "/dev/zero", "files/pipe.png"]
    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    table = pa.table({"image": [{"bytes": None, "path": name} for name in names]}, schema=schema)
    parquet.write_table(table, source / "rows.parquet")
    dropped, _, curation = run(tmp_path, uncurated=str(source / "rows.parquet"))
    assert set(dropped) == {20, 21, 22, 23}
    for row, name in zip((20, 21, 22), names[20:23], strict=True):
        assert dropped[row]["path"] == name
        assert dropped[row]["reason"] == (
            f"cannot be decoded: it names the file {name}, which lies outside of the folder of its dataset"
        )
    assert "not a regular file" in dropped[23]["reason"]
    content = b"".join(path.read_bytes() for path in curation.output_dir.glob("dataset/data/*"))
    assert private.read_bytes()[100:400] not in content


def test_images_out_of_bounds_are_dropped_and_named(tmp_path):
    """In every role; strips that are allowed pass through all stages."""

    def strip(width: int, height: int) -> bytes:
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        row = b"\0" + b"\0" * width
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        data = chunk(b"IDAT", zlib.compress(row * height, 9))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")

    small = strip(100_000, 1)
    assert len(small) < 200
    for name, seeds in (("pool", range(20)), ("curated", [60]), ("benchmark", [70])):
        folder = write_scenes(tmp_path / name, seeds)
        (folder / "x_strip.png").write_bytes(small)
    pool = tmp_path / "pool"
    (pool / "y_tall.png").write_bytes(strip(1, 20_000))
    scene(80).resize((2000, 20)).save(pool / "z_allowed.png")
    scene(81).resize((20, 2000)).save(pool / "z_tall.png")
    dropped, sources, _ = run(
        tmp_path,
        uncurated=str(pool),
        curated=str(tmp_path / "curated"),
        benchmarks=str(tmp_path / "benchmark"),
        embedder="perceptual",
    )
    out = {row["id"]: row["reason"] for row in dropped.values() if "pixels" in row["reason"]}
    assert set(out) == {"pool/20", "pool/21", "curated/1", "benchmark/1"}
    assert out["pool/20"].startswith("cannot be decoded: it has 100000 x 1 pixels, and one side may be at most")
    assert dropped[20]["path"].endswith("x_strip.png")
    assert sources["pool"]["dropped"]["ingest"] == 2
    assert not [row for row in dropped.values() if row["id"] in ("pool/22", "pool/23") and row["stage"] != "select"]
