"""Scenes 0 to 3 in every layout that images come in."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
from pyarrow import parquet

from tests.curation.scenes import encoded, scene, write_scenes


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def parquet_of(path: Path, seeds, **columns) -> None:
    rows = {"image": [{"bytes": encoded(scene(seed)), "path": None} for seed in seeds], **columns}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(path))


def write_layouts(folder: Path) -> Path:
    write_scenes(folder / "folder", range(4))
    parquet_of(folder / "table.parquet", range(4))
    (folder / "webdataset").mkdir()
    tar_of(folder / "webdataset" / "0.tar", {f"{seed}.png": encoded(scene(seed)) for seed in range(4)})
    downloaded = folder / "img2dataset"  # a tar, and a parquet file of what was downloaded beside it
    downloaded.mkdir()
    members = {}
    for seed in range(4):
        members[f"00000000{seed}.png"] = encoded(scene(seed))
        members[f"00000000{seed}.json"] = json.dumps({"url": f"https://example.org/{seed}"}).encode()
    tar_of(downloaded / "00000.tar", members)
    datasets.Dataset.from_dict({"url": list("abcd")}).to_parquet(str(downloaded / "00000.parquet"))
    (downloaded / "00000_stats.json").write_text("{}")
    files = write_scenes(folder / "img2dataset_files" / "00000", range(4)).parent
    datasets.Dataset.from_dict({"url": list("abcd")}).to_parquet(str(files / "00000.parquet"))
    (folder / "img2dataset_parquet").mkdir()
    table = {"key": [f"00000000{seed}" for seed in range(4)], "jpg": [encoded(scene(seed)) for seed in range(4)]}
    parquet.write_table(pa.table(table), folder / "img2dataset_parquet" / "00000.parquet")
    (folder / "img2dataset_parquet" / "00000_stats.json").write_text("{}")
    files = [str(path) for path in sorted((folder / "folder").iterdir())]
    saved = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    saved.save_to_disk(str(folder / "saved"))
    names = [f"folder/{seed:03d}.png" for seed in range(4)]
    (folder / "list.csv").write_text(
        "file_name,key\n" + "".join(f"{name},{key}\n" for name, key in zip(names, "abcd", strict=True))
    )
    (folder / "list.jsonl").write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    return folder
