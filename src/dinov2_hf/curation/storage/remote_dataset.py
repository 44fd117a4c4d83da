"""The dataset in a store, such as s3://bucket/dataset: whose it is there, and how files get there.

Each file is written here, sent as a whole when it is complete, and removed here. Nobody else's files are replaced, and
of ours those of an earlier run go at the end.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arguments import CurationArguments
from .remote_folder import RemoteFolder


SENT = "sent.json"  # of a build shard: what it sent
CARD = "README.md"


class RemoteDataset(RemoteFolder):
    """
    Args:
        arguments: of the curation to which the dataset belongs. Another with its `output_dir`, or its `stages_url`, is
            the same.

    Raises:
        ValueError: `dataset_url` is no address of a store that can be used here.
    """

    def __init__(self, arguments: CurationArguments):
        super().__init__("dataset_url", arguments.dataset_url, "dataset")
        names, self.stages_url = [os.fsencode(Path(arguments.output_dir).absolute())], arguments.stages_url
        if self.stages_url is not None:
            names.append(self.stages_url.rstrip("/").encode())
        self.owners = [hashlib.blake2b(name, digest_size=8).hexdigest() for name in names]

    def refuse_foreign(self) -> None:
        """
        That the folder is empty, or of this curation.

        Raises:
            ValueError: it is not, or the store cannot be asked.
        """
        super().refuse_foreign()
        with self.asked("looked at"):
            marker = self.marker()
        if marker is not None and marker.get("curation") not in self.owners:
            raise ValueError(
                f"dataset_url is {self.name}, which holds the dataset of a curation with another output_dir: choose"
                " another address, or remove what is there."
            )

    def mark(self) -> None:
        """Say in the folder, before anything is sent to it, whose it is."""
        with self.asked("written to"):
            marker = self.marker() or {}
            if marker.get("curation") != self.owners[-1]:
                self._write_marker(marker.get("fingerprint"))

    def send(self, path: Path) -> None:
        """Send a file to `data/`, in place of an earlier one of its name, and remove it here."""
        with self.asked("written to"):
            self.store.put_file(os.fspath(path), f"{self.root}/data/{path.name}")
        path.unlink()

    def finish(self, sent: Sequence[Mapping[str, Any]], card: Path, fingerprint: str) -> None:
        """Write the card, unless it is that of the same dataset, and remove files of earlier runs.

        Args:
            sent: `name` and `bytes` of each file.

        Raises:
            ValueError: a file is missing there, or has another size; or the store cannot be used.
        """
        with self.asked("finished"):
            found = dict(self._data())
            for file in sent:
                size = found.pop(f"data/{file['name']}", None)
                if size != file["bytes"]:
                    shard = int(re.match(r"train-(\d+)", file["name"])[1])
                    also = "" if self.stages_url is None else ", also that in stages_url,"
                    raise ValueError(
                        f"{self.name}/data/{file['name']} has {size} bytes, but {file['bytes']} were sent: remove the"
                        f" folder of shard {shard} of the stage build{also} and run the same command again."
                    )
            marker = self.marker() or {}
            if marker.get("fingerprint") != fingerprint or not self.store.exists(f"{self.root}/{CARD}"):
                self.store.pipe_file(f"{self.root}/{CARD}", card.read_bytes())
                self._write_marker(fingerprint)
            self.remove_files(list(found))

    def _data(self) -> Iterator[tuple[str, int]]:
        """The files that a curation has sent, with their bytes."""
        found = self.files("data").items()
        return ((name, size) for name, size in found if re.fullmatch(r"data/train-\d{5}-\d{5}\.parquet", name))

    def _write_marker(self, fingerprint: str | None) -> None:
        facts = {} if fingerprint is None else {"fingerprint": fingerprint}
        self.write_marker({"curation": self.owners[-1], **facts})
