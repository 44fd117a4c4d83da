"""The files of a source, on this machine or in a store: their names, sizes and times, looked at once."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...data.decoding.file_content import is_url
from ...data.reading.folders import files_below
from ...data.reading.remote_files import matching_files
from ...output_folders import LITTER
from .file_fingerprints import state_of


@dataclass(frozen=True)
class SourceFiles:
    """
    Attributes:
        root: the folder or address that they are in; names are relative to it.
        names: sorted.
        states: (n, 2) int64, as `state_of`; for a store as in `remote_files`.
        is_folder: whether they are all files of a folder, which is read by the rule of `folders`.
        loops: links to a folder that they lie in.
        dated: folders whose times change when a file comes or goes; None: the time of no folder tells that.
    """

    root: str
    names: list[str]
    states: np.ndarray
    is_folder: bool
    loops: list[str] = field(default_factory=list)
    dated: list[str] | None = None

    def paths(self, names: Sequence[str] | None = None) -> list[str]:
        """Full paths or addresses of some of them, or of all."""
        start = os.path.join(self.root, "")
        return [start + name for name in (self.names if names is None else names)]

    def states_of(self, names: Sequence[str]) -> np.ndarray:
        """(m, 2) states of some of them."""
        if len(names) == len(self.names):
            return self.states
        place_of = {name: place for place, name in enumerate(self.names)}
        return self.states[[place_of[name] for name in names]]

    def counted(self) -> list[int]:
        """The places of the files whose changes count; what file browsers leave does not count."""
        return [place for place, name in enumerate(self.names) if not name.endswith(LITTER)]


def files_of(path: str) -> SourceFiles | None:
    """What a path or address means: a folder, a file, or a pattern with `*`. None: nothing on this machine.

    Raises:
        ValueError: a pattern matches nothing; or what `remote_files` raises.
    """
    if is_url(path):
        return _remote(path)
    if os.path.isdir(path):
        root = os.path.abspath(path)  # otherwise files would be named from here, and those of rows from there
        names, folders, loops = files_below(root)
        dated = [os.path.join(root, folder) for folder in folders]
        return SourceFiles(root, names, _local_states(root, names), True, loops, dated)
    if os.path.exists(path):
        found, dated = [os.path.abspath(path)], []
    elif "*" in path:
        found = sorted(os.path.abspath(file) for file in glob.glob(path, recursive=True) if not os.path.isdir(file))
        dated = None if "**" in path else sorted({os.path.dirname(file) for file in found})
        if not found:
            raise ValueError(f"the data set {path!r} matches no file.")
    else:
        return None
    root = os.path.dirname(found[0]) if len(found) == 1 else os.path.commonpath([os.path.dirname(f) for f in found])
    names = [os.path.relpath(file, root) for file in found]
    return SourceFiles(root, names, _local_states(root, names), False, dated=dated)


def _local_states(root: str, names: Sequence[str]) -> np.ndarray:
    start = os.path.join(root, "")
    return np.fromiter((state_of(start + name) for name in names), np.dtype((np.int64, 2)), len(names))


def _remote(url: str) -> SourceFiles:
    folder, files = matching_files(url)
    folders = [file.url.rpartition("/")[0] for file in files]
    root = os.path.commonprefix([f"{each}/" for each in folders]).rpartition("/")[0] if folder is None else folder
    names = [file.url[len(root) + 1 :] for file in files]
    states = np.array([file.state for file in files], np.int64).reshape(-1, 2)
    return SourceFiles(root, names, states, folder is not None, dated=[])


def counted_suffixes(names: Sequence[str]) -> Counter:
    return Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in names)
