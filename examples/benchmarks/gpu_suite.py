"""
All that is to be known of a GPU, in minutes: what it reaches, tests, whole steps, loaders, a training, inference.

    python examples/benchmarks/gpu_suite.py --minutes 9 --output gpu_results \
        --original <clone of github.com/facebookresearch/dinov2> --cifar10 <folder> --images photographs.parquet

Parts come in order of value, each in a process of its own with a share of the time; what one leaves goes to those that
follow. After every measurement `results.json` is whole, after every part there is its picture, `<part>.png`, and all
that was said is in `log.txt`: so the suite may be stopped, and a part may fail or hang. What a part cannot measure
(no data named, a package that is not installed) stands in its place.

`--image_packages freeze.txt` tells what to carry to an image with those packages, and ends. `--toy` runs all parts at
the smallest size on a CPU, to see that they run before a GPU's time is spent.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from gpu_parts import PARTS
from gpu_parts.packages import installed_here, lacking, listed, what_to_carry
from gpu_parts.part import NotMeasured, Part, Work
from gpu_parts.processes import context_for, kill_tree

from dinov2_hf.output_folders import write_text
from dinov2_hf.pictures.figures import new_figure, save_figure


IMPORTED_ONCE = ("dinov2_hf.runs.run", "inference", "pretraining_step")  # before any part, which is a fork
STOP_BEFORE_LIMIT = 0.93  # of a part's time: then it begins nothing new; at the end it is killed


def main() -> None:
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # which leaves forks the use of GPUs
    args = parse_arguments()
    parts = [part for part in PARTS if part.name in args.parts]
    if args.image_packages:
        print(what_to_carry(parts, listed(args.image_packages)))
        return
    print(what_to_carry(parts, installed_here()), flush=True)
    end = time.time() + 60 * args.minutes
    for name in IMPORTED_ONCE:
        with suppress(ImportError):  # whoever needs it will say so
            import_module(name)
    device = "cpu" if args.toy else "cuda"
    suite = Suite(args.output, end, context_for(device))
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            toy=args.toy,
            device=device,
            folder=Path(folder),
            deadline=0.0,
            record=print,
            images=args.images,
            cifar10=args.cifar10,
            original=args.original,
            peak_teraflops=args.peak_teraflops,
        )
        for number, part in enumerate(parts):
            own = Path(folder, part.name)
            own.mkdir()
            suite.run(part, replace(work, folder=own), of=parts[number:])
    print(suite.table())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=9, help="That all may take.")
    parser.add_argument("--output", type=Path, help="Folder for numbers, pictures and log; a new or empty one.")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], default=[p.name for p in PARTS])
    parser.add_argument("--original", help="Clone of the original's repository, to measure beside.")
    parser.add_argument("--cifar10", help="Folder with train.parquet and test.parquet, for the training.")
    parser.add_argument("--images", help="Photographs for the loaders: a parquet file or a folder. By default made.")
    parser.add_argument("--peak_teraflops", type=float, default=790, help="Of the GPU in bfloat16, per second.")
    parser.add_argument("--image_packages", type=Path, help="`pip freeze` of an image: tell what it lacks, and end.")
    parser.add_argument("--toy", action="store_true", help="The smallest sizes, on a CPU.")
    args = parser.parse_args()
    if args.image_packages:
        return args
    if args.output is None:
        parser.error("`--output` is missing: the folder for the results")
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        parser.error(f"`--output` is {args.output}, where something is already; name a new or empty folder")
    if not args.toy and not torch.cuda.is_available():
        parser.error("there is no GPU here; `--toy` runs all parts at the smallest size on a CPU")
    for name, wanted in (("original", "dinov2/models"), ("cifar10", "train.parquet"), ("images", "")):
        value = getattr(args, name)
        if value and not Path(value, wanted).exists():
            parser.error(f"`--{name}` is {value}, and there is no {Path(value, wanted)}")
    args.output.mkdir(parents=True, exist_ok=True)
    return args


@dataclass
class Suite:
    """Runs parts one after the other, and keeps what they record in `output`."""

    output: Path
    end: float
    context: BaseContext
    results: dict[str, dict] = field(default_factory=dict)

    def run(self, part: Part, work: Work, of: list[Part]) -> None:
        """Run a part with its share of the time that is left for the parts `of`, of which it is the first."""
        limit = (self.end - time.time()) * part.seconds / sum(other.seconds for other in of)
        started = time.time()
        self.results[part.name] = result = {"outcome": "not finished", "limit_seconds": round(limit, 1), "rows": {}}
        missing = lacking(part.needs, installed_here())
        if missing:
            result["outcome"] = f"not measured: {', '.join(missing)} not installed"
        else:
            print(f"{part.name} (at most {limit:.0f} s) ...", flush=True)
            work = replace(work, deadline=started + STOP_BEFORE_LIMIT * limit)
            result["outcome"] = self._watch(part, work, started + limit)
        result["seconds"] = round(time.time() - started, 1)
        self._write()
        self._draw(part, result["rows"])
        print(f"{part.name}: {result['outcome']}, {len(result['rows'])} rows, {result['seconds']} s", flush=True)

    def _watch(self, part: Part, work: Work, end: float) -> str:
        """Keep what a part records until it ends or its time is over; how it ended."""
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=measure, args=(part, work, sender, self.output / "log.txt"))
        process.start()
        sender.close()
        try:
            while ready := wait([receiver, process.sentinel], timeout=max(end - time.time(), 0)):
                if receiver not in ready or not self._keep(part, receiver):
                    process.join(timeout=max(end - time.time(), 0))
                    break
            alive = process.exitcode is None
            how = "stopped, its time was over" if alive else f"failed: its process ended with {process.exitcode}"
            return self.results[part.name].pop("ended", how)
        finally:
            kill_tree(process)

    def _keep(self, part: Part, receiver: Connection) -> bool:
        """One message of a part; False after the last."""
        try:
            name, value = receiver.recv()
        except EOFError:
            return False
        if name is None:
            self.results[part.name]["ended"] = value
        else:
            self.results[part.name]["rows"].setdefault(name, {}).update(value)
            self._write()
            print(f"  {name}: {shortened(value)}", flush=True)
        return True

    def _write(self) -> None:
        write_text(self.output / "results.json", json.dumps(self.results, indent=2, default=str) + "\n")

    def _draw(self, part: Part, rows: dict[str, dict]) -> None:
        if part.draw is None or not rows:
            return
        try:
            figure = new_figure(9, 1.5 + 0.4 * len(rows))
            part.draw(figure, rows)
            figure.suptitle(part.name, x=0.01, ha="left")
            save_figure(figure, self.output / f"{part.name}.png")
        except Exception:  # a picture never costs the numbers
            traceback.print_exc()

    def table(self) -> str:
        lines = [f"{name:12s}{result['seconds']:7.0f} s  {result['outcome']}" for name, result in self.results.items()]
        return "\n".join(["", *lines, f"in {self.output}"])


def measure(part: Part, work: Work, sender: Connection, log: Path) -> None:
    """What the process of a part does. Its words and those of all that it starts go to the log."""
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    print(f"===== {part.name}", flush=True)
    try:
        part.measure(replace(work, record=lambda name, row: sender.send((name, row))))
        ended = "done"
    except NotMeasured as error:
        ended = f"not measured: {error}"
    except BaseException as error:
        traceback.print_exc()
        ended = f"failed: {type(error).__name__}: {error}"[:2000]
    sender.send((None, ended))


def shortened(row: dict, width: int = 150) -> str:
    words = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
    text = ", ".join(f"{key} {word}" for key, word in words.items())
    return text if len(text) <= width else text[:width] + " ..."


if __name__ == "__main__":
    main()
