"""The images to curate, to retrieve for, and to keep away from: named sources in one numbering of rows.

A source is anything that `data.load_image_dataset` loads, and the output of img2dataset. Images stay where they are:
stages refer to them by row, and only the finished dataset holds copies.
"""

import bisect
import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import datasets

from ...data import find_image_column, load_image_dataset
from ...data.reading.image_dataset import ALL_SPLITS
from ...data.reading.metadata_files import METADATA_NAMES
from ...data.reading.row_paths import refuse_unreadable_files, undecoded, with_content
from ...options import options_of, read_mapping, refuse_missing
from ...public_names import without_secrets
from ...value_ranges import AT_LEAST_ONE, ranged
from .file_fingerprints import ABSENT, FileStates, files_of_rows, paths_below, paths_in, state_of
from .source_listing import SourceListing, StoredListings, remove_partial, times_of, write_listing


RETRIEVAL_MODES = ("sample", "cluster")


@dataclass(frozen=True)
class ImageSource:
    """One source, as a recipe describes it: a path or Hub name alone, or a mapping of these fields.

    Args:
        path: as in `data.load_image_dataset`, or a folder that img2dataset wrote.
        name: in ids, tables and the report; by default the last part of the path.
        split: as in `data.load_image_dataset`; by default all splits, one after the other. Copies of test images stay
            in a dataset whose benchmarks were read in part.
        config_name, image_column: as there.
        id_column: the column of the images' ids, unique; by default, and where it is empty, the number of the row.
        retrieval: of a curated source, "sample" (the paper's for more than a million images) or "cluster".
        retrieval_num_neighbors: of a curated source, images to retrieve for each of its images ("sample").
        include: of a curated source, whether its own images go into the dataset as they are.
    """

    path: str
    name: str = ""
    split: str | None = ALL_SPLITS
    config_name: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    retrieval: Literal[RETRIEVAL_MODES] | None = None
    retrieval_num_neighbors: int | None = ranged(None, AT_LEAST_ONE)
    include: bool | None = None


def read_source(value: str | Mapping[str, Any] | ImageSource) -> ImageSource:
    """A source from what a user wrote.

    Raises:
        ValueError: for a field that there is not, no path, or a value that a field may not have.
    """
    if not isinstance(value, ImageSource):
        given = dict(value) if isinstance(value, Mapping) else {"path": value}
        options = options_of(ImageSource)
        if isinstance(given.get("path"), os.PathLike):
            given["path"] = os.fspath(given["path"])
        try:
            refuse_missing(options, given)
            value = ImageSource(**read_mapping(options, given, "it"))
        except ValueError as error:
            raise ValueError(
                f"the source {without_secrets(str(given.get('path', given)))} is refused: {error}"
            ) from None
    if "/" in value.name:
        raise ValueError(f"a source has name={value.name!r}, which must not hold a slash: ids are <name>/<row>.")
    return replace(value, name=value.name or _name_of(value.path), split=value.split or ALL_SPLITS)


