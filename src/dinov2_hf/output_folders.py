"""Who owns an output folder: the marker of the program that wrote it, the lock of its present writer, and refusals.

This package deletes and replaces only what it wrote. A folder that it writes contains `MARKER`, a small JSON file with
the kind of the folder. A folder without one belongs to the user. All refusals come before any work.
"""

import glob
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .public_names import some


MARKER = ".dinov2_hf.json"
LOCK = ".dinov2_hf.lock"
# Files that file browsers leave in any folder they show. They belong to nobody, and are deleted with their folder.
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")
SECONDS_TO_REGISTER = 30.0  # for a part: the other parts of a launch register at the same moment
KINDS = {
    "run": "a training run",
    "curation": "a curation",
    "dataset": "a curated dataset",
    "stages": "the stages of a curation",
    "evaluation": "an evaluation",
    "model": "a model",
    "features": "features",
    "nonfinite_step": "a step that was not finite",
    "pictures": "pictures of a step",
    "unfinished": "unfinished output",
}


def read_marker(folder: Path) -> dict | None:
    """The marker that `write_marker` wrote into `folder`; None if there is none, or none that can be read."""
    path = folder / MARKER
    try:
        marker = json.loads(path.read_text()) if path.is_file() and not path.is_symlink() else None
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("kind") in KINDS else None


def write_marker(folder: Path, kind: str, *, list_files: bool = False) -> None:
    """Mark `folder` as written by this package.

    Args:
        folder: an existing folder.
        kind: a name of `KINDS`.
        list_files: also list every file in it, for a folder that is written once, as a whole. A file that is not
            listed then belongs to the user. Folders that grow, such as a run's, recognise their files by name.
    """
    marker = {"written_by": "dinov2_hf", "kind": kind}
    if list_files:
        marker["files"] = sorted(files_in(folder))
    _write(folder, marker)


def add_to_marker(folder: Path, name: str) -> None:
    """Add a file, such as a card, to the marker of a folder that this package wrote as a whole."""
    marker = read_marker(folder)
    if marker is not None and "files" in marker and name not in marker["files"]:
        _write(folder, {**marker, "files": sorted([*marker["files"], name])})


