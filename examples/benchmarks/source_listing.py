"""What it costs a curation to know the files of its sources: once, and for each shard.

    python examples/benchmarks/source_listing.py --files 100000 --output listing.json

The files are empty, 1,000 in a folder.
"""

import argparse
import json
import os
import pickle
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dinov2_hf.curation import CurationArguments
from dinov2_hf.curation.plan import plan
from dinov2_hf.curation.run_context import IMAGES_PER_SHARD
from dinov2_hf.curation.storage.source_listing import LISTING, StoredListings


FILES_IN_FOLDER = 1000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--scratch", type=Path, help="folder for the files, which are deleted at the end")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        record = measure(Path(folder), args.files)
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def measure(folder: Path, num_files: int) -> dict:
    """CPU seconds of what the processes of a curation do; what is read first, libraries read too."""
    measure_pool(folder / "few", 10)
    cpu_seconds, wall_seconds = measure_pool(folder / "many", num_files)
    return {
        "files": num_files,
        "files_in_folder": FILES_IN_FOLDER,
        "cpu_seconds": cpu_seconds,
        "wall_seconds_until_the_first_shard_reads": wall_seconds,
        "most_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def measure_pool(folder: Path, num_files: int) -> tuple[dict[str, float], float]:
    write_files(folder / "pool", num_files)
    output = folder / "output"
    output.mkdir()
    arguments = CurationArguments(
        uncurated=str(folder / "pool"), output_dir=str(output), embedder="perceptual", progress=False
    )
    listings = StoredListings(output / LISTING)
    rows = range(min(num_files, IMAGES_PER_SHARD))
    seconds, begin = {}, time.perf_counter()
    curation, stages = timed(seconds, "plan, which lists the files", lambda: plan(arguments))
    timed(seconds, "store the listing", lambda: curation.sources.store(listings.folder, is_sole_writer=True))
    task = pickle.dumps(stages[0].write_shard)
    opened = timed(seconds, "open the sources for a shard", lambda: pickle.loads(task).args[0].sources)
    timed(seconds, f"see that {len(rows)} files are unchanged", lambda: opened.refuse_changed(rows))
    wall_seconds = round(time.perf_counter() - begin, 1)
    timed(seconds, "plan of a launch with --rank", lambda: plan(arguments, listings))
    return seconds, wall_seconds


def write_files(folder: Path, number: int) -> None:
    for start in range(0, number, FILES_IN_FOLDER):
        place = folder / f"{start // FILES_IN_FOLDER:06d}"
        place.mkdir(parents=True)
        descriptor = os.open(place, os.O_RDONLY)  # which makes five million files in minutes
        for file in range(start, min(start + FILES_IN_FOLDER, number)):
            os.close(os.open(f"{file:09d}.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        os.close(descriptor)


def timed(seconds: dict[str, float], name: str, work: Callable) -> object:
    """What `work` returns; its CPU time goes to `seconds`."""
    begin = time.process_time()
    result = work()
    seconds[name] = round(time.process_time() - begin, 4)
    return result


if __name__ == "__main__":
    main()
