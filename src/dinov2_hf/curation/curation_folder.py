"""The output folder of a curation: its owner, its present writer, and refusals before any work."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..atomic_files import check_new_folder
from ..data.decoding.file_content import is_url
from ..output_folders import (
    KINDS,
    MARKER,
    part_writer,
    read_marker,
    refuse_links,
    refuse_overlap,
    refuse_urls,
    sole_writer,
    write_marker,
)
from ..public_names import without_secrets
from .arguments import CurationArguments
from .embedders import EMBEDDERS
from .publishing import REPORT_FILES, TIMINGS
from .storage.remote_dataset import RemoteDataset
from .storage.remote_folder import RemoteFolder
from .storage.remote_stages import RemoteStages
from .storage.source_listing import LISTING


RECIPE_FILE = "curation.yaml"
OWN_NAMES = ("stages", LISTING, "dataset", "logs", RECIPE_FILE, TIMINGS, *REPORT_FILES)


@contextmanager
def writing_to_output(arguments: CurationArguments, *, part: str | None = None) -> Iterator[None]:
    """Hold the output folder while the block runs.

    Args:
        arguments: give the folder and the sources.
        part: name of the work of one of several launches that share the folder; None: the folder belongs to this
            process alone.

    Raises:
        ValueError: the folder is a source or overlaps one, was not made by a curation or contains other files in its
            place, or another process is writing to it.
    """
    folder = Path(arguments.output_dir)
    _check_output(folder, arguments)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with part_writer(folder, part) if part else sole_writer(folder):
            yield
    finally:
        for place in made:
            with suppress(OSError):  # not empty; it is empty only after a refused run
                place.rmdir()


def mark_output(arguments: CurationArguments) -> None:
    """Mark the folder, and those in stores, as written by a curation, before anything is written."""
    folder = Path(arguments.output_dir)
    if read_marker(folder) is None:
        write_marker(folder, "curation")
    for place in _remote_folders(arguments):
        place.mark()


def _check_output(folder: Path, arguments: CurationArguments) -> None:
    refuse_urls(arguments.output_dir)
    refuse_overlap(folder, _read_paths(arguments))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output {folder} is a file, but a curation is written to a folder; choose another name.")
    marker = read_marker(folder)
    if marker is not None and marker["kind"] != "curation":
        raise ValueError(
            f"{folder} holds {KINDS[marker['kind']]}, and a curation is not written into that; choose another"
            " --output_dir."
        )
    refuse_links(folder, OWN_NAMES)
    found = [name for name in OWN_NAMES if os.path.lexists(folder / name)]
    if found and marker is None:
        raise ValueError(
            f"{folder / found[0]} was not written by dinov2_hf ({folder} has no {MARKER}), and a curation would"
            " replace it; choose another --output_dir, or move it away."
        )
    check_new_folder(folder / "dataset", "dataset", overwrite=True)
    read = {source.path: f"the source {without_secrets(source.path)}" for _, source in arguments.sources}
    for place in _remote_folders(arguments):
        _refuse_overlap(place, read)
        place.refuse_foreign()
        read[place.url] = place.option


def _remote_folders(arguments: CurationArguments) -> list[RemoteDataset | RemoteStages]:
    """Those that a curation writes to, in stores."""
    found: list[RemoteDataset | RemoteStages] = []
    if arguments.dataset_url is not None:
        found.append(RemoteDataset(arguments))
    if arguments.stages_url is not None:
        found.append(RemoteStages(arguments.stages_url))
    return found


def _refuse_overlap(place: RemoteFolder, others: Mapping[str, str]) -> None:
    """
    Args:
        others: what paths and addresses are, by these.

    Raises:
        ValueError: the folder is in or around one.
    """
    for path, what in others.items():
        for one, other in ((path, place.url), (place.url, path)):
            if is_url(path) and f"{one.rstrip('/')}/".startswith(f"{other.rstrip('/')}/"):
                raise ValueError(
                    f"{place.option} is {place.name}, which is in or around {what}: choose an address elsewhere."
                )


def _read_paths(arguments: CurationArguments) -> list[str]:
    """The inputs of the curation: sources, models, vectors. They include names on the Hub."""
    models = (arguments.embedder, arguments.retrieval_embedder, arguments.nsfw_model, arguments.face_model)
    named = [model for model in models if model not in (None, *EMBEDDERS.names())]
    return [os.path.expanduser(path) for path in [*(source.path for _, source in arguments.sources), *named]]