def _write(folder: Path, marker: dict) -> None:
    write_text(folder / MARKER, json.dumps(marker, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small text file in a folder that this package owns. Other processes see it whole or not at all."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(partial, 0o666 & ~umask())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def umask() -> int:
    """The umask of this process. It can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def files_in(folder: Path) -> Iterator[str]:
    """Relative names of all files and links below `folder`, without marker, locks and litter. No link is followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in [*files, *links]:
            path = os.path.relpath(os.path.join(root, name), folder)
            if path != MARKER and not path.startswith(LOCK) and name not in LITTER:
                yield Path(path).as_posix()


def is_free(folder: Path) -> bool:
    """Whether the folder does not exist or is empty. Locks of writers and litter do not count."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and all(path.name.startswith(LOCK) or path.name in LITTER for path in folder.iterdir())


def check_kind(folder: Path, kind: str) -> None:
    """
    Check that `folder` may be replaced, as a whole, by another of its kind.

    Raises:
        ValueError: it is not a folder, has no marker or the marker of another kind, or contains files that its marker
            does not list.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, but {KINDS[kind]} is written to a folder; choose another name.")
    marker = read_marker(folder)
    if marker is None:
        raise ValueError(
            f"{folder} was not written by dinov2_hf (it has no {MARKER}), so it is not replaced; choose another name,"
            " or move it away."
        )
    if marker["kind"] != kind:
        raise ValueError(
            f"{folder} holds {KINDS[marker['kind']]}, which is not replaced by {KINDS[kind]}; choose another name."
        )
    foreign = sorted(set(files_in(folder)) - set(marker.get("files", ())))
    if foreign:
        raise ValueError(
            f"{folder} holds {some(foreign)}, which dinov2_hf did not write, so it is not replaced; choose another"
            " name, or move that away."
        )


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """
    Check that no output inside a folder is a symbolic link. The folder itself may be one.

    Raises:
        ValueError: one of `names` in `folder` is a link.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise ValueError(
                f"{folder / name} is a symbolic link, and output is not written through links; remove it, or make the"
                " output folder itself the link."
            )


def refuse_urls(output: str | os.PathLike) -> None:
    """
    Check that an output is a path on this machine. A URL would become a local folder such as `./s3:`.

    Raises:
        ValueError: it is the URL of another place.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", os.fspath(output))  # `Path` turns two slashes into one
    if found:
        raise ValueError(
            f"the output {found[1]}://{found[2]} is a URL, but output is only written to folders of this"
            " machine; write it to one, and copy that when it is finished."
        )


def refuse_overlap(output: Path, sources: Iterable[str | os.PathLike]) -> None:
    """
    Check that an output is not one of the sources, is not inside one, and does not contain one.

    Args:
        output: the file or folder to be written.
        sources: paths that are read, or patterns of them. Other names, such as a Hub id, are accepted.

    Raises:
        ValueError: with both names.
    """
    place = Path(output).resolve()
    for source in sources:
        matches = [source] if os.path.exists(source) else glob.glob(os.fspath(source), recursive=True)
        _refuse_overlap_of(output, place, matches)


def _refuse_overlap_of(output: Path, place: Path, sources: Iterable[str | os.PathLike]) -> None:
    for source in sources:
        found = Path(source).resolve()
        if place == found:
            relation = "is the same as"
        elif found in place.parents and found.is_dir():
            relation = "is inside"
        elif place in found.parents:
            relation = "is around"
        else:
            continue
        raise ValueError(
            f"the output {output} {relation} the source {source}, so one would be mistaken for the other; choose an"
            " output elsewhere."
        )


@contextmanager
def sole_writer(output: Path, *, beside: bool = False) -> Iterator[None]:
    """
    Hold the lock of an output while the block runs.

    Args:
        output: the folder, which is created if it does not exist; or, with `beside`, a file or folder that does not
            exist yet or will be replaced.

    Raises:
        ValueError: another process holds its lock or the lock of one of its parts (`part_writer`); no folder can be
            created there; or it is a URL.
    """
    refuse_urls(output)
    output = output.resolve()
    folder = output.parent if beside else output
    make_folder(folder)
    with _lock(folder / (f".{output.name}.lock" if beside else LOCK), output):
        for part in [] if beside else sorted(folder.glob(f"{LOCK}.*")):
            with _lock(part, output):  # a lock that nobody holds is from a killed process, and is deleted
                pass
        yield


@contextmanager
def part_writer(folder: Path, part: str) -> Iterator[None]:
    """
    Hold the lock of a part of a folder while the block runs. Several processes can fill a folder together, one part
    each. Meanwhile no process can be the `sole_writer` of the folder.

    Args:
        folder: created if it does not exist.
        part: a name that the other processes do not have.

    Raises:
        ValueError: another process holds the lock of this part or of the whole folder, or no folder can be created
            there.
    """
    refuse_urls(folder)
    folder = folder.resolve()
    make_folder(folder)
    with ExitStack() as held:
        with _lock(folder / LOCK, folder, timeout=SECONDS_TO_REGISTER):
            held.enter_context(_lock(folder / f"{LOCK}.{part}", folder))
        yield


@contextmanager
def _lock(path: Path, output: Path, *, timeout: float = 0) -> Iterator[None]:
    """Hold the lock file `path`, which says that `output` is being written."""
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{output} is being written by another process; wait until that has ended, or choose another output."
        ) from None
    except OSError as error:
        raise ValueError(f"{output} cannot be written: {error.strerror or error}.") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held, so that no other process's lock is removed
        lock.release()


def refuse_unwritable(output: Path) -> None:
    """
    Check that an output can be created, as far as this can be known without creating anything.

    Raises:
        ValueError: one of its folders is a file, or there is no permission to write.
    """
    folder = next(folder for folder in output.resolve().parents if folder.exists())
    if not folder.is_dir():
        raise ValueError(f"{output} cannot be created, because {folder} is a file; choose another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{output} cannot be created, because {folder} cannot be written to; choose another place.")


def make_folder(folder: Path) -> None:
    """
    Create a folder and the folders above it.

    Raises:
        ValueError: it cannot be created, or it is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be created: {error.strerror or error}.") from None
