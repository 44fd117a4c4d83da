"""
How fast the evaluation of frozen features is: k-NN search, feature extraction, and the grid of linear classifiers.

    python examples/benchmarks/evaluation.py --output evaluation.json

k-NN: 10,000 queries against a bank of 50,000 random features, top 200, beside the original's protocol (batches of 256
queries against the whole bank) and a flat index of faiss, which only searches. Variants take turns, round after round;
the medians of each round's ratios are reported. Memory is the largest resident size of a process of its own, less its
size with the features in memory; on a GPU the allocator's peak. All must find the same neighbours.

Extraction: images per second with decoding of JPEG files, and the share of the time in which the model waits for them.

Grid: seconds of a step of 52 classifiers over those of 1, with the forward pass of the backbone and without it.
"""

import argparse
import io
import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm.auto import tqdm

from dinov2_hf import DINOv2Config, DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.evaluation.classification.classifier_grid import LEARNING_RATES, ClassifierGrid
from dinov2_hf.evaluation.knn import knn_class_scores
from dinov2_hf.evaluation.linear import feature_groups
from dinov2_hf.feature_kinds import FeatureKind
from dinov2_hf.features import FeatureExtractor, image_features


ARCHITECTURES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}
KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
NUM_CLASSES = 1000


def main() -> None:
    args = parse_arguments()
    results = {"machine": describe_machine(args)}
    for name in args.parts:
        print(f"{name} ...", flush=True)
        results[name] = PARTS[name](args)
        print(json.dumps(results[name], indent=2), flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(results, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="Turns of each variant.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bank_size", type=int, default=50_000)
    parser.add_argument("--num_queries", type=int, default=10_000)
    parser.add_argument("--feature_size", type=int, default=384)
    parser.add_argument("--model", choices=ARCHITECTURES, default="small")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--file_size", type=int, nargs=2, default=(500, 375), help="Width and height of JPEG files.")
    parser.add_argument("--num_images", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers, written after every part.")
    return parser.parse_args()


def describe_machine(args: argparse.Namespace) -> dict:
    device = torch.device(args.device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "options": {name: value for name, value in vars(args).items() if name != "output"},
    }


# k-NN


def search_ours(bank, labels, queries):
    return knn_class_scores(bank, labels, queries, num_classes=NUM_CLASSES, ks=KS, temperature=TEMPERATURE)[KS[-1]]


def search_as_original(bank, labels, queries):
    """From its description: normalised features, batches of 256 queries against the whole bank, one-hot votes."""
    bank, scores = F.normalize(bank, dim=1).T.contiguous(), []
    for batch in F.normalize(queries, dim=1).split(256):
        similarities, neighbors = (batch @ bank).topk(KS[-1], dim=1)
        votes = F.one_hot(labels[neighbors], NUM_CLASSES) * (similarities / TEMPERATURE).softmax(dim=1)[..., None]
        scores.append({k: votes[:, :k].sum(dim=1) for k in KS}[KS[-1]])
    return torch.cat(scores)


def search_faiss(bank, labels, queries):
    """The search alone is faiss's; the votes are those of the sums over its neighbours."""
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(F.normalize(bank, dim=1).numpy())
    similarities, neighbors = index.search(F.normalize(queries, dim=1).numpy(), KS[-1])
    weights = (torch.from_numpy(similarities) / TEMPERATURE).softmax(dim=1)
    return torch.zeros(len(queries), NUM_CLASSES).scatter_add_(1, labels[torch.from_numpy(neighbors)], weights)


SEARCHES = {"ours": search_ours, "as the original": search_as_original, "faiss flat": search_faiss}


def features_to_search(args: argparse.Namespace):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(args.bank_size, args.feature_size, generator=generator)
    queries = torch.randn(args.num_queries, args.feature_size, generator=generator)
    labels = torch.randint(NUM_CLASSES, (args.bank_size,), generator=generator)
    device = torch.device(args.device)
    return bank.to(device), labels.to(device), queries.to(device)


def measure_knn(args: argparse.Namespace) -> dict:
    names = [name for name in SEARCHES if args.device == "cpu" or name != "faiss flat"]
    memory = {name: in_a_process(report_memory, name, args) for name in names}
    inputs = features_to_search(args)
    seconds, scores = {name: [] for name in names}, {}
    for turn in tqdm(range(args.rounds), desc="k-NN"):
        for name in names if turn % 2 == 0 else reversed(names):
            start = time.perf_counter()
            scores[name] = SEARCHES[name](*inputs).cpu()
            seconds[name].append(time.perf_counter() - start)
    for name in names[1:]:
        # Single neighbours at the edge of the 200 may be exchanged by rounding.
        assert (scores[name] - scores["ours"]).abs().max() < 1e-2, name
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "time_over_ours": {name: median_ratio(seconds[name], seconds["ours"]) for name in names},
        "memory_mib": memory,
    }


def report_memory(sender, name: str, args: argparse.Namespace) -> None:
    inputs = features_to_search(args)
    if args.device != "cpu":
        before = torch.cuda.memory_allocated()
        SEARCHES[name](*inputs)
        sender.send((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    if name == "faiss flat":
        import faiss  # noqa: F401  (its code is not its memory)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    SEARCHES[name](*inputs)
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)  # kibibytes on Linux


def in_a_process(function: Callable, *arguments):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(sender, *arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


# Extraction


def jpeg_rows(args: argparse.Namespace) -> list[dict]:
    """JPEG files of smooth noise, about as large as photographs of their size."""
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(min(args.num_images, 32)):
        small = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize(args.file_size, Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=92)
        contents.append(buffer.getvalue())
    return [{"image": contents[index % len(contents)]} for index in range(args.num_images)]


def backbone(args: argparse.Namespace) -> tuple[DINOv2Model, DINOv2ImageProcessor]:
    torch.manual_seed(0)
    model = DINOv2Model(DINOv2Config(**ARCHITECTURES[args.model], image_size=args.image_size, patch_size=14)).eval()
    processor = DINOv2ImageProcessor(
        size={"shortest_edge": round(args.image_size * 256 / 224)},
        crop_size={"height": args.image_size, "width": args.image_size},
    )
    return model.to(args.device), processor


def measure_extraction(args: argparse.Namespace) -> dict:
    model, processor = backbone(args)
    rows, in_model = jpeg_rows(args), []

    def begin(*_):
        synchronize(args)
        in_model.append(-time.perf_counter())

    def end(*_):
        synchronize(args)
        in_model[-1] += time.perf_counter()

    model.register_forward_pre_hook(begin)
    model.register_forward_hook(end)
    options = {"batch_size": args.batch_size, "autocast_dtype": torch.bfloat16 if args.bf16 else None}
    for _ in FeatureExtractor(model, processor, **options).batches(rows[: args.batch_size]):  # warms up
        pass
    in_model.clear()
    start = time.perf_counter()
    extractor = FeatureExtractor(model, processor, num_workers=args.num_workers, progress=True, **options)
    for _ in extractor.batches(rows):
        pass
    seconds = time.perf_counter() - start
    return {
        "images_per_second": len(rows) / seconds,
        "images_per_second_of_the_model_alone": len(rows) / sum(in_model),
        "share_of_time_waiting_for_images": 1 - sum(in_model) / seconds,
    }


# Grid


def measure_grid(args: argparse.Namespace) -> dict:
    """Both grids of 52 and single classifiers (on all features, 4 blocks and the mean patch) on the same batches."""
    model, _ = backbone(args)
    num_features = model.config.hidden_size * 5
    whole = FeatureKind("last_layers_and_mean_patch", 4)
    groups = {name: whole.columns(kind, num_features) for name, kind in feature_groups(model, (1, 4)).items()}
    shape = {"num_features": num_features, "num_classes": NUM_CLASSES, "learning_rate_scale": 0.5}
    grids = {
        "52 classifiers": ClassifierGrid(groups, LEARNING_RATES["code"], device=args.device, **shape),
        "1 classifier": ClassifierGrid({"all": slice(None)}, [0.01], device=args.device, **shape),
    }
    assert [len(grid.choices) for grid in grids.values()] == [52, 1]
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    labels = torch.randint(NUM_CLASSES, (args.batch_size,), device=args.device)
    autocast = torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16, enabled=args.bf16)

    def step(grid: ClassifierGrid, features: torch.Tensor | None) -> float:
        synchronize(args)
        start = time.perf_counter()
        if features is None:
            with torch.no_grad(), autocast:
                features = image_features(model, images, "last_layers_and_mean_patch")
        grid.step(features.float(), labels, 1.0)
        synchronize(args)
        return time.perf_counter() - start

    measured = {}
    cached = torch.randn(args.batch_size, num_features, device=args.device)
    for kind, features in (("with_the_backbone", None), ("from_cached_features", cached)):
        seconds = {name: [] for name in grids}
        for turn in tqdm(range(args.rounds + 1), desc=kind):
            for name in grids if turn % 2 == 0 else reversed(grids):
                seconds[name].append(step(grids[name], features))
        seconds = {name: values[1:] for name, values in seconds.items()}  # the first warms up
        measured[kind] = {
            "seconds_per_step": {name: statistics.median(values) for name, values in seconds.items()},
            "time_of_52_over_1": median_ratio(seconds["52 classifiers"], seconds["1 classifier"]),
        }
    return measured


def median_ratio(seconds: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(seconds, others, strict=True))


def synchronize(args: argparse.Namespace) -> None:
    if args.device != "cpu":
        torch.cuda.synchronize()


PARTS = {"knn": measure_knn, "extraction": measure_extraction, "grid": measure_grid}

if __name__ == "__main__":
    main()
