"""Size and SHA-256 of every file of a checkpoint, so that damage is found before a run continues from it."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...output_folders import files_in


MANIFEST_FILE = "manifest.json"
# hashlib releases the interpreter lock; sharded checkpoints have a file for each process.
NUM_THREADS = 8


def hash_file(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        return digest.hexdigest()


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: for each other file in `folder`, at any depth, `size` in bytes and `sha256`."""
    paths = [path for path in _files(folder) if path.name != MANIFEST_FILE]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        hashes = list(pool.map(hash_file, paths))
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(files, indent=2) + "\n")


def find_damage(folder: Path) -> str | None:
    """The difference of `folder` to its manifest, such as "its optimizer.bin has 12 bytes instead of 345"."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text())
    except FileNotFoundError:
        return f"it has no {MANIFEST_FILE}"
    except ValueError:
        files = None
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        return f"its {MANIFEST_FILE} is damaged"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"its {name} is missing"
        if path.stat().st_size != expected.get("size"):
            return f"its {name} has {path.stat().st_size} bytes instead of {expected.get('size')}"
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        hashes = pool.map(hash_file, [folder / name for name in files])
        for (name, expected), digest in zip(files.items(), hashes, strict=True):
            if digest != expected.get("sha256"):
                return f"its {name} is not what was saved (SHA-256 differs)"
    return None


def foreign_files(folder: Path) -> list[str]:
    """Names of the files in `folder` that its manifest does not list; all of them if there is no readable manifest."""
    return sorted(set(files_in(folder)) - _listed(folder))


def remove_listed(folder: Path) -> None:
    """Delete the files that the manifest of `folder` lists, then the manifest, then `folder` if it is empty."""
    for name in sorted(_listed(folder) & set(files_in(folder)), key=lambda name: name == MANIFEST_FILE):
        (folder / name).unlink()
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        remove_if_empty(path)
    remove_if_empty(folder)


def remove_if_empty(folder: Path) -> None:
    """Delete an empty folder, if it exists."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _listed(folder: Path) -> set[str]:
    try:
        return {*json.loads((folder / MANIFEST_FILE).read_text()), MANIFEST_FILE}
    except (OSError, ValueError):
        return set()


def sync_folder(folder: Path) -> None:
    """Wait until the files in `folder`, at any depth, and the folders themselves are on the disk."""
    for path in [*_files(folder), *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Wait until one file, or the names in one folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
