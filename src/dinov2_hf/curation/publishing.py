"""Puts the finished dataset and its report into the output folder, and again if they were deleted."""

import json
import shutil
from pathlib import Path

from ..atomic_files import new_file, new_folder
from ..output_folders import write_text
from .run_context import Curation
from .storage.dataset_files import built_files, content_fingerprint, sent_files
from .storage.manifests import link_or_copy
from .storage.remote_dataset import RemoteDataset


REPORT_FILES = ("report.html", "report.json", "dropped.parquet")
TIMINGS = "timings.json"  # a separate file, so that the report is the same for the same images


def publish(curation: Curation) -> None:
    """Put the report and `dataset/` into the output folder. Existing files that are not older are not changed: another
    program may be reading them, or a user may have edited the card.

    Raises:
        ValueError: the disk is full, or `dataset/` contains files that this package did not write.
    """
    made = curation.folders["report"].shard(0)
    for name in REPORT_FILES:
        place = curation.output_dir / name
        if _is_older(place, made / name):
            with new_file(place, overwrite=True) as path:
                shutil.copy2(made / name, path)
    write_text(curation.output_dir / TIMINGS, json.dumps(timings(curation), indent=1))
    if curation.arguments.dataset_url is not None:
        place = RemoteDataset(curation.arguments)
        place.finish(sent_files(curation), made / "README.md", content_fingerprint(curation))
        return
    _publish_dataset(built_files(curation), made / "README.md", curation.output_dir / "dataset")


def timings(curation: Curation) -> dict[str, dict[str, float | int | None]]:
    """For each stage, the total seconds of its shards, and the number of images of the pool, or rows, it processed."""
    report = json.loads((curation.folders["report"].shard(0) / "report.json").read_text())
    images = {row["stage"]: row["images_in"] for row in report["funnel"]} | {"ingest": len(curation.sources)}
    found = {}
    for name, folder in curation.folders.items():
        seconds, count = folder.seconds(), images.get(name, folder.rows())
        rate = None if not seconds else round(count / seconds, 2)
        found[name] = {"seconds": seconds, "shards": folder.num_shards, "images": count, "images_per_second": rate}
    return found


def _publish_dataset(built: list[Path], card: Path, folder: Path) -> None:
    """The card, and the files of all build shards as `data/train-00000-of-00012.parquet`, hard links if possible."""
    names = [f"train-{number:05d}-of-{len(built):05d}.parquet" for number in range(len(built))]
    if _is_published(built, folder / "data", names) and not _is_older(folder / "README.md", card):
        return
    with new_folder(folder, "dataset", overwrite=True) as partial:
        (partial / "data").mkdir()
        for path, name in zip(built, names, strict=True):
            link_or_copy(path, partial / "data" / name)
        shutil.copy2(card, partial / "README.md")


def _is_published(built: list[Path], data: Path, names: list[str]) -> bool:
    """Whether the folder holds these files, as links or as copies with their sizes and times."""
    if not data.is_dir() or sorted(path.name for path in data.glob("*.parquet")) != names:
        return False
    pairs = ((path.stat(), (data / name).stat()) for path, name in zip(built, names, strict=True))
    return all((made.st_size, made.st_mtime_ns) == (there.st_size, there.st_mtime_ns) for made, there in pairs)


def _is_older(place: Path, made: Path) -> bool:
    """Whether a file is missing, or older than the file that was made for it."""
    return not place.is_file() or place.stat().st_mtime_ns < made.stat().st_mtime_ns
