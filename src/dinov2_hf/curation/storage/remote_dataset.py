"""The dataset in a store, such as s3://bucket/dataset: whose folder it is there, and how files get there.

Each file is written here, sent as a whole when it is complete, and removed here. Whose the folder is, its marker says:
nobody else's files are replaced, and of ours those of an earlier run go at the end.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...data.decoding.file_content import is_url
from ...data.reading.damaged_files import cause_of
from ...data.reading.remote_files import filesystem_of
from ...output_folders import MARKER
from ...public_names import without_secrets


SENT = "sent.json"  # of a build shard: what it sent
CARD = "README.md"


class RemoteDataset:
    """
    Args:
        url: the address of the folder.
        output_dir: of the curation, to which the dataset belongs.

    Raises:
        ValueError: it is no address of a store that can be used here.
    """

    def __init__(self, url: str, output_dir: Path):
        if not is_url(url):
            raise ValueError(
                f"dataset_url is {url!r}, but must be an address, such as s3://bucket/dataset; without it the dataset"
                " is in output_dir."
            )
        self.url = url.rstrip("/")
        self.name = without_secrets(self.url)
        self.store, self.root = filesystem_of(self.url)
        self.owner = hashlib.blake2b(os.fsencode(output_dir.absolute()), digest_size=8).hexdigest()

    def refuse_foreign(self) -> None:
        """
        That the folder is empty, or of this curation.

        Raises:
            ValueError: it is not, or the store cannot be asked.
        """
        with self._asked("looked at"):
            self.store.invalidate_cache()
            names = list(self._names())
            marker = self._marker()
        if marker is None and names:
            raise ValueError(
                f"dataset_url is {self.name}, which holds {names[0]}, and was not written by dinov2_hf (it has no"
                f" {MARKER}): choose an empty folder."
            )
        if marker is not None and marker.get("curation") != self.owner:
            raise ValueError(
                f"dataset_url is {self.name}, which holds the dataset of a curation with another output_dir: choose"
                " another address, or remove what is there."
            )

    def mark(self) -> None:
        """Say in the folder, before anything is sent to it, whose it is."""
        with self._asked("written to"):
            if self._marker() is None:
                self._write_marker({})

    def send(self, path: Path) -> None:
        """Send a file to `data/`, in place of an earlier one of its name, and remove it here."""
        with self._asked("written to"):
            self.store.put_file(os.fspath(path), f"{self.root}/data/{path.name}")
        path.unlink()

    def finish(self, sent: Sequence[Mapping[str, Any]], card: Path, fingerprint: str) -> None:
        """Write the card, unless it is that of the same dataset, and remove files of earlier runs.

        Args:
            sent: `name` and `bytes` of each file.

        Raises:
            ValueError: a file is missing there, or has another size; or the store cannot be used.
        """
        with self._asked("finished"):
            self.store.invalidate_cache()
            found = {f"data/{name}": self.store.size(f"{self.root}/data/{name}") for name in self._data()}
            for file in sent:
                size = found.pop(f"data/{file['name']}", None)
                if size != file["bytes"]:
                    shard = int(re.match(r"train-(\d+)", file["name"])[1])
                    raise ValueError(
                        f"{self.name}/data/{file['name']} has {size} bytes, but {file['bytes']} were sent: remove the"
                        f" folder of shard {shard} of the stage build, and run the same command again."
                    )
            marker = self._marker() or {}
            if marker.get("fingerprint") != fingerprint or not self.store.exists(f"{self.root}/{CARD}"):
                self.store.pipe_file(f"{self.root}/{CARD}", card.read_bytes())
                self._write_marker({"fingerprint": fingerprint})
            for name in found:
                self.store.rm_file(f"{self.root}/{name}")

    def _data(self) -> Iterator[str]:
        """The names of the files that a curation has sent."""
        names = (name.removeprefix("data/") for name in self._names() if name.startswith("data/"))
        return (name for name in names if re.fullmatch(r"train-\d{5}-\d{5}\.parquet", name))

    def _names(self) -> Iterator[str]:
        found = self.store.find(self.root)
        return (name[len(self.root.rstrip("/")) + 1 :] for name in found if not name.endswith("/"))

    def _marker(self) -> dict[str, Any] | None:
        place = f"{self.root}/{MARKER}"
        if not self.store.exists(place):
            return None
        marker = json.loads(self.store.cat_file(place))
        return marker if isinstance(marker, dict) and marker.get("written_by") == "dinov2_hf" else None

    def _write_marker(self, facts: Mapping[str, str]) -> None:
        marker = {"written_by": "dinov2_hf", "kind": "dataset", "curation": self.owner, **facts}
        self.store.pipe_file(f"{self.root}/{MARKER}", json.dumps(marker, indent=1).encode())

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Errors of the store as one sentence."""
        try:
            yield
        except ValueError:
            raise
        except Exception as error:  # clients of stores have no common class of errors
            raise ValueError(f"dataset_url is {self.name}, which cannot be {what} ({cause_of(error)}).") from error
