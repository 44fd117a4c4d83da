"""How this package writes a file or folder: whole, or not at all.

It is written under an unpredictable name, in a hidden folder beside its place. It takes its place when it is complete.
An error, a kill or a full disk leaves the earlier file unchanged. Leftovers of a killed process carry a marker, and
are removed when the same name is written next.
"""

import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .output_folders import (
    check_kind,
    is_free,
    read_marker,
    refuse_overlap,
    refuse_unwritable,
    refuse_urls,
    sole_writer,
    umask,
    write_marker,
)


# The errors of a full disk: of Python's files; of safetensors; of torch.save, faiss and ONNX, which have no class for
# it.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
# With less free space than this, a failed write is taken for a full disk: NumPy and torch give no error number.
LEAST_FREE_BYTES = 16 * 2**20
UNFINISHED = ".unfinished"
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # of renameat2(2)


@contextmanager
def new_file(path: str | os.PathLike, *, overwrite: bool = False, sources: Iterable = ()) -> Iterator[Path]:
    """
    A path to write to. The file there takes the place of `path` when the block ends without an error.

    Put all the work into the block: all refusals come when it is entered, and no other process can write to `path`
    until it ends.

    Args:
        path: the file; folders above it are made. If it is a link, the file that it points to is replaced.
        overwrite: whether a file that is there may be replaced.
        sources: paths that are read; `path` may not be one of them, be inside one or contain one.

    Raises:
        ValueError: `path` is a folder, is there without `overwrite`, overlaps a source, or is being written by
            another process; or the disk is full.
    """
    path = Path(path)
    check_new_file(path, overwrite=overwrite, sources=sources)
    place = path.resolve()
    with sole_writer(place, beside=True), unfinished(place) as folder:
        check_new_file(path, overwrite=overwrite)  # another process may have been faster
        yield folder / place.name
        os.replace(folder / place.name, place)


@contextmanager
def new_folder(
    folder: str | os.PathLike, kind: str, *, overwrite: bool = False, sources: Iterable = ()
) -> Iterator[Path]:
    """
    An empty folder to write into. It takes the place of `folder` when the block ends without an error.

    Put all the work into the block, as with `new_file`. The folder gets a marker with its kind and the names of all
    files in it.

    Args:
        folder: its place; folders above it are made. A link to a folder is followed.
        kind: a name of `output_folders.KINDS`.
        overwrite: whether to replace an existing folder of the same kind, if this package wrote it and no file was
            added.
        sources: as in `new_file`.

    Raises:
        ValueError: as in `new_file`, and when what is there may not be replaced.
    """
    folder = Path(folder)
    check_new_folder(folder, kind, overwrite=overwrite, sources=sources)
    place = folder.resolve()
    with sole_writer(place, beside=True), unfinished(place) as scratch:
        check_new_folder(folder, kind, overwrite=overwrite)
        partial = scratch / place.name
        partial.mkdir()
        yield partial
        write_marker(partial, kind, list_files=True)
        put_in_place(partial, place)


def check_new_file(path: Path, *, overwrite: bool, sources: Iterable = ()) -> None:
    """The checks of `new_file`, for commands that must make them earlier."""
    refuse_urls(path)
    refuse_overlap(path, sources)
    refuse_unwritable(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but the name of a file is needed.")
    if os.path.lexists(path) and not path.resolve().parent.is_dir():
        raise ValueError(f"{path} is a link to nowhere; remove it, or choose another name.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not an ordinary file, so it is not replaced; choose another name.")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already; choose another name, or replace it with --overwrite.")


def check_new_folder(folder: Path, kind: str, *, overwrite: bool, sources: Iterable = ()) -> None:
    """The checks of `new_folder`, for commands that must make them earlier."""
    refuse_urls(folder)
    refuse_overlap(folder, sources)
    refuse_unwritable(folder)
    if is_free(folder):
        return
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{folder} is a link to nowhere; remove it, or choose another name.")
    if not overwrite:
        raise ValueError(f"{folder} exists already; choose another name, or replace it with --overwrite.")
    check_kind(folder, kind)


def put_in_place(partial: Path, place: Path) -> None:
    """
    Move the finished folder `partial` to its place. If the system can do it (Linux), it is exchanged with the earlier
    folder in one step, so that a kill at any moment leaves one of the two under the name. Then the earlier one is
    deleted.
    """
    if not os.path.lexists(place):
        os.rename(partial, place)
    elif _exchange(partial, place):
        shutil.rmtree(partial)
    else:
        replaced = partial.with_name(f"{partial.name}.replaced")
        os.rename(place, replaced)
        try:
            os.rename(partial, place)
        except OSError:
            os.rename(replaced, place)
            raise
        shutil.rmtree(replaced)


def is_disk_full(path: Path, error: BaseException) -> bool:
    """Whether an error of writing to `path` comes from a full disk."""
    number = getattr(error, "errno", None)
    if number is not None:
        return number in (errno.ENOSPC, errno.EDQUOT)
    while not path.exists():
        path = path.parent
    return isinstance(error, WRITE_ERRORS) and shutil.disk_usage(path).free < LEAST_FREE_BYTES


@contextmanager
def unfinished(place: Path) -> Iterator[Path]:
    """
    A hidden folder beside `place`, deleted at the end. Leftovers of killed processes under the same name are removed
    first. The caller holds the lock of `place`. `new_file` and `new_folder` are built on it. It also serves for a
    folder that several processes write together.

    Raises:
        ValueError: the disk is full.
    """
    remove_leftovers(place.parent, re.escape(place.name))
    folder = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=UNFINISHED))
    try:
        folder.chmod(0o777 & ~umask())
        write_marker(folder, "unfinished")
        yield folder
    except WRITE_ERRORS as error:
        if not is_disk_full(place.parent, error):
            raise
        free = shutil.disk_usage(place.parent).free / 1e6
        before = "what was there before is unchanged" if place.exists() else "nothing is left of it"
        raise ValueError(
            f"{place} could not be written, as the disk is full ({free:.0f} MB free); {before}. Make room, or choose"
            " another place."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path, names: str) -> None:
    """
    Remove leftovers of killed processes in `parent`, of outputs whose names match a regular expression. The caller
    holds their lock, so no process is writing them now.

    A kill between the two renames of `put_in_place` leaves nothing under the name. Then the earlier folder is moved
    back.
    """
    for folder in parent.iterdir():
        match = re.fullmatch(rf"\.({names})\.\w{{8}}{re.escape(UNFINISHED)}", folder.name)
        if not match or folder.is_symlink() or (read_marker(folder) or {}).get("kind") != "unfinished":
            continue
        place = parent / match[1]
        replaced = folder / f"{place.name}.replaced"
        if replaced.is_dir() and not os.path.lexists(place):
            os.rename(replaced, place)
        shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False if the system or the file system cannot do that."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # no such call in this C library
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
