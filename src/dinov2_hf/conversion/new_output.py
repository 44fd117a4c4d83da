"""Files and folders that are either whole or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_folder(folder: Path, overwrite: bool) -> None:
    """
    Call before any work is spent on what is to be written.

    Raises:
        `ValueError`: what is at `folder` may not be replaced: anything but an empty folder without `overwrite`; with
            it, a file, or a folder that is not one of a model.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{folder} exists already; choose another name, or set `overwrite`.")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no folder with a config.json, so it is not a model's and is not replaced.")


def check_file(path: Path, overwrite: bool) -> None:
    """As `check_folder`; with `overwrite` any file may be replaced."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but the name of a file is needed.")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already; choose another name, or set `overwrite`.")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` when the block ends without an error."""
    folder = folder.absolute()
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, which is renamed to `path` when the block ends without an error."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