def named_apart(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """Sources of the same name get numbers; names that a user gave twice are told apart in the same way."""
    taken: set[str] = set()
    result = []
    for source in sources:
        name, number = source.name, 1
        while name in taken:
            number += 1
            name = f"{source.name}-{number}"
        taken.add(name)
        result.append(replace(source, name=name))
    return result


class OpenSources:
    """Sources opened, their rows numbered through: the number of an image is its `row_id` in all stages.

    Args:
        sources: (role, source) in the order of the numbering.
        stored: where folders may have been listed before; other sources, and what is not there, is looked through.

    Raises:
        ValueError: a source cannot be loaded, holds no images, or lacks a column; or it has other fingerprints than
            those stored.
    """

    def __init__(self, sources: Sequence[tuple[str, ImageSource]], stored: StoredListings | None = None):
        self.stored = stored
        self.roles = [role for role, _ in sources]
        self.sources = [source for _, source in sources]
        self.listings: list[SourceListing | None] = [
            stored and stored.read(number, _what_is_listed(source)) for number, source in enumerate(self.sources)
        ]
        self.datasets = [
            _checked(source, listing.dataset) if listing else _load(source)
            for source, listing in zip(self.sources, self.listings, strict=True)
        ]
        self.starts = [0]
        for dataset in self.datasets:
            self.starts.append(self.starts[-1] + len(dataset))
        self.image_columns = [
            find_image_column(dataset, source.image_column)
            for dataset, source in zip(self.datasets, self.sources, strict=True)
        ]
        self._refuse_other_folders()
        self._chosen: dict[tuple[int, tuple[str, ...]], datasets.Dataset] = {}
        # Only the columns that are asked for are read: captions and metadata of a row can be larger than its image.
        self._images = [
            dataset.select_columns([column]).with_format(None)
            for dataset, column in zip(self.datasets, self.image_columns, strict=True)
        ]

    def _refuse_other_folders(self) -> None:
        """That folders whose listing was lost are those that were listed."""
        expected = self.stored and self.stored.fingerprints
        for number, listing in enumerate(self.listings) if expected else ():
            is_listed = listing is None and _is_folder_of_files(self.sources[number], self.datasets[number])
            if is_listed and self.fingerprints[number] != expected[number]:
                raise ValueError(
                    f"the source {self.sources[number].path!r} has changed since it was listed (names, sizes or times"
                    " of its files), and its listing is gone: run the curation again, which says how to go on."
                )

    def __len__(self) -> int:
        return self.starts[-1]

    def locate(self, row_id: int) -> tuple[int, int]:
        """The number of the source, and the row in it."""
        source = bisect.bisect_right(self.starts, row_id) - 1
        return source, row_id - self.starts[source]

    def image(self, row_id: int) -> dict[str, Any]:
        """The undecoded image, `{"bytes", "path"}`, of which one can be None."""
        source, row = self.locate(row_id)
        return self._images[source][row][self.image_columns[source]]

    def image_id(self, row_id: int) -> str:
        """`<source>/<row>`, or `<source>/<value of id_column>`; `<source>/row <row>` where that column is empty.

        Images without an id are not one image: each gets an id of its own.
        """
        source, row = self.locate(row_id)
        column = self.sources[source].id_column
        value = row if column is None else self._columns(source, (column,))[row][column]
        is_missing = value is None or value == "" or value != value  # null, empty, not a number
        return f"{self.sources[source].name}/" + (f"row {row}" if is_missing else str(value))

    def values(self, row_id: int, columns: Sequence[str]) -> dict[str, Any]:
        """The values of other columns; None where the source has no such column."""
        source, row = self.locate(row_id)
        present = tuple(column for column in columns if column in self.datasets[source].column_names)
        found = self._columns(source, present)[row] if present else {}
        types = self.datasets[source].features
        return {column: with_content(found[column], types[column]) if column in found else None for column in columns}

    def _columns(self, source: int, columns: tuple[str, ...]) -> datasets.Dataset:
        """Some columns of a source, kept open: choosing them takes longer than reading a row."""
        if (source, columns) not in self._chosen:
            chosen = self.datasets[source].select_columns(list(columns)).with_format(None)
            self._chosen[source, columns] = undecoded(chosen)
        return self._chosen[source, columns]

    def column_features(self, columns: Sequence[str]) -> datasets.Features:
        """The types of other columns.

        Raises:
            ValueError: no source has the column, two sources have it with different types, or it names files that
                may not be read.
        """
        features = {}
        for column in columns:
            for dataset in self.datasets:
                if column in dataset.column_names:
                    refuse_unreadable_files(dataset, column)
            types = {
                source.name: dataset.features[column]
                for source, dataset in zip(self.sources, self.datasets, strict=True)
                if column in dataset.column_names
            }
            if not types:
                raise ValueError(f"keep_columns has {column!r}, which is a column of no source.")
            (first, feature), *others = types.items()
            for name, other in others:
                if other != feature:
                    raise ValueError(
                        f"keep_columns has {column!r}, which is {feature} in {first!r} but {other} in {name!r}."
                    )
            features[column] = feature
        return datasets.Features(features)

    def range_of(self, source: int) -> range:
        """The row ids of a source."""
        return range(self.starts[source], self.starts[source + 1])

    def rows_of(self, role: str) -> int:
        """How many rows the sources of a role have."""
        return sum(len(dataset) for dataset, other in zip(self.datasets, self.roles, strict=True) if other == role)

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the sources' files. Of a folder of images this looks at every file, unless its listing was stored."""
        for number, listing in enumerate(self.listings):
            if listing is None and _is_folder_of_files(self.sources[number], self.datasets[number]):
                self.listings[number] = _listed(
                    self.sources[number], self.datasets[number], self.image_columns[number]
                )
        return tuple(
            listing.fingerprint if listing else _fingerprint(source, dataset, column)
            for listing, source, dataset, column in zip(
                self.listings, self.sources, self.datasets, self.image_columns, strict=True
            )
        )

    def describe(self) -> list[dict[str, Any]]:
        """What each source is, for comparison with a later run: the part of a configuration that sources are."""
        return [
            {
                "name": source.name, "role": role, "rows": len(dataset), "split": source.split,
                "config_name": source.config_name, "image_column": source.image_column, "id_column": source.id_column,
                "fingerprint": fingerprint,
            }
            for source, role, dataset, fingerprint in zip(
                self.sources, self.roles, self.datasets, self.fingerprints, strict=True
            )
        ]  # fmt: skip

    def store(self, folder: Path, *, is_sole_writer: bool) -> None:
        """Store the listings of folders, so that no other process of this curation looks through them."""
        self.stored = StoredListings(folder, self.fingerprints)
        if is_sole_writer:
            remove_partial(folder)
        for number, (source, listing) in enumerate(zip(self.sources, self.listings, strict=True)):
            if listing is not None:
                write_listing(folder, number, listing, _what_is_listed(source))

    def refuse_changed(self, row_ids: Iterable[int]) -> None:
        """
        That the files of some rows are those that were listed. One that is gone is met when it is read.

        Raises:
            ValueError: the size or the time of one is another.
        """
        rows_of_source: dict[int, list[int]] = {}
        for source, row in map(self.locate, row_ids):
            rows_of_source.setdefault(source, []).append(row)
        for source, rows in rows_of_source.items():
            listing = self.listings[source]
            if listing is None:
                continue
            paths = self.datasets[source].data.column(self.image_columns[source]).take(rows)
            for file, state in zip(paths_in(paths.chunks), listing.states[rows].tolist(), strict=True):
                now = state_of(file)
                if now not in (tuple(state), ABSENT):
                    raise ValueError(
                        f"the file {file} of the source {self.sources[source].name!r} has changed since the source was"
                        " listed (its size or time): run the curation again without --rank, which looks at all files"
                        " and says how to go on."
                    )

    def __reduce__(self):  # a memory-mapped table has no other way to another process
        return reopened, (tuple(zip(self.roles, self.sources, strict=True)), self.stored)


@lru_cache(maxsize=1)
def _kept_open(sources: tuple[tuple[str, ImageSource], ...], stored: StoredListings) -> OpenSources:
    return OpenSources(sources, stored)


def reopened(sources: tuple[tuple[str, ImageSource], ...], stored: StoredListings | None) -> OpenSources:
    """Sources that another process opened. If it is known which they are, a process opens them once for all shards."""
    is_known = stored is not None and stored.fingerprints is not None
    return _kept_open(sources, stored) if is_known else OpenSources(sources, stored)


def _load(source: ImageSource) -> datasets.Dataset:
    path = os.path.expanduser(source.path)
    # img2dataset writes a parquet file of metadata beside each tar; the images are in the tars.
    if _is_img2dataset_tars(path):
        path = os.path.join(glob.escape(path), "*.tar")
    elif _is_img2dataset_files(path):
        files = sorted(str(file) for file in Path(path).rglob("*") if file.suffix in (".jpg", ".png", ".webp"))
        dataset = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image(decode=False))
        return _checked(source, dataset)
    try:
        dataset = load_image_dataset(
            path if os.path.exists(path) or "*" in path else source.path,
            split=source.split,
            config_name=source.config_name,
            image_column=source.image_column,
        )
    except ValueError as error:
        if "corresponds to no data" in str(error):  # what `datasets` says of files without rows
            raise ValueError(f"the source {source.path!r} has no images.") from None
        raise
    return _checked(source, dataset)


