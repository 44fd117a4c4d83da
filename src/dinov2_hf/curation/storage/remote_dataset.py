"""The dataset in a store, such as s3://bucket/dataset: whose it is, and how files get there.

Each file is written on this machine, sent as a whole when it is complete, and then removed here. Files of others are
not replaced. Files that an earlier run sent are removed at the end.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arguments import CurationArguments
from .remote_folder import RemoteFolder


SENT = "sent.json"  # in a build shard: what it sent
CARD = "README.md"


class RemoteDataset(RemoteFolder):
    """
    Args:
        arguments: of the curation to which the dataset belongs. A curation with the same `output_dir`, or the same
            `stages_url`, counts as the same one.

    Raises:
        ValueError: `dataset_url` is not the address of a store that can be used here.
    """

    def __init__(self, arguments: CurationArguments):
        super().__init__("dataset_url", arguments.dataset_url, "dataset")
        names, self.stages_url = [os.fsencode(Path(arguments.output_dir).absolute())], arguments.stages_url
        if self.stages_url is not None:
            names.append(self.stages_url.rstrip("/").encode())
        self.owners = [hashlib.blake2b(name, digest_size=8).hexdigest() for name in names]

    def refuse_foreign(self) -> None:
        """
        Check that the folder is empty, or belongs to this curation.

        Raises:
            ValueError: it does not, or the store does not answer.
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
        """Write into the folder whose it is, before anything is sent to it."""
        with self.asked("written to"):
            marker = self.marker() or {}
            if marker.get("curation") != self.owners[-1]:
                self._write_marker(marker.get("fingerprint"))

    def send(self, path: Path) -> None:
        """Send a file to `data/`, in place of an earlier file of its name, and remove it on this machine."""
        with self.asked("written to"):
            self.store.put_file(os.fspath(path), f"{self.root}/data/{path.name}")
        path.unlink()

    def finish(self, sent: Sequence[Mapping[str, Any]], card: Path, fingerprint: str) -> None:
        """Write the card, unless the card of the same dataset is there, and remove files of earlier runs.

        Args:
            sent: `name` and `bytes` of each file.

        Raises:
            ValueError: a file is missing in the store or has another size, or the store cannot be used.
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
