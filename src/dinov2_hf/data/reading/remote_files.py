"""Finds and opens files at addresses, such as s3://bucket/folder, through fsspec, without copying them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec

from .damaged_files import cause_of


PACKAGE_OF = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
PACKAGE_OF |= {"abfs": "adlfs", "az": "adlfs"}
# Facts by which stores identify the content of a file without reading it, the best first.
VERSION_KEYS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "blob_id",
    "oid",
    "LastModified",
    "mtime",
    "updated",
    "created",
)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a store.

    Attributes:
        url: its address.
        state: its bytes (-1 if unknown), and 63 bits that identify its content (0 if the store gives nothing).
    """

    url: str
    state: tuple[int, int]


def filesystem_of(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The store of an address, and the path in it.

    Raises:
        ValueError: there is no such kind of store, its package is not installed, or the address is on this machine.
    """
    protocol = url.partition("://")[0].lower()
    if protocol in ("file", "local") or "::" in url:
        raise ValueError(f"{url} is not an address that can be read: give the plain path of a file on this machine.")
    try:
        return fsspec.url_to_fs(url)
    except ImportError as error:
        package = PACKAGE_OF.get(protocol)
        extra = 'pip install "dinov2_hf[remote]"' if protocol[0] in "sgh" else f"pip install {package}"
        raise ValueError(f"{url} is read with {package}, which is not installed: {extra} ({error}).") from error
    except ValueError as error:
        raise ValueError(f"{url} is not an address that can be read: {error}.") from error


def open_url(url: str) -> BinaryIO:
    """Open a file of a store for reading in parts. Each read is one request.

    Raises:
        ValueError: as `filesystem_of`.
        OSError: it does not exist, or cannot be read.
    """
    store, path = filesystem_of(url)
    return store.open(path, "rb", cache_type="none")


def matching_files(url: str) -> tuple[str | None, list[RemoteFile]]:
    """The file at an address, all files below a folder, or all that match a pattern with `*`; sorted, none hidden.

    Returns:
        The address of the folder, or None if it is not a folder, and the files.

    Raises:
        ValueError: as `filesystem_of`; or the store cannot be reached, or has nothing there.
    """
    store, path = filesystem_of(url)
    root = path.rstrip("/")
    store.invalidate_cache()  # otherwise the result of an earlier call would be returned
    try:
        # `find` also finds a single file.
        found = store.glob(path, detail=True) if "*" in path else store.find(path, detail=True)
    except Exception as error:  # the clients of stores have no common class of errors
        raise ValueError(f"{url} cannot be looked through ({cause_of(error)}).") from error
    files = [
        RemoteFile(store.unstrip_protocol(name), _state(info))
        for name, info in found.items()
        if info.get("type") != "directory" and not _is_hidden(name.removeprefix(root)) and not name.endswith("/")
    ]
    if not files:
        raise ValueError(f"{url} has no files, or is not there.")
    is_folder = "*" not in path and root not in found
    return store.unstrip_protocol(root) if is_folder else None, sorted(files, key=lambda file: file.url)


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


def _state(info: Mapping[str, Any]) -> tuple[int, int]:
    version = next((str(info[key]) for key in VERSION_KEYS if info.get(key) is not None), None)
    digest = (
        0 if version is None else int.from_bytes(hashlib.blake2b(version.encode(), digest_size=8).digest(), "big") >> 1
    )
    size = info.get("size")
    return -1 if size is None else int(size), digest