def _checked(source: ImageSource, dataset: datasets.Dataset) -> datasets.Dataset:
    if len(dataset) == 0:
        raise ValueError(f"the source {source.path!r} has no images.")
    if source.id_column is not None and source.id_column not in dataset.column_names:
        raise ValueError(
            f"the source {source.path!r} has id_column={source.id_column!r}, but its columns are"
            f" {', '.join(dataset.column_names)}."
        )
    return dataset


def is_img2dataset(folder: str) -> bool:
    """Whether a folder holds tars or files of img2dataset."""
    return _is_img2dataset_tars(folder) or _is_img2dataset_files(folder)


def _is_img2dataset_tars(folder: str) -> bool:
    tars = glob.glob(os.path.join(glob.escape(folder), "*.tar"))
    return bool(tars) and any(os.path.exists(tar[: -len(".tar")] + ".parquet") for tar in tars)


def _is_img2dataset_files(folder: str) -> bool:
    """Folders 00000, 00001, ... of image, .json and .txt files, with 00000.parquet beside them."""
    if not os.path.isdir(folder):
        return False
    shards = [name for name in os.listdir(folder) if re.fullmatch(r"\d{5,}", name)]
    return any(os.path.exists(os.path.join(folder, f"{shard}.parquet")) for shard in shards)


