"""No image is unaccounted for: for every source, rows = in the dataset + dropped + only compared with."""

import json

import numpy as np
from pyarrow import parquet

from ..run_context import Curation
from ..storage.remote_dataset import SENT


def written_row_ids(curation: Curation) -> np.ndarray:
    """(n,) int64 row ids of the images of the dataset, in its order; a multiset has repeats.

    Raises:
        ValueError: a shard of the dataset has another number of rows than its record says.
    """
    parts = [np.empty(0, np.int64)]
    for shard in curation.folders["build"].shards():
        parts.append(np.load(shard / "written.npy"))
        if (shard / SENT).exists():
            found = sum(file["rows"] for file in json.loads((shard / SENT).read_text()))
        else:
            found = sum(parquet.read_metadata(path).num_rows for path in shard.glob("[0-9]*.parquet"))
        if found != len(parts[-1]):
            raise ValueError(
                f"{shard} holds {found} images, but notes {len(parts[-1])}: its files were changed after they were"
                " written; remove that folder and run the same command again."
            )
    return np.concatenate(parts)


def only_compared(curation: Curation) -> np.ndarray:
    """Row ids of images that are only compared with: benchmarks, and curated sources that are not included."""
    arguments, parts = curation.arguments, [np.empty(0, np.int64)]
    benchmarks = curation.vectors("embed", "benchmark") if arguments.benchmarks else None
    if benchmarks is not None:
        parts.append(benchmarks.ids)
    curated = curation.curated_left()
    for number, (role, _) in enumerate(arguments.sources):
        if role == "curated" and number not in arguments.included_curated:
            parts.append(np.intersect1d(curated, np.asarray(curation.sources.range_of(number))))
    return np.concatenate(parts)


def check_complete(curation: Curation, times_dropped: np.ndarray, written: np.ndarray) -> None:
    """Check that every image of every source has exactly one fate.

    Args:
        times_dropped: (number of all images,) the number of records of each in `dropped.parquet`.
        written: from `written_row_ids`.

    Raises:
        ValueError: an image has none, or more than one; the message has the source, the number and some rows.
    """
    times = times_dropped.astype(np.int64)
    times[np.unique(written)] += 1
    times[only_compared(curation)] += 1
    for number, source in enumerate(curation.sources.sources):
        rows = curation.sources.range_of(number)
        of_source = times[rows.start : rows.stop]
        for wrong, problem in ((of_source == 0, "are neither in the dataset nor dropped"),
                               (of_source > 1, "are both in the dataset and dropped, or dropped twice")):  # fmt: skip
            if wrong.any():
                some = ", ".join(map(str, np.flatnonzero(wrong)[:5]))
                raise ValueError(
                    f"{int(wrong.sum())} of {len(rows)} images of the source {source.name!r} {problem} (rows {some}):"
                    " the curation stops, because none may be unaccounted for. Run it again with verify (--verify); if"
                    " that does not help, this is a fault of dinov2_hf, or of a stage of your own: please report it."
                )
