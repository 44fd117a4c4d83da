"""A folder in a store, such as s3://bucket/dataset, that this package writes. A marker in it says whose it is."""

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...data.decoding.file_content import is_url
from ...data.reading.damaged_files import cause_of
from ...data.reading.remote_files import filesystem_of
from ...output_folders import KINDS, MARKER
from ...public_names import without_secrets


class RemoteFolder:
    """
    Args:
        option: the option that gives the address, for errors.
        url: the address.
        kind: a name of `KINDS`.

    Attributes:
        url: without a slash at the end.
        name: the address as it may be shown.
        store, root: the store, and the path in it.

    Raises:
        ValueError: it is not the address of a store that can be used here.
    """

    def __init__(self, option: str, url: str, kind: str):
        if not is_url(url):
            raise ValueError(f"{option} is {url!r}, but must be an address, such as s3://bucket/{kind}.")
        self.option, self.kind, self.url = option, kind, url.rstrip("/")
        self.name = without_secrets(self.url)
        self.store, root = filesystem_of(self.url)
        self.root = root.rstrip("/")

    def refuse_foreign(self) -> None:
        """
        Check that the folder is empty, or marked as a folder of its kind.

        Raises:
            ValueError: it is not, or the store does not answer.
        """
        with self.asked("looked at"):
            marker = self.marker()
            names = list(self.files()) if marker is None else []
        if names:
            raise ValueError(
                f"{self.option} is {self.name}, which holds {names[0]} and was not written by dinov2_hf (it has no"
                f" {MARKER}): choose an empty folder."
            )
        if marker is not None and marker.get("kind") != self.kind:
            held = KINDS.get(marker.get("kind"), "something else")
            raise ValueError(f"{self.option} is {self.name}, which holds {held}: choose another address.")

    def files(self, below: str = "") -> dict[str, int]:
        """Names of all files, or of those below a folder in it, relative to this folder, with their bytes."""
        self.store.invalidate_cache()  # otherwise what an earlier look found would be found again
        found = self.store.find(f"{self.root}/{below}" if below else self.root, detail=True)
        return {name[len(self.root) + 1 :]: info["size"] for name, info in found.items() if not name.endswith("/")}

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is no such file."""
        try:
            return self.store.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None

    def remove_files(self, names: list[str]) -> None:
        """Remove files, many in one request where the store can do that."""
        if names:
            self.store.rm([f"{self.root}/{name}" for name in names])

    def marker(self) -> dict[str, Any] | None:
        """What `write_marker` wrote; None if there is no marker, or it is somebody else's."""
        try:
            marker = json.loads(self.read(MARKER) or b"null")
        except ValueError:
            return None
        return marker if isinstance(marker, dict) and marker.get("written_by") == "dinov2_hf" else None

    def write_marker(self, facts: Mapping[str, str]) -> None:
        """Write into the folder whose it is, before anything else is put there."""
        marker = {"written_by": "dinov2_hf", "kind": self.kind, **facts}
        self.store.pipe_file(f"{self.root}/{MARKER}", json.dumps(marker, indent=1).encode())

    @contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Raises errors of the store as a ValueError of one sentence."""
        try:
            yield
        except ValueError:
            raise
        except Exception as error:  # clients of stores have no common class of errors
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # the disk of this machine is full
                raise
            raise ValueError(f"{self.option} is {self.name}, which cannot be {what} ({cause_of(error)}).") from error
