"""Write the revisited Oxford or Paris buildings (Radenovic et al. 2018) as the two parquet files of `retrieval`.

`database.parquet` has the column `image`; `queries.parquet` has `image`, `bbx` and the lists `easy`, `hard` and `junk`
of rows of the database. Both need the images (one folder of .jpg files) and the ground truth, `gnd_roxford5k.pkl` or
`gnd_rparis6k.pkl`, from the page of the benchmark. A .pkl file can hold code; only lists, numbers, texts and NumPy
arrays are read from it, and a file that asks for more is refused.

    python examples/write_revisited.py gnd_roxford5k.pkl jpg roxford5k
    dinov2-hf evaluate --model outputs/model --protocol retrieval --output_dir roxford5k_evaluation \
        --train_data roxford5k/database.parquet --eval_data roxford5k/queries.parquet
"""

import argparse
import io
import pickle
from pathlib import Path

import datasets


# What a pickle of NumPy arrays names, by any version of NumPy.
READ_FROM_PICKLES = {
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # bytes in pickles of protocol 2
}
ROWS_AT_ONCE = 64  # in memory; an image file has about 1 MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ground_truth", type=Path, help="the .pkl file of the benchmark")
    parser.add_argument("images", type=Path, help="folder of the .jpg files, queries included")
    parser.add_argument("out_dir", type=Path, help="folder to write to; made if it does not exist")
    args = parser.parse_args()

    truth = read_ground_truth(args.ground_truth)
    image = {"image": datasets.Image()}
    rows_of_database = datasets.Sequence(datasets.Value("int32"))
    of_queries = {
        **image,
        "bbx": datasets.Sequence(datasets.Value("float32"), length=4),
        **dict.fromkeys(("easy", "hard", "junk"), rows_of_database),
    }
    queries = [
        {"bbx": list(map(float, one["bbx"])), **{name: list(map(int, one[name])) for name in ("easy", "hard", "junk")}}
        for one in truth["gnd"]
    ]
    write(args, "database", truth["imlist"], [{} for _ in truth["imlist"]], image)
    write(args, "queries", truth["qimlist"], queries, of_queries)


class DataOnly(pickle.Unpickler):
    """Reads a pickle of plain data; anything that it names beside NumPy's arrays could run code."""

    def find_class(self, module: str, name: str):
        if (module, name) not in READ_FROM_PICKLES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only plain data is read")
        return super().find_class(module, name)


def read_ground_truth(path: Path) -> dict:
    """The lists of a benchmark, from its .pkl file."""
    try:
        truth = DataOnly(io.BytesIO(path.read_bytes())).load()
        missing = [name for name in ("gnd", "imlist", "qimlist") if name not in truth]
    except Exception as error:  # damaged pickles raise nearly anything
        raise SystemExit(f"error: {path} cannot be read: {error}.") from None
    if missing:
        raise SystemExit(
            f"error: {path} has no {', '.join(missing)}: it is not a ground truth of the revisited buildings;"
            " give gnd_roxford5k.pkl or gnd_rparis6k.pkl."
        )
    return truth


def write(args: argparse.Namespace, name: str, images: list[str], rows: list[dict], features: dict) -> None:
    """The rows with the bytes of their images, as a parquet file."""
    paths = [args.images / f"{image}.jpg" for image in images]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise SystemExit(f"error: {len(missing)} of {len(paths)} images are missing, such as {missing[0]}.")

    def with_images():
        for path, row in zip(paths, rows, strict=True):
            yield {"image": {"bytes": path.read_bytes(), "path": path.name}, **row}

    args.out_dir.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    # Not cached between runs: the images may have changed.
    dataset = datasets.IterableDataset.from_generator(with_images, features=datasets.Features(features))
    path = args.out_dir / f"{name}.parquet"
    dataset.to_parquet(path, batch_size=ROWS_AT_ONCE)
    print(f"{path}: {len(rows)} images")


if __name__ == "__main__":
    main()
