"""What it costs to read images: facts, filters and vectors for copies, of photographs of many pixels.

    python examples/benchmarks/first_pass.py --images 200 --width 4000 --height 3000 --output first_pass.json

The pictures are made: noise of many sizes, which compresses about as photographs do.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from dinov2_hf.curation import CurationArguments, curate


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    record = {"images": args.images, "width": args.width, "height": args.height}
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        pool.mkdir()
        for number in range(args.images):
            picture(number, args.width, args.height).save(pool / f"{number:06d}.jpg", quality=90)
        record["bytes_of_an_image"] = sum(path.stat().st_size for path in pool.iterdir()) // args.images
        curation = CurationArguments(uncurated=str(pool), output_dir=f"{folder}/output", num_workers=0, progress=False)
        record["cpu_milliseconds_of_an_image"] = {
            stage: round(cpu_seconds(curation, stage) / args.images * 1e3, 1) for stage in ("ingest", "embed")
        }
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def cpu_seconds(arguments: CurationArguments, stage: str) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    curate(arguments, stage)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Sums of noise from 4 pixels to a quarter of the picture."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    size = 4
    while size < min(width, height) // 4:
        small = random.normal(size=(height // size + 1, width // size + 1, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(small[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(layer) * size**0.5
        size *= 4
    return Image.fromarray((128 + 24 * total / total.std()).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
