"""Does curation by a few balanced images balance an unbalanced pool? Entropy of the classes before and after.

    python examples/benchmarks/curation_balance.py --images cifar10/train.parquet --output_dir outputs/balance

From labelled images a pool is made in which some classes are rare, and a few images of every class are set aside as
the curated set. The pool is curated by them, and `balance.json` has the entropy (in nats; log of the number of classes
at most) of the labels of the pool, of the curated dataset (without the curated images), and of a random subset of the
pool of the same size, which is also written, for a pretraining of both:

    accelerate launch examples/pretrain.py --config cifar10_vit_tiny \\
        --train_data outputs/balance/curated/dataset --output_dir outputs/on_curated
    accelerate launch examples/pretrain.py --config cifar10_vit_tiny \\
        --train_data outputs/balance/random.parquet --output_dir outputs/on_random
"""

import argparse
import json
from pathlib import Path

import datasets
import numpy as np

from dinov2_hf.curation import curate, read_arguments


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="parquet file with the columns image and label")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--images_per_class", type=int, default=5000, help="of a common class, in the pool")
    parser.add_argument("--rare_classes", type=int, default=5, help="how many classes, the last ones, are rare")
    parser.add_argument("--rare_share", type=float, default=0.1, help="of the images of a rare class in the pool")
    parser.add_argument("--queries_per_class", type=int, default=20)
    parser.add_argument("--num_neighbors", type=int, default=32, help="images to retrieve for each query")
    parser.add_argument("--embedder", default="perceptual")
    parser.add_argument("--retrieval_embedder", help="(default: embedder)")
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--overwrite", action="store_true", help="with other options, keep the stages that stay")
    args = parser.parse_args(argv)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    images = datasets.Dataset.from_parquet(args.images).cast_column("image", datasets.Image(decode=False))
    pool, queries = split(np.array(images["label"]), args)
    pool_file, query_file = args.output_dir / "pool.parquet", args.output_dir / "queries.parquet"
    if not query_file.exists():  # files that are written anew would be another source
        for rows, file in ((pool, pool_file), (queries, query_file)):
            images.select(rows).cast_column("image", datasets.Image()).to_parquet(file)
    curation = curate(
        read_arguments(
            None,
            uncurated=[str(pool_file)],
            curated=[{"path": str(query_file), "include": False}],
            output_dir=str(args.output_dir / "curated"),
            retrieval_num_neighbors=args.num_neighbors,
            embedder=args.embedder,
            retrieval_embedder=args.retrieval_embedder,
            keep_columns=["label"],
            num_processes=args.num_processes,
            overwrite=args.overwrite,
        )
    )
    found = datasets.Dataset.from_parquet([str(p) for p in (curation.output_dir / "dataset" / "data").iterdir()])
    chosen = np.sort(np.random.default_rng(1).choice(pool, len(found), replace=False))
    images.select(chosen).cast_column("image", datasets.Image()).to_parquet(args.output_dir / "random.parquet")
    labels = np.array(images["label"])
    record = {
        "embedder": Path(args.retrieval_embedder or args.embedder).name,
        "most": float(np.log(labels.max() + 1)),
        **{
            name: {"images": len(of), "entropy": entropy(of), "images_of_class": np.bincount(of).tolist()}
            for name, of in (
                ("pool", labels[pool]), ("random", labels[chosen]), ("curated", np.array(found["label"])),
            )
        },
    }  # fmt: skip
    (args.output_dir / "balance.json").write_text(json.dumps(record, indent=1))
    print(json.dumps(record, indent=1))
    return record


def split(labels: np.ndarray, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the pool, and of the queries, which are not in it."""
    generator = np.random.default_rng(0)
    classes = np.unique(labels)
    pool, queries = [], []
    for label in classes:
        rows = generator.permutation(np.flatnonzero(labels == label))
        queries.append(rows[: args.queries_per_class])
        share = args.rare_share if label >= classes[-args.rare_classes] else 1.0
        rest = rows[args.queries_per_class :][: args.images_per_class]
        pool.append(rest[: round(share * len(rest))])
    return np.sort(np.concatenate(pool)), np.sort(np.concatenate(queries))


def entropy(labels: np.ndarray) -> float:
    """Of the distribution of labels, in nats."""
    shares = np.bincount(labels) / len(labels)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


if __name__ == "__main__":
    main()
