"""Finished stages in a store, such as s3://bucket/stages, with which another machine can continue a curation.

```
<stage>/stage.json                                        as on this machine
<stage>/shard-00003-of-00016-<hash of the configuration>/<files>, and last manifest.json
<stage>/shard-<hash of all that it is made of>/...        of stages whose shards serve later runs
```

The name of a shard in the store tells what is in it. So shards of two configurations never mix, and a shard that
serves a later run stays where it is. A shard counts if it has a manifest, and all files have the sizes and checksums
of the manifest. Other files that somebody puts there are left alone, except in the folders of shards, which are
removed whole.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .manifests import MANIFEST, STAGE_FILE, StageFolder, UnfinishedShard, is_whole, read_manifest
from .remote_folder import RemoteFolder


_SHARD = re.compile(r"shard-(\d+-of-\d+-)?[0-9a-f]{16}")


class RemoteStages(RemoteFolder):
    """
    Args:
        url: the address of the folder.

    Raises:
        ValueError: it is not the address of a store that can be used here. All methods raise it too, if the store
            cannot be used.
    """

    def __init__(self, url: str):
        super().__init__("stages_url", url, "stages")

    def __reduce__(self):  # each process has its own connections
        return RemoteStages, (self.url,)

    def mark(self) -> None:
        """Write into the folder what it holds, before anything is sent to it."""
        with self.asked("written to"):
            if self.marker() is None:
                self.write_marker({})

    def records(self) -> dict[str, bytes]:
        """The `stage.json` of each stage that is there, by its name."""
        with self.asked("read"):
            self.store.invalidate_cache()
            places = [info["name"] for info in self.store.ls(self.root, detail=True) if info["type"] == "directory"]
            names = [place.rstrip("/").rpartition("/")[2] for place in places]
            found = {name: self.read(f"{name}/{STAGE_FILE}") for name in names}
        return {name: record for name, record in found.items() if record is not None}

    def open(self, folder: StageFolder) -> None:
        """As `StageFolder.open`, for the stage in the store; the stage is already open on this machine.

        Raises:
            ValueError: it was made by another configuration.
        """
        place = f"{folder.name}/{STAGE_FILE}"
        with self.asked("read"):
            record = self.read(place)
        folder.refuse_changes(record, self.name, self.option)
        if record is None:
            with self.asked("written to"):
                self.store.pipe_file(f"{self.root}/{place}", (folder.path / STAGE_FILE).read_bytes())

    def take(self, folder: StageFolder, shard: UnfinishedShard) -> bool:
        """Fetch a shard that is finished in the store. Returns whether it was; a damaged shard is removed there."""
        place = self._place(folder, shard.rank, shard.inputs)
        with self.asked("read"):
            content = self.read(f"{place}/{MANIFEST}")
            if content is None:
                return False
            manifest = read_manifest(content)
            if manifest is not None and self._fetch(place, manifest["files"], shard.folder):
                shard.rows, shard.known_files = manifest["rows"], manifest["files"]
                shard.seconds = manifest.get("seconds")
                return True
            self.remove_files([f"{place}/{MANIFEST}"])
        for path in shard.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return False

    def _fetch(self, place: str, files: Mapping[str, Mapping[str, Any]], folder: Path) -> bool:
        """Fetch the files that a manifest names. Returns whether they are whole."""
        if not all(_is_inside(name) for name in files):
            return False
        try:
            for name in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                self.store.get_file(f"{self.root}/{place}/{name}", os.fspath(folder / name))
        except FileNotFoundError:
            return False
        return is_whole(folder, files, verify=True)

    def send(self, folder: StageFolder, ranks: Iterable[int]) -> None:
        """Send shards that are finished here and are not in the store. The manifest of each is sent last."""
        finished = {}
        for rank in ranks:
            manifest = folder.manifest(rank)
            if manifest is not None and folder.is_finished(rank):
                place = self._place(folder, rank, manifest.get("inputs", ""))
                finished[place] = folder.shard(rank), manifest["files"]
        if not finished:
            return
        with self.asked("written to"):
            found = self.files(next(iter(finished)) if len(finished) == 1 else folder.name)
            for place, (shard, files) in finished.items():
                sizes = {f"{place}/{name}": record["bytes"] for name, record in files.items()}
                if f"{place}/{MANIFEST}" in found and all(found.get(name) == size for name, size in sizes.items()):
                    continue
                # Files are overwritten, so only the manifest is removed. Without it the shard does not count.
                self.remove_files([name for name in (f"{place}/{MANIFEST}",) if name in found])
                for name in (*files, MANIFEST):
                    self.store.put_file(os.fspath(shard / name), f"{self.root}/{place}/{name}")

    def remove(self, stage: str, *, keeps: bool) -> None:
        """Remove what a stage made with another configuration.

        Args:
            stage: its name.
            keeps: leave the shards whose names tell what they are made of, since a later run may take them.
        """
        with self.asked("written to"):
            self._remove_shards(stage, lambda shard: keeps and "-of-" not in shard)
            self.remove_files([f"{stage}/{STAGE_FILE}"])  # last, so that the difference is still known after a kill

    def remove_unused(self, folder: StageFolder) -> None:
        """Remove shards of earlier runs that are not needed any more, if the stage is finished."""
        if not folder.absent():
            manifests = [folder.manifest(rank) or {} for rank in range(folder.num_shards)]
            used = {self._place(folder, rank, one.get("inputs", "")) for rank, one in enumerate(manifests)}
            with self.asked("written to"):
                self._remove_shards(folder.name, lambda shard: f"{folder.name}/{shard}" in used)

    def _remove_shards(self, stage: str, stays: Callable[[str], bool]) -> None:
        going = []
        for name in self.files(stage):
            shard = name.removeprefix(f"{stage}/").partition("/")[0]
            if _SHARD.fullmatch(shard) and not stays(shard):
                going.append(name)
        self.remove_files(going)

    def _place(self, folder: StageFolder, rank: int, inputs: str) -> str:
        """Where a shard is in the store: by its number, or, if it serves later runs, by what it is made of."""
        return f"{folder.name}/" + (f"shard-{inputs}" if inputs else f"{folder.shard(rank).name}-{folder.config_hash}")


def _is_inside(name: str) -> bool:
    """Whether a file that a manifest names lies in the folder of its shard."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