def _name_of(path: str) -> str:
    path = without_secrets(path).rstrip("/")  # a query may hold a signature
    if "*" in path:
        path = os.path.dirname(path) or path
    return re.sub(r"[^\w.-]+", "_", os.path.splitext(os.path.basename(path))[0]) or "source"


def _what_is_listed(source: ImageSource) -> dict[str, Any]:
    path = os.path.abspath(os.path.expanduser(source.path))
    return {"path": path, "split": source.split, "image_column": source.image_column}


def _is_folder_of_files(source: ImageSource, dataset: datasets.Dataset) -> bool:
    """Whether the rows are the files of a folder: not what `datasets` has in files of its own, saved or cached."""
    path = os.path.expanduser(source.path)
    saved = ("state.json", "dataset_dict.json")
    return (
        source.config_name is None
        and os.path.isdir(path)
        and not dataset.cache_files
        and not any(os.path.exists(os.path.join(path, name)) for name in saved)
    )


def _listed(source: ImageSource, dataset: datasets.Dataset, image_column: str) -> SourceListing:
    """The dataset of a folder of files, with the states of all files."""
    files, folders = paths_below(os.path.expanduser(source.path))
    metadata = [file for file in files if os.path.basename(file).lower() in METADATA_NAMES]
    rows = list(files_of_rows(dataset, image_column))
    states = FileStates([*files, *rows])
    times = times_of(map(os.path.abspath, [*folders, *metadata]))
    return SourceListing(dataset, states.of(rows), states.fingerprint(), times)


def _fingerprint(source: ImageSource, dataset: datasets.Dataset, image_column: str) -> str:
    """Changes when files of a local source change, or those that its rows name, or a Hub dataset its version."""
    path = os.path.expanduser(source.path)
    if os.path.isdir(path):
        files, _ = paths_below(path)
    elif os.path.exists(path) or "*" in path:
        files = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
    else:
        return dataset._fingerprint
    return FileStates([*files, *files_of_rows(dataset, image_column)]).fingerprint()
