"""Rules for reading a folder: which files are its data, and to which split and class each belongs.

The rules, in this order:

1. Hidden files and folders are ignored. Links are followed, except a link to a folder that contains it.
2. The data of a folder is of one kind: images, parquet files, or tars. Two kinds in one folder are refused.
3. Top folders called train, val, test or the like are splits if there are two of them, or if all data is inside. Files
   outside of the splits are then left out. One such folder beside other data is refused: it could be a split or a
   class. The split of parquet files and tars can also be in their names; either all of them have it, or none.
4. A split of images has labels if each of its images is in one class folder, directly below the split. Classes are
   numbered in alphabetical order over all splits.
5. Files called metadata.csv, .jsonl or .parquet give images other columns, by `file_name` (see `metadata_files`). Then
   folders give no labels.

Files that are left out or not read are counted, and reported on standard error.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...public_names import some
from .metadata_files import METADATA_NAMES


IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
))  # fmt: skip
Kind = Literal["image", "parquet", "tar"]
KIND_OF_SUFFIX: dict[str, Kind] = {**dict.fromkeys(IMAGE_SUFFIXES, "image"), ".parquet": "parquet", ".tar": "tar"}
# Files that are often beside data without being data. They need no warning.
DOCUMENT_SUFFIXES = frozenset((".csv", ".html", ".json", ".jsonl", ".lock", ".md", ".txt", ".xml", ".yaml", ".yml"))
SPLIT_OF_FOLDER_NAME = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
logger = logging.getLogger(__name__)


@dataclass
class FolderContent:
    """The content of a folder, by the rules above.

    Attributes:
        kind: kind of the data.
        splits: for each split its files, as paths relative to the folder, in alphabetical order.
        has_split_folders: whether the splits are top folders.
        metadata: the metadata files.
        left_out: data files outside of the splits.
        unread: numbers of files with other suffixes, by suffix.
        loops: links to a folder that contains them.
    """

    folder: str
    kind: Kind
    splits: dict[str, list[str]]
    has_split_folders: bool
    metadata: list[str]
    left_out: list[str] = field(default_factory=list)
    unread: Counter = field(default_factory=Counter)
    loops: list[str] = field(default_factory=list)

    def classes(self) -> dict[str, list[str]]:
        """For each split with labels, the class of every file."""
        depth = 1 if self.has_split_folders else 0
        found = {}
        for split, files in self.splits.items():
            is_labelled = self.kind == "image" and not self.metadata
            if is_labelled and all(file.count(os.sep) == depth + 1 for file in files):
                found[split] = [file.split(os.sep)[depth] for file in files]
        # A single folder that contains all images is not a class.
        return found if len({name for names in found.values() for name in names}) > 1 else {}


def named_split(splits: Iterable[str], split: str, folder: str) -> str:
    """The split that a name means, such as "validation" for "val".

    Raises:
        ValueError: there is no such split; the message lists the existing ones.
    """
    for name in (split, SPLIT_OF_FOLDER_NAME.get(split)):
        if name is not None and name in splits:
            return name
    raise ValueError(f"split is {split!r}, but the data set {folder!r} has the splits: {', '.join(splits)}.")


def read_folder(folder: str) -> FolderContent:
    """Read a folder by the rules above.

    Raises:
        ValueError: as `content_of`.
    """
    files, _, loops = files_below(folder)
    return content_of(folder, files, loops)


def content_of(folder: str, files: Sequence[str], loops: Sequence[str] = ()) -> FolderContent:
    """The content of a folder, by the rules above, from its files.

    Args:
        folder: a path, or an address (`remote_files`).
        files, loops: results of `files_below`.

    Raises:
        ValueError: it contains no data, data of two kinds, or folders that could be splits or something else.
    """
    metadata = [file for file in files if os.path.basename(file).lower() in METADATA_NAMES]
    of_kind: dict[Kind, list[str]] = {}
    unread: Counter[str] = Counter()
    for file in files:
        suffix = os.path.splitext(file)[1].lower()
        if not _is_text(file):  # tables of paths cannot contain it
            unread["names that are not UTF-8"] += 1
        elif file not in metadata and suffix in KIND_OF_SUFFIX:
            of_kind.setdefault(KIND_OF_SUFFIX[suffix], []).append(file)
        elif file not in metadata:
            unread[suffix or "no suffix"] += 1
    if "image" not in of_kind:  # then a parquet file of this name is like any other
        parquets = [file for file in metadata if file.lower().endswith(".parquet")]
        if parquets:
            of_kind["parquet"] = sorted(of_kind.get("parquet", []) + parquets)
        metadata = []
    if not of_kind:
        seen = f"it has only {_counted(unread)}" if unread else "it is empty, but for hidden files"
        raise ValueError(
            f"the data set {folder!r} is a folder with no images, parquet files or tars: {seen}. Images are read by"
            f" the suffixes {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    if len(of_kind) > 1:
        kinds = ", ".join(f"{len(names)} of kind {kind} ({names[0]}, ...)" for kind, names in of_kind.items())
        raise ValueError(
            f"the data set {folder!r} holds files of {len(of_kind)} kinds, of which one is the data: {kinds}; move the"
            f" others out, or name the parquet files or tars alone, such as {os.path.join(folder, '*.parquet')!r}."
        )
    ((kind, data),) = of_kind.items()
    splits, has_split_folders, left_out = _split(folder, data, kind)
    return FolderContent(folder, kind, splits, has_split_folders, metadata, left_out, unread, list(loops))


def files_below(folder: str) -> tuple[list[str], list[str], list[str]]:
    """All files below a folder except hidden ones, their folders, and links that loop.

    Paths are relative to the folder, in alphabetical order. The folder itself is "".
    """
    files, folders, loops = [], [], []

    def walk(parent: str, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        folders.append(prefix)
        with os.scandir(parent) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                if not entry.is_dir():
                    files.append(name)
                    continue
                status = os.stat(entry.path)
                own = (status.st_dev, status.st_ino)
                if own in above:
                    loops.append(name)
                else:
                    walk(entry.path, name + os.sep, (*above, *(_up_from(entry.path) if entry.is_symlink() else [own])))

    walk(folder, "", tuple(_up_from(folder)))
    return sorted(files), sorted(folders), sorted(loops)


def _up_from(folder: str) -> list[tuple[int, int]]:
    """Identifiers of a folder and of all folders above it. A link to one of them leads back to it."""
    place = Path(folder).resolve()
    return [(status.st_dev, status.st_ino) for status in map(os.stat, (place, *place.parents))]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(folder: str, data: Sequence[str], kind: str) -> tuple[dict[str, list[str]], bool, list[str]]:
    """The files of each split, whether splits are top folders, and the files that are in none."""
    folder_of_split: dict[str, str] = {}
    splits: dict[str, list[str]] = {}
    outside = []
    for file in data:
        top, separator, _ = file.partition(os.sep)
        split = SPLIT_OF_FOLDER_NAME.get(top.lower()) if separator else None
        if split is None:
            outside.append(file)
        elif folder_of_split.setdefault(split, top) != top:
            raise ValueError(
                f"the data set {folder!r} has the folders {folder_of_split[split]!r} and {top!r}, which both mean the"
                f" split {split}; put their files into one."
            )
        else:
            splits.setdefault(split, []).append(file)
    if splits and (not outside or len(splits) > 1):
        return splits, True, outside
    if kind != "image":
        return _split_by_name(folder, data), False, []
    if splits:
        ((split, top),) = folder_of_split.items()
        raise ValueError(
            f"the data set {folder!r} has the folder {top!r} beside {len(outside)} other images ({outside[0]}, ...):"
            f" it could be the split {split} or a class; name {os.path.join(folder, top)!r} to read it alone, or give"
            " the folder another name."
        )
    return {"train": list(data)}, False, []


def _split_by_name(folder: str, data: Sequence[str]) -> dict[str, list[str]]:
    """Parquet files or tars by the first split name among the words of their path; without any, all are training."""
    splits: dict[str, list[str]] = {}
    unnamed: list[str] = []
    for file in data:
        words = re.split(r"[^a-z]+", file.lower())
        name = next((SPLIT_OF_FOLDER_NAME[word] for word in words if word in SPLIT_OF_FOLDER_NAME), None)
        (unnamed if name is None else splits.setdefault(name, [])).append(file)
    if unnamed and splits:
        named = next(iter(splits.values()))[0]
        raise ValueError(
            f"the data set {folder!r} has {len(unnamed)} files whose names tell no split ({unnamed[0]}, ...) beside"
            f" others that do ({named}, ...); name the files to read, such as {os.path.join(folder, 'NAME*')!r}."
        )
    return splits or {"train": unnamed}


def _counted(unread: Counter) -> str:
    return f"{unread.total()} files that are not read ({', '.join(f'{n} {s}' for s, n in unread.most_common())})"


def say_what_is_read(content: FolderContent) -> None:
    """Log one line about the content; a warning if something is left out."""
    if int(os.environ.get("RANK", 0)) > 0:  # only the first process of a launch logs
        return
    classes = content.classes()
    splits = []
    for split, files in content.splits.items():
        labels = ""
        if content.kind == "image" and not content.metadata:
            labels = f", {len(set(classes[split]))} classes" if split in classes else ", no labels"
        splits.append(f"{split} ({len(files)}{labels})")
    reason = "split folders" if content.has_split_folders else "no split folders"
    losses = []
    if content.left_out:
        losses.append(f"{len(content.left_out)} files outside of the splits left out ({some(content.left_out)})")
    if content.unread:
        losses.append(_counted(content.unread))
    if content.loops:
        losses.append(f"{len(content.loops)} links to a folder above them not followed ({some(content.loops)})")
    line = "; ".join([f"{content.folder}: {content.kind} files, {reason}: {', '.join(splits)}", *losses])
    is_worth_a_warning = content.left_out or content.loops or set(content.unread) - DOCUMENT_SUFFIXES
    logger.log(logging.WARNING if is_worth_a_warning else logging.INFO, line)
