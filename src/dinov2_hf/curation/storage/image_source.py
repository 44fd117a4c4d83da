"""One source of images, as a recipe describes it."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...data.reading.image_dataset import ALL_SPLITS
from ...options import options_of, read_mapping, refuse_missing
from ...public_names import without_secrets
from ...value_ranges import AT_LEAST_ONE, ranged


RETRIEVAL_MODES = ("sample", "cluster")


@dataclass(frozen=True)
class ImageSource:
    """One source, as a recipe describes it: a path or Hub name alone, or a mapping of these fields.

    Args:
        path: see `source_loading`; a path, an address (s3://, gs://, hf://, https://) or a name on the Hub.
        name: in ids, tables and the report; by default the last part of the path.
        split: as in `data.load_image_dataset`; by default all splits, one after the other. If benchmarks are read only
            in part, copies of the other test images stay in the dataset.
        config_name, image_column: as in `data.load_image_dataset`.
        revision: for a dataset on the Hub, a branch, tag or commit; by default its main branch.
        root: for a list of images, the folder or address that all of them lie below; by default that of the list.
        id_column: the column of the images' ids, unique; by default, and where it is empty, the number of the row.
        retrieval: for a curated source, "sample" (the paper's for more than a million images) or "cluster".
        retrieval_num_neighbors: for a curated source, images to retrieve for each of its images ("sample").
        include: for a curated source, whether its own images go into the dataset as they are.
    """

    path: str
    name: str = ""
    split: str | None = ALL_SPLITS
    config_name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    root: str | None = None
    id_column: str | None = None
    retrieval: Literal[RETRIEVAL_MODES] | None = None
    retrieval_num_neighbors: int | None = ranged(None, AT_LEAST_ONE)
    include: bool | None = None


def read_source(value: str | Mapping[str, Any] | ImageSource) -> ImageSource:
    """A source from what a user wrote.

    Raises:
        ValueError: there is no such field, the path is missing, or a field has a value that it may not have.
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


def _name_of(path: str) -> str:
    path = without_secrets(path).rstrip("/")  # a query may hold a signature
    if "*" in path:
        path = os.path.dirname(path) or path
    return re.sub(r"[^\w.-]+", "_", os.path.splitext(os.path.basename(path))[0]) or "source"
