"""Curation measured: planted copies, recall of the index, time and memory as the pool grows.

    python examples/benchmarks/curation.py copies --images photographs.parquet --output copies.json
    python examples/benchmarks/curation.py recall_of_copies --images photographs.parquet --output copies.json
    python examples/benchmarks/curation.py recall --rows 100000 --output scale.json
    python examples/benchmarks/curation.py recall --rows 1000000 --images photographs.parquet --model path/to/model \
        --output scale.json
    python examples/benchmarks/curation.py deduplicate --rows 100000 --output scale.json
    python examples/benchmarks/curation.py beside_faiss --rows 100000 --output scale.json
    python examples/benchmarks/curation.py cluster --rows 100000 --output scale.json
    python examples/benchmarks/curation.py large --rows 10000000 --query_share 0.01 --output scale.json

Every run adds its record to the JSON file, in place of an older one of the same run and size (or embedder).
"""

import argparse
import json
import os
from operator import itemgetter
from pathlib import Path

import curation_scale
import planted_copies
import recall_of_copies


COPIES = {"copies": planted_copies.run, "recall_of_copies": recall_of_copies.run}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    record = COPIES[args.run](args) if args.run in COPIES else curation_scale.run(args.run, args)
    add_record(args.output, args.run, record)
    print(json.dumps(record, indent=2))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=(*COPIES, *curation_scale.RUNS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", nargs="+", help="parquet files; for copies one of a dataset without any")
    parser.add_argument("--image_column", default="image")
    copies = parser.add_argument_group("copies")
    copies.add_argument("--originals", type=int, default=1000)
    copies.add_argument("--copied", type=int, default=200, help="of the originals, with every transform")
    copies.add_argument("--embedder", default="perceptual", help="any that curation takes, but for vectors")
    copies.add_argument("--held_out", type=int, default=400, help="photographs that recall_of_copies does not fit to")
    copies.add_argument("--false_rate", type=float, default=1e-5, help="unlike pairs above the threshold")
    scale = parser.add_argument_group("the other runs, on synthetic vectors or features of random crops of --images")
    scale.add_argument("--model", help="folder or Hub name of the network for the features; by default of none")
    scale.add_argument("--rows", type=int, default=100_000)
    scale.add_argument("--query_share", type=float, default=1.0, help="of the rows that are searched for")
    scale.add_argument("--scratch", type=Path, help="folder for the vectors, which are deleted at the end")
    scale.add_argument("--factory", help="in place of the index that is chosen for the size")
    scale.add_argument("--recall", type=float, default=0.99, help="of the neighbours, that a search shall reach")
    scale.add_argument("--num_probes", type=int, help="lists to visit (default: so many that --recall is reached)")
    scale.add_argument("--num_candidates", type=int, help="with --num_probes: candidates to rank again")
    scale.add_argument("--training_rows", type=int, help="to train the index on")
    args = parser.parse_args(argv)
    if args.num_candidates is not None and args.num_probes is None:
        parser.error("--num_candidates needs --num_probes.")
    if args.run not in COPIES and args.model is not None and args.images is None:
        parser.error("--model needs --images.")
    if args.run in COPIES and args.images is None:
        parser.error(f"{args.run} needs --images.")
    return args


def add_record(output: Path, run: str, record: dict) -> None:
    results = json.loads(output.read_text()) if output.exists() else {}
    key = itemgetter("embedder") if run in COPIES else itemgetter("vectors", "rows")
    others = [old for old in results.get(run, []) if key(old) != key(record)]
    results[run] = sorted([*others, record], key=key)
    if run in ("deduplicate", "cluster"):
        alike = [each for each in results[run] if each["vectors"] == record["vectors"]]
        if len(alike) > 1:
            results[f"growth_exponents_of_{run}"] = curation_scale.growth_exponents(alike)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2))
    os.replace(partial, output)


if __name__ == "__main__":
    main()
