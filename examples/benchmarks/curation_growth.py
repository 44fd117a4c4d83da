"""What it costs to add a source to a finished curation, beside one run over all sources.

    python examples/benchmarks/curation_growth.py --images 3000 --added 600 --output growth.json

The images are random shapes, JPEG of 320 x 240 pixels; a tenth of those added repeats earlier ones.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dinov2_hf.curation import CurationArguments, curate


WIDTH, HEIGHT = 320, 240


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, help="of the first source")
    parser.add_argument("--added", type=int, default=600, help="of the source that comes")
    parser.add_argument("--embedder", default="perceptual")
    parser.add_argument("--scratch", type=Path, help="folder for the images, which are deleted at the end")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        record = measure(Path(folder), args.images, args.added, args.embedder)
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def measure(folder: Path, images: int, added: int, embedder: str) -> dict:
    """CPU seconds, and bytes handed to the system for writing, of the three runs."""
    write_images(folder / "first", range(images))
    write_images(folder / "added", range(images - added // 10, images + added - added // 10))
    write_images(folder / "few", range(8))
    both = [folder / "first", folder / "added"]
    run([folder / "few"], folder / "warm", embedder)  # libraries are read
    runs = {
        "the first source": run(both[:1], folder / "grown", embedder),
        "the second in its folder": run(both, folder / "grown", embedder),
        "both at once": run(both, folder / "at_once", embedder),
    }
    files = [sorted((folder / name / "dataset").rglob("*.parquet")) for name in ("grown", "at_once")]
    is_same = [[path.read_bytes() for path in paths] for paths in files]
    return {"images": images, "added": added, "embedder": embedder, "runs": runs, "same": is_same[0] == is_same[1]}


def run(sources: list[Path], output: Path, embedder: str) -> dict:
    arguments = CurationArguments(
        uncurated=[str(path) for path in sources], output_dir=str(output), embedder=embedder, progress=False
    )
    wall, cpu, written = time.perf_counter(), time.process_time(), bytes_written()
    curate(arguments)
    return {
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "megabytes_written": round((bytes_written() - written) / 1e6, 1),
    }


def bytes_written() -> int:
    """By this process so far, as Linux counts them."""
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


def write_images(folder: Path, seeds: range) -> None:
    """60 discs of random places, sizes and colours in each, the larger ones behind."""
    folder.mkdir()
    for seed in seeds:
        random = np.random.default_rng(seed)
        image = Image.new("RGB", (WIDTH, HEIGHT), tuple(random.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        for radius in np.sort(random.uniform(4, 90, 60))[::-1]:
            x, y = random.uniform(0, WIDTH), random.uniform(0, HEIGHT)
            box = (x - radius, y - radius / 2, x + radius, y + radius / 2)
            draw.ellipse(box, fill=tuple(random.integers(0, 256, 3).tolist()))
        image.save(folder / f"{seed:06d}.jpg", quality=90)


if __name__ == "__main__":
    main()
