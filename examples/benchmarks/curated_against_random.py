"""Does a network learn more from a curated subset of a pool than from a random one of the same size?

    python examples/benchmarks/curated_against_random.py --wanted digits/train.parquet \\
        --others cifar10/test.parquet camvid/train.parquet --output_dir outputs/domain

The pool is like the web: a fifth of it is what is wanted, and some classes of that are rare. The rest is cut out of
other pictures. Hundreds of near copies of a few pictures and some broken files are among them. All are 32 x 32 pixels.
It is curated by a few wanted pictures of each class, which are not in the pool and do not go into the dataset.

Four files come out, each with equally many images of the pool, for four pretrainings of equal length:

- `random.parquet`: drawn from the whole pool;
- `copies_out.parquet`: drawn from what deduplication leaves;
- `retrieved.parquet`: drawn from what is retrieved of the whole pool;
- `curated.parquet`: drawn from what is retrieved after deduplication.

`composition.json` tells how many of them are wanted, and how many pictures are left when copies count once.
"""

import argparse
import io
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageEnhance

from dinov2_hf.curation import curate, read_arguments
from dinov2_hf.data import decode_image


SIDE = 32


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wanted", required=True, help="parquet file with the columns image and label")
    parser.add_argument("--others", required=True, nargs="+", help="parquet files with the column image")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--max_wanted", type=int, help="use no more than so many rows of it")
    parser.add_argument("--queries_per_class", type=int, default=10)
    parser.add_argument("--rare_classes", type=int, default=5, help="how many classes, the last ones, are rare")
    parser.add_argument("--rare_share", type=float, default=0.3, help="of the images of a rare class in the pool")
    parser.add_argument("--copied", type=int, default=30, help="how many pictures have near copies in the pool")
    parser.add_argument("--copies", type=int, default=20, help="near copies of each of them")
    parser.add_argument("--broken", type=int, default=20, help="files that end too early")
    parser.add_argument("--num_neighbors", type=int, default=16, help="images to retrieve for each query")
    parser.add_argument("--deduplication_threshold", type=float, default=0.6)
    parser.add_argument("--embedder", default="perceptual")
    args = parser.parse_args(argv)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    pool, queries = compose(args)
    sources = {"pool": args.output_dir / "pool.parquet", "queries": args.output_dir / "queries.parquet"}
    write(pool, sources["pool"])
    write(queries, sources["queries"])

    subsets = {"random": [row for row in pool if row["what"] != "broken"]}
    for name, options in (
        ("copies_out", {"selection": "all"}),
        ("retrieved", {"deduplication_threshold": 1.0, "deduplicate_content": False}),
        ("curated", {}),
    ):
        common = {
            "uncurated": [str(sources["pool"])],
            "curated": [] if "selection" in options else [{"path": str(sources["queries"]), "include": False}],
            "output_dir": str(args.output_dir / f"{name}_curation"),
            "retrieval_num_neighbors": args.num_neighbors,
            "deduplication_threshold": args.deduplication_threshold,
            "embedder": args.embedder,
            "retrieval_embedder": args.embedder,
            "keep_columns": ["what", "picture"],
        }
        curation = curate(read_arguments(None, **{**common, **options}))
        files = sorted(str(path) for path in (curation.output_dir / "dataset" / "data").iterdir())
        rows = datasets.Dataset.from_parquet(files).cast_column("image", datasets.Image(decode=False))
        subsets[name] = rows.select_columns(["image", "what", "picture"]).to_list()

    size = min(len(rows) for rows in subsets.values())
    record = {"embedder": args.embedder, "images": size, "pool": composition(pool)}
    for name, rows in subsets.items():
        drawn = np.random.default_rng(1).choice(len(rows), size, replace=False)
        subset = [rows[index] for index in sorted(drawn)]
        write(subset, args.output_dir / f"{name}.parquet")
        record[name] = {"of": len(rows), **composition(subset)}
    (args.output_dir / "composition.json").write_text(json.dumps(record, indent=1))
    print(json.dumps(record, indent=1))
    return record


def compose(args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """The rows of the pool, and of the queries, which are not in it."""
    generator = np.random.default_rng(0)
    wanted = datasets.Dataset.from_parquet(args.wanted)
    wanted = wanted.select(range(min(len(wanted), args.max_wanted or len(wanted))))
    labels = np.array(wanted["label"])
    classes = np.unique(labels)
    in_pool, queries = [], []
    for label in classes:
        rows = generator.permutation(np.flatnonzero(labels == label))
        share = args.rare_share if label >= classes[-args.rare_classes] else 1.0
        rest = rows[args.queries_per_class :]
        queries += rows[: args.queries_per_class].tolist()
        in_pool += rest[: round(share * len(rest))].tolist()

    pictures = [("wanted", resized(wanted[row]["image"])) for row in in_pool]
    of_each = -(-4 * len(pictures) // len(args.others))
    for file in args.others:
        images = datasets.Dataset.from_parquet(file)
        cuts = [resized(images[int(row)]["image"], generator) for row in generator.integers(len(images), size=of_each)]
        pictures += [("other", cut) for cut in cuts]
    pool = [as_row(picture, what, number) for number, (what, picture) in enumerate(pictures)]
    for number in generator.choice(len(pictures), args.copied, replace=False):
        what, picture = pictures[number]
        pool += [as_row(near_copy(picture, generator), what, int(number)) for _ in range(args.copies)]
    for number in generator.choice(len(pictures), args.broken, replace=False):
        whole = pool[number]["image"]["bytes"]
        pool.append({"image": {"bytes": whole[: len(whole) // 2], "path": None}, "what": "broken", "picture": -1})
    order = generator.permutation(len(pool))
    return [pool[index] for index in order], [as_row(resized(wanted[row]["image"]), "query", -1) for row in queries]


def resized(image: Image.Image, generator: np.random.Generator | None = None) -> Image.Image:
    """An image as RGB of 32 x 32 pixels; with a generator, a random square of it, half to all of the shorter side."""
    image = decode_image(image)
    if generator is not None:
        side = int(generator.uniform(0.5, 1.0) * min(image.size))
        left, top = (int(generator.integers(whole - side + 1)) for whole in image.size)
        image = image.crop((left, top, left + side, top + side))
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def near_copy(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A picture with up to 3 pixels cut off a side, and a little brighter or darker."""
    left, top, right, bottom = generator.integers(0, 4, size=4)
    cut = picture.crop((int(left), int(top), int(SIDE - right), int(SIDE - bottom)))
    return ImageEnhance.Brightness(cut.resize((SIDE, SIDE))).enhance(float(generator.uniform(0.8, 1.2)))


def as_row(picture: Image.Image, what: str, number: int) -> dict:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return {"image": {"bytes": file.getvalue(), "path": None}, "what": what, "picture": number}


def write(rows: list[dict], file: Path) -> None:
    features = {"image": datasets.Image(), "what": datasets.Value("string"), "picture": datasets.Value("int64")}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(file)


def composition(rows: list[dict]) -> dict:
    return {
        **Counter(row["what"] for row in rows),
        "different pictures": len({row["picture"] for row in rows if row["what"] != "broken"}),
    }


if __name__ == "__main__":
    main()
