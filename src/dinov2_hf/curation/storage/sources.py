"""The images to curate, to retrieve for, and to keep away from: named sources whose rows are numbered together.

Images stay where they are. Stages refer to them by row, and only the finished dataset holds copies.
"""

import bisect
import os
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import datasets

from ...data import find_image_column, load_image_dataset
from ...data.decoding.file_content import is_url
from ...data.reading.row_paths import with_content
from .file_fingerprints import ABSENT, FileStates, files_of_rows, paths_below, state_of
from .image_reading import with_attempts
from .image_source import ImageSource
from .source_listing import SourceListing, StoredListings, remove_partial, write_listing
from .source_loading import look_through
from .source_rows import DatasetRows, SourceRows


class OpenSources:
    """Open sources, whose rows are numbered through: the number of an image is its `row_id` in all stages.

    Args:
        sources: (role, source) in the order of the numbering.
        stored: where folders may have been listed before; sources that are not listed there are looked through.

    Raises:
        ValueError: a source cannot be loaded, holds no images, or lacks a column; or its fingerprint is not the one
            that was stored.
    """

    def __init__(self, sources: Sequence[tuple[str, ImageSource]], stored: StoredListings | None = None):
        self.stored = stored
        self.roles = [role for role, _ in sources]
        self.sources = [source for _, source in sources]
        self.listings: list[SourceListing | None] = []
        self.rows: list[SourceRows] = []
        self.image_columns: list[str] = []
        self._known: list[str | None] = []
        for number, source in enumerate(self.sources):
            self._open(number, source)
        self.starts = [0]
        for rows in self.rows:
            self.starts.append(self.starts[-1] + len(rows))

    def _open(self, number: int, source: ImageSource) -> None:
        found = self.stored and self.stored.read(number, _what_is_listed(source))
        listing = found or look_through(source)
        if listing is None:
            dataset = _load(source)
            column = find_image_column(dataset, source.image_column)
            rows, fingerprint = DatasetRows(dataset), None
        else:
            column, rows, fingerprint = listing.content.image_column, listing.rows, listing.fingerprint
        _check(source, rows, is_of_hub=listing is None and not os.path.exists(os.path.expanduser(source.path)))
        expected = self.stored and self.stored.fingerprints
        if listing is not None and expected and fingerprint != expected[number]:
            raise ValueError(
                f"the source {source.path!r} has changed since it was listed (names, sizes or times of its files), and"
                " its listing is gone: run the curation again, which says how to go on."
            )
        self.listings.append(listing)
        self.rows.append(rows)
        self.image_columns.append(column)
        self._known.append(fingerprint)

    def __len__(self) -> int:
        return self.starts[-1]

    def locate(self, row_id: int) -> tuple[int, int]:
        """The number of the source, and the row in it."""
        source = bisect.bisect_right(self.starts, row_id) - 1
        return source, row_id - self.starts[source]

    def image(self, row_id: int) -> dict[str, Any]:
        """The undecoded image, `{"bytes", "path"}`; one of the two can be None.

        Raises:
            UndecodableImage, UnreadableFile: as `read_image_file`, for files that hold images of many rows.
        """
        source, row = self.locate(row_id)
        return self._read(source, row, (self.image_columns[source],))[self.image_columns[source]]

    def _read(self, source: int, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        return with_attempts(lambda: self.rows[source].read(row, columns))

    def image_id(self, row_id: int) -> str:
        """`<source>/<row>`, or `<source>/<value of id_column>`; `<source>/row <row>` if that column is empty.

        Images without an id are different images: each gets an id of its own.
        """
        source, row = self.locate(row_id)
        column = self.sources[source].id_column
        value = row if column is None else self._read(source, row, (column,))[column]
        is_missing = value is None or value == "" or value != value  # null, empty, not a number
        return f"{self.sources[source].name}/" + (f"row {row}" if is_missing else str(value))

    def values(self, row_id: int, columns: Sequence[str]) -> dict[str, Any]:
        """The values of other columns; None if the source has no such column."""
        source, row = self.locate(row_id)
        types = self.rows[source].features
        present = tuple(column for column in columns if column in types)
        found = self._read(source, row, present) if present else {}
        return {column: with_content(found[column], types[column]) if column in found else None for column in columns}

    def column_features(self, columns: Sequence[str]) -> datasets.Features:
        """The types of other columns.

        Raises:
            ValueError: no source has the column, two sources have it with different types, or it names files that
                may not be read.
        """
        features = {}
        for column in columns:
            for rows in self.rows:
                if column in rows.features:
                    rows.refuse_unreadable_files(column)
            types = {
                source.name: rows.features[column]
                for source, rows in zip(self.sources, self.rows, strict=True)
                if column in rows.features
            }
            if not types:
                raise ValueError(f"keep_columns has {column!r}, but no source has such a column.")
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
        return sum(len(rows) for rows, other in zip(self.rows, self.roles, strict=True) if other == role)

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """The fingerprints of the sources' files, as they were listed."""
        return tuple(
            known or _fingerprint(source, rows.dataset, column)
            for known, source, rows, column in zip(
                self._known, self.sources, self.rows, self.image_columns, strict=True
            )
        )

    def describe(self) -> list[dict[str, Any]]:
        """What each source is, for comparison with a later run: the sources' part of a configuration."""
        return [
            {
                "name": source.name, "role": role, "rows": len(rows), "split": source.split,
                "config_name": source.config_name, "revision": source.revision,
                "image_column": source.image_column, "id_column": source.id_column, "fingerprint": fingerprint,
            }
            for source, role, rows, fingerprint in zip(
                self.sources, self.roles, self.rows, self.fingerprints, strict=True
            )
        ]  # fmt: skip

    def store(self, folder: Path, *, is_sole_writer: bool) -> None:
        """Store the listings, so that other processes of this curation need not look through the sources."""
        self.stored = StoredListings(folder, self.fingerprints)
        if is_sole_writer:
            remove_partial(folder)
        for number, (source, listing) in enumerate(zip(self.sources, self.listings, strict=True)):
            if listing is not None:
                write_listing(folder, number, listing, _what_is_listed(source))

    def refuse_changed(self, row_ids: Iterable[int]) -> None:
        """
        Check that the files of some rows are those that were listed. A file that is gone is noticed when it is read.

        Raises:
            ValueError: the size or the time of a file has changed.
        """
        rows_of_source: dict[int, list[int]] = {}
        for source, row in map(self.locate, row_ids):
            rows_of_source.setdefault(source, []).append(row)
        for source, rows in rows_of_source.items():
            listing = self.listings[source]
            if listing is None:
                continue
            for file, state in listing.files_of(rows):
                # A store needs a request for each file, so these are not asked for; images are hashed when read.
                if not is_url(file) and state_of(file) not in (state, ABSENT):
                    raise ValueError(
                        f"the file {file} of the source {self.sources[source].name!r} has changed since the source was"
                        " listed (its size or time): run the curation again without --rank, which looks at all files"
                        " and says how to go on."
                    )

    def __reduce__(self):  # a memory-mapped table cannot go to another process
        return reopened, (tuple(zip(self.roles, self.sources, strict=True)), self.stored)


@lru_cache(maxsize=1)
def _kept_open(sources: tuple[tuple[str, ImageSource], ...], stored: StoredListings) -> OpenSources:
    return OpenSources(sources, stored)


def reopened(sources: tuple[tuple[str, ImageSource], ...], stored: StoredListings | None) -> OpenSources:
    """Sources that another process opened. If their fingerprints are known, they are opened once for all shards."""
    is_known = stored is not None and stored.fingerprints is not None
    return _kept_open(sources, stored) if is_known else OpenSources(sources, stored)


def _load(source: ImageSource) -> datasets.Dataset:
    """A source that `datasets` opens: it is on the Hub, was saved, or has configurations."""
    path = os.path.expanduser(source.path)
    return load_image_dataset(
        path if os.path.exists(path) else source.path,
        split=source.split,
        config_name=source.config_name,
        revision=source.revision,
        image_column=source.image_column,
    )


def _check(source: ImageSource, rows: SourceRows, *, is_of_hub: bool) -> None:
    if source.revision is not None and not is_of_hub:
        raise ValueError(
            f"the source {source.path!r} has revision={source.revision!r}, but is not a dataset on the Hub: leave"
            " revision out."
        )
    if len(rows) == 0:
        raise ValueError(f"the source {source.path!r} has no images.")
    if source.id_column is not None and source.id_column not in rows.features:
        raise ValueError(
            f"the source {source.path!r} has id_column={source.id_column!r}, but its columns are"
            f" {', '.join(rows.features)}."
        )


def _what_is_listed(source: ImageSource) -> dict[str, Any]:
    path = os.path.expanduser(source.path)
    return {
        "path": path if is_url(path) else os.path.abspath(path), "split": source.split,
        "image_column": source.image_column, "root": source.root,
    }  # fmt: skip


def _fingerprint(source: ImageSource, dataset: datasets.Dataset, image_column: str) -> str:
    """Changes when files of a saved dataset change or files that its rows name, or the version of a Hub dataset."""
    path = os.path.expanduser(source.path)
    if not os.path.isdir(path):
        return dataset._fingerprint
    files, _ = paths_below(path)
    return FileStates([*files, *files_of_rows(dataset, image_column)]).fingerprint()
