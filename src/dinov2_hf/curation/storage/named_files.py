"""Lists of images: tables whose rows name files by path or address, and which of them may be opened.

Somebody else may have made a list, but a path in it is opened with the rights of its reader. So paths and addresses of
stores must lie below the folder of the list, or below the `root` that the user names. Any http:// and https:// address
is allowed, since it does not need anybody's rights.
"""

import os

import datasets
import pyarrow as pa
from datasets.table import InMemoryTable

from ...data.decoding.file_content import is_url
from ...public_names import some, without_secrets
from .image_source import ImageSource


PATH_COLUMNS = (
    "image", "img", "file_name", "filename", "file", "file_path", "filepath", "path", "image_path", "url", "image_url",
)  # fmt: skip


def rows_that_name_files(table: pa.Table, source: ImageSource, folder: str) -> tuple[datasets.Dataset, str]:
    """The rows of a list, undecoded, and the column of the images.

    Args:
        table: the list, as it was read.
        source: names the column and the root.
        folder: the folder of the list.

    Raises:
        ValueError: there is no such column, or several could be it; or a row names what may not be opened.
    """
    column = _column_of(table, source)
    root = os.path.expanduser(source.root or folder)
    root = root.rstrip("/") if is_url(root) else os.path.abspath(root)
    paths = [path and _placed(path, root) for path in table[column].to_pylist()]
    outside = [path for path, placed in zip(table[column].to_pylist(), paths, strict=True) if path and placed is None]
    if outside:
        raise ValueError(
            f"the list of images {source.path!r} names {len(outside)} files that do not lie below {root}"
            f" ({some(map(without_secrets, outside[:3]))}): if they may be read, set `root` of the source to a folder"
            " or address that all of them lie below."
        )
    column_of_files = pa.array([path or None for path in paths], pa.string())
    images = pa.StructArray.from_arrays([pa.nulls(len(table), pa.binary()), column_of_files], ["bytes", "path"])
    table = table.set_column(table.column_names.index(column), column, images)
    features = datasets.Features.from_arrow_schema(table.schema)
    features[column] = datasets.Image(decode=False)
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(InMemoryTable(table), info=info, fingerprint="list"), column


def _column_of(table: pa.Table, source: ImageSource) -> str:
    texts = [
        field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    found = (
        [name for name in texts if name.lower() in PATH_COLUMNS]
        if source.image_column is None
        else [source.image_column]
    )
    if len(found) != 1 or found[0] not in texts:
        raise ValueError(
            f"the list of images {source.path!r} has the columns {', '.join(table.column_names)}, of which"
            f" {' and '.join(found) if len(found) > 1 else 'none'} could name the images: set `image_column` of the"
            " source to the one that does."
        )
    return found[0]


def _placed(path: str, root: str) -> str | None:
    """Where the file of a row is; None if it may not be opened."""
    if path.startswith(("http://", "https://")):
        return path
    if is_url(root):
        placed = path if is_url(path) else f"{root}/{path}"
        return (
            placed if placed.startswith(f"{root}/") and ".." not in placed.split("/") and "::" not in placed else None
        )
    if is_url(path):
        return None
    placed = os.path.normpath(os.path.join(root, path))
    return placed if placed.startswith(os.path.join(root, "")) else None
