"""What a stage has finished: one folder for each shard, which appears whole, with a manifest of its files.

```
stages/<stage>/stage.json                        the configuration that all shards of the stage share
stages/<stage>/shard-00003-of-00016/<files>
stages/<stage>/shard-00003-of-00016/manifest.json   rows, and the size and checksum of every file
```

A shard is written to a hidden folder beside its place and then renamed. So a killed process, or a full disk, leaves
either a finished shard or none. Other files that somebody keeps in these folders are left alone.

Some stages work on each source as if it were alone, or on earlier sources as if there were no later ones. When sources
come or go, the shards of these stages are set aside under names that tell what they were made of (`kept-<hash>`).
Shards of the new run that are made of the same inputs take them.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...atomic_files import WRITE_ERRORS, is_disk_full, put_in_place
from ...output_folders import LITTER, refuse_links, write_text
from ..algorithms.unit_vectors import shard_range


MANIFEST, STAGE_FILE = "manifest.json", "stage.json"
KEPT = "kept-"
# Shards, what a killed process leaves of a shard or of `stage.json`, and what file browsers leave.
OWN_NAME = re.compile(
    rf"\.?shard-\d+-of-\d+(\.\w+)?|{KEPT}[0-9a-f]+|{re.escape(STAGE_FILE)}|\.{re.escape(STAGE_FILE)}\.\w+|"
    + "|".join(map(re.escape, LITTER))
)


@dataclass(frozen=True)
class StageFolder:
    """The folder of one stage.

    Args:
        path: `<output_dir>/stages/<stage>`.
        num_shards: the number of shards of the stage, at least 1.
        config: what decides the content of the shards (plain values), for comparison with a later run.
        title: for a stage that drops images, what the images that it leaves are.
        thins: the pool that is left after it is in its `kept.npy`.
        kept_by: for a stage whose shards serve a later run although sources have come or gone: what decides their
            content, beside what each is made of. None for other stages.
        by_source: its shards are pieces of sources, and count rows within their source.
    """

    path: Path
    num_shards: int
    config: Mapping[str, Any]
    title: str | None = None
    thins: bool = False
    kept_by: Mapping[str, Any] | None = None
    by_source: bool = False

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_hash(self) -> str:
        return hash_of({"num_shards": self.num_shards, **self.config})

    def shard(self, rank: int) -> Path:
        return self.path / f"shard-{rank:05d}-of-{self.num_shards:05d}"

    def shards(self) -> list[Path]:
        """The folders of all shards, in their order."""
        return [self.shard(rank) for rank in range(self.num_shards)]

    def open(self) -> None:
        """Make the folder, or check that it was made by the same configuration.

        Raises:
            ValueError: it was made by another configuration; the message names the fields, and how to go on. Or
                somebody else made it.
        """
        refuse_links(self.path.parent, [self.name])
        if not (self.path / STAGE_FILE).exists() and foreign_files(self.path, also_shards=True):
            raise ValueError(
                f"{self.path} was not written by dinov2_hf (it has no {STAGE_FILE}), so nothing is written into it;"
                " choose another output_dir, or move it away."
            )
        self.refuse_changes(self.record(), str(self.path.parents[1]), "output_dir")
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / STAGE_FILE).exists():
            record = {"config_hash": self.config_hash, "num_shards": self.num_shards, "config": dict(self.config)}
            if self.kept_by is not None:
                record["kept_by"] = hash_of(self.kept_by)
            write_text(self.path / STAGE_FILE, json.dumps(record, indent=1, default=str))

    def record(self) -> bytes | None:
        """What its `stage.json` says; None if there is no such file."""
        return _content(self.path / STAGE_FILE)

    def refuse_changes(self, record: bytes | None, where: str, option: str) -> None:
        """
        Args:
            record: of an earlier run.
            where, option: the place of the record, and the option that chose this place.

        Raises:
            ValueError: the stage was made by another configuration; the message names the fields, and how to go on.
        """
        changes = self.changes(record)
        if changes:
            kept = "" if self.kept_by is None else ", which keeps what was made of the sources that are as they were"
            raise ValueError(
                f"stage {self.name!r} in {where} was made with {'; '.join(changes)}; choose another {option}, take the"
                f" earlier values, or make it and what follows from it again with --overwrite{kept}."
            )

    def changes(self, record: bytes | None) -> list[str]:
        """How the configuration in a record differs, a clause for each field; empty if it is equal or there is no
        record."""
        found = self.differences(record)
        if found is None:
            return [f"what its damaged {STAGE_FILE} does not tell"]
        if "sources" in found:  # the number of shards follows from them
            found.pop("num_shards", None)
        return [change_of(name, then, now) for name, (then, now) in found.items()]

    def differences(self, record: bytes | None) -> dict[str, tuple[Any, Any]] | None:
        """The fields in which the configuration in a record differs, with their values then and now; None if the
        record cannot be read."""
        if record is None:
            return {}
        try:
            read = json.loads(record)
            then = {"num_shards": read["num_shards"], **read["config"]}
            found_hash = read["config_hash"]
        except (ValueError, KeyError, TypeError):
            return None
        if found_hash == self.config_hash:
            return {}
        now = json.loads(json.dumps({"num_shards": self.num_shards, **self.config}, default=str))
        return {
            name: (then.get(name), now.get(name))
            for name in sorted({*then, *now})
            if then.get(name) != now.get(name)
        }  # fmt: skip

    def keeps(self, record: bytes | None) -> bool:
        """Whether shards that were made by the configuration in a record may serve this one."""
        try:
            made_by = json.loads(record or b"{}").get("kept_by")
        except (ValueError, AttributeError):
            made_by = None
        return self.kept_by is not None and made_by == hash_of(self.kept_by)

    def remove(self) -> None:
        """Remove what the stage wrote with another configuration. Shards that the new run may need unchanged are set
        aside for `UnfinishedShard.take_kept`."""
        if not self.keeps(self.record()):
            remove_stage(self.path)
            return
        for path in self.path.glob("shard-*"):
            inputs = (read_manifest(_content(path / MANIFEST)) or {}).get("inputs")
            if inputs:
                place = self.path / f"{KEPT}{inputs}"
                shutil.rmtree(place, ignore_errors=True)
                path.rename(place)
        (self.path / STAGE_FILE).unlink()

    def remove_kept(self) -> None:
        """Remove what was set aside, if the stage is finished and does not need it any more."""
        kept = list(self.path.glob(f"{KEPT}*"))
        if kept and not self.absent():
            for path in kept:
                if OWN_NAME.fullmatch(path.name):
                    shutil.rmtree(path)

    def missing(self, verify: bool = False) -> list[int]:
        """The shards that are not finished: they have no manifest, another configuration, or a file is gone or cut.

        Args:
            verify: read every file and compare its checksum too.
        """
        return [rank for rank in range(self.num_shards) if not self.is_finished(rank, verify)]

    def absent(self) -> list[int]:
        """The shards that have no folder. This takes one look at the stage, while `missing` reads every manifest."""
        present = {path.name for path in self.path.glob("shard-*")}
        return [rank for rank in range(self.num_shards) if self.shard(rank).name not in present]

    def checksums(self, name: str) -> list[str | None]:
        """The checksum of the file of this name in every shard; None if a shard does not have it."""
        manifests = [json.loads(path.read_text()) for path in self.files(MANIFEST)]
        return [manifest["files"].get(name, {}).get("checksum") for manifest in manifests]

    def rows(self) -> int:
        """Rows of all finished shards."""
        return sum(json.loads(path.read_text())["rows"] for path in self.files(MANIFEST) if path.exists())

    def seconds(self) -> float | None:
        """The time that its shards took together; None for a stage of an earlier version, which did not note it."""
        found = [json.loads(path.read_text()).get("seconds") for path in self.files(MANIFEST)]
        return None if None in found else sum(found)

    def files(self, name: str) -> list[Path]:
        """The file of this name of every shard, in the order of the shards."""
        return [shard / name for shard in self.shards()]

    @contextmanager
    def writing(self, rank: int) -> Iterator["UnfinishedShard"]:
        """A hidden folder to write a shard to. When the block ends well, it takes the shard's place with a manifest.

        Raises:
            ValueError: the disk is full. What was finished before is kept.
        """
        place, folder, began = self.shard(rank), None, time.monotonic()
        try:
            folder = Path(tempfile.mkdtemp(dir=self.path, prefix=f".{place.name}."))
            unfinished = UnfinishedShard(folder, rank, self.num_shards)
            yield unfinished
            names = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
            files = {
                name: unfinished.known_files.get(name) or {"bytes": path.stat().st_size, "checksum": checksum(path)}
                for name, path in names.items()
            }
            manifest = {
                "stage": self.name, "rank": rank, "num_shards": self.num_shards, "rows": unfinished.rows,
                "config_hash": self.config_hash, "inputs": unfinished.inputs, "files": files,
                "seconds": round(time.monotonic() - began, 3) if unfinished.seconds is None else unfinished.seconds,
            }  # fmt: skip
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
            folder.chmod(0o755)
            put_in_place(folder, place)  # it may replace a shard that `missing` found to be broken
        except WRITE_ERRORS as error:
            if not is_disk_full(self.path, error):
                raise
            raise ValueError(
                f"the disk of {self.path} is full; stage {self.name!r} has"
                f" {self.num_shards - len(self.missing())} of {self.num_shards} shards, which are kept: make room and"
                " run the same command again."
            ) from error
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def manifest(self, rank: int) -> dict[str, Any] | None:
        """The manifest of a shard; None if it does not have one that can be read."""
        return read_manifest(_content(self.shard(rank) / MANIFEST))

    def is_finished(self, rank: int, verify: bool = False) -> bool:
        """Whether a shard of this configuration is there, with files of the right sizes (and checksums)."""
        manifest = self.manifest(rank)
        if manifest is None or manifest["config_hash"] != self.config_hash:
            return False
        return is_whole(self.shard(rank), manifest["files"], verify)


def hash_of(values: Any) -> str:
    """The hash of plain values."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _content(path: Path) -> bytes | None:
    """The content of a file; None if there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_manifest(content: bytes | None) -> dict[str, Any] | None:
    """What a manifest says; None if it is missing or cannot be read."""
    try:
        manifest = json.loads(content or b"")
        _ = manifest["config_hash"], manifest["rows"], manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest


def is_whole(shard: Path, files: Mapping[str, Mapping[str, Any]], verify: bool = False) -> bool:
    """Whether the files that a manifest names are there, with the right sizes (and checksums)."""
    for name, record in files.items():
        path = shard / name
        if not path.exists() or path.stat().st_size != record["bytes"]:
            return False
        if verify and checksum(path) != record["checksum"]:
            return False
    return True


def change_of(name: str, then: Any, now: Any) -> str:
    """A clause for a value that differs; for sources, it names only what differs in them."""
    names = [[source["name"] for source in sources or ()] for sources in (then, now)] if name == "sources" else None
    if names and names[0] != names[1]:
        return f"the sources {', '.join(names[0])}, which are now {', '.join(names[1])}"
    if names:
        found = [
            f"{key} = {before[key]!r} of the source {before['name']!r}, which is now {after[key]!r}"
            if key != "fingerprint"
            else f"other files of the source {before['name']!r} (their names, sizes or times have changed)"
            for before, after in zip(then, now, strict=True)
            for key in before
            if before[key] != after.get(key)
        ]
        return "; ".join(found)
    return f"{name} = {then!r}, which is now {now!r}"


def foreign_files(stage_path: Path, *, also_shards: bool = False) -> list[str]:
    """Names in the folder of a stage that no stage wrote.

    Args:
        also_shards: count shards too, for a folder that has no `stage.json`.
    """
    names = sorted(path.name for path in stage_path.iterdir()) if stage_path.is_dir() else []
    return [name for name in names if not OWN_NAME.fullmatch(name) or (also_shards and name.startswith("shard-"))]


def remove_stage(stage_path: Path) -> None:
    """Remove what a stage wrote. `stage.json` goes last, so that after a kill the rest is still known as a stage's."""
    for path in stage_path.iterdir():
        if path.name == STAGE_FILE or not OWN_NAME.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (stage_path / STAGE_FILE).unlink(missing_ok=True)
    with suppress(OSError):  # somebody keeps something in it
        stage_path.rmdir()


@dataclass
class UnfinishedShard:
    """Where to write a shard, and which one it is.

    Attributes:
        rows: for its manifest.
        is_kept: in a collective stage, only the shard of the main process is kept.
        inputs: for a shard that can serve later runs, a hash of everything that it is made of.
        known_files: records of files that an earlier run wrote.
        seconds: the time that they took then; None: the time since the shard was begun.
    """

    folder: Path
    rank: int = 0
    num_shards: int = 1
    rows: int = 0
    is_kept: bool = True
    inputs: str = ""
    known_files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float | None = None

    def take_kept(self) -> bool:
        """Take what an earlier run made of the same inputs, if it was set aside. Returns whether it was."""
        kept = self.folder.parent / f"{KEPT}{self.inputs}"
        manifest = read_manifest(_content(kept / MANIFEST))
        if manifest is None or not is_whole(kept, manifest["files"]):
            return False
        for name in manifest["files"]:
            link_or_copy(kept / name, self.folder / name)  # what was set aside goes when the whole stage is finished
        self.rows, self.known_files = manifest["rows"], manifest["files"]
        return True

    @property
    def label(self) -> str:
        """Its number, for a progress bar."""
        return f"{self.rank + 1}/{self.num_shards}"

    def rows_of(self, num_rows: int) -> range:
        """The part of `num_rows` rows that belongs to this shard."""
        return shard_range(num_rows, self.rank, self.num_shards)


def link_or_copy(path: Path, place: Path) -> None:
    """Put a file that will not change in a second place, without a second copy of its content if possible."""
    try:
        os.link(path, place)
    except OSError:  # a file system without hard links
        shutil.copy2(path, place)


def checksum(path: Path) -> str:
    """BLAKE2b of a file, 128 bits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
