"""k-NN of the evaluation beside a flat index of faiss, at the sizes of ImageNet-1k; and k-means of a curation."""

import importlib.util
import time

import numpy as np
import torch
from torch.nn import functional as F

from .machine import median_seconds
from .part import Rows, Work


NUM_NEIGHBORS, WIDTH, NUM_CLASSES = 200, 384, 1000
SIZES = {"50,000 rows": (50_000, 10_000), "ImageNet-1k": (1_281_167, 50_000)}
CLUSTERS = (1_000_000, 10_000)  # rows, centroids


def measure(work: Work) -> None:
    gpus = faiss_gpus(work)
    for name, (rows, queries) in SIZES.items():
        bank, asked, labels = features(*(100, 10) if work.toy else (rows, queries), work.device)
        work.record(f"k-NN, {name}, ours", {"seconds": ours(bank, labels, asked, work.device)})
        if gpus:
            work.record(f"k-NN, {name}, faiss search alone", {"seconds": with_faiss(bank, asked, gpus)})
    if not gpus and not work.toy:
        work.record("faiss", {"skipped": "no faiss with a GPU is here; carry faiss-gpu"})
        return
    if importlib.util.find_spec("faiss"):
        rows, clusters = (200, 5) if work.toy else CLUSTERS
        work.record(f"k-means, {rows} rows, {clusters} clusters", {"seconds": clustered(rows, clusters, gpus)})


def features(rows: int, queries: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    bank, asked = (F.normalize(torch.randn(count, WIDTH, device=device), dim=1) for count in (rows, queries))
    return bank, asked, torch.randint(NUM_CLASSES, (rows,), device=device)


def ours(bank: torch.Tensor, labels: torch.Tensor, asked: torch.Tensor, device: str) -> float:
    from dinov2_hf.evaluation.knn import knn_class_scores

    neighbors = min(NUM_NEIGHBORS, len(bank))
    return median_seconds(
        lambda: knn_class_scores(bank, labels, asked, num_classes=NUM_CLASSES, ks=(neighbors,), temperature=0.07),
        device,
        repeats=1 if len(bank) < 1000 else 3,
    )


def faiss_gpus(work: Work) -> tuple[int, ...]:
    if importlib.util.find_spec("faiss") is None:
        return ()
    from dinov2_hf.curation.algorithms.faiss_gpus import gpus_for_faiss

    return gpus_for_faiss(work.device)


def with_faiss(bank: torch.Tensor, asked: torch.Tensor, gpus: tuple[int, ...]) -> float:
    import faiss

    from dinov2_hf.curation.algorithms.faiss_gpus import on_gpus

    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(bank.cpu().numpy())
    index, queries = on_gpus(flat, gpus), asked.cpu().numpy()
    return median_seconds(lambda: index.search(queries, NUM_NEIGHBORS), "cpu", repeats=3)


def clustered(rows: int, clusters: int, gpus: tuple[int, ...]) -> float:
    from dinov2_hf.curation.algorithms.clustering import spherical_kmeans
    from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings

    vectors = ArrayEmbeddings(np.random.default_rng(0).standard_normal((rows, WIDTH), dtype=np.float32))
    started = time.perf_counter()
    spherical_kmeans(vectors, clusters, num_iterations=3, gpus=gpus)
    return time.perf_counter() - started


def draw(figure, rows: Rows) -> None:
    found = {name: row["seconds"] for name, row in rows.items() if "seconds" in row}
    axes = figure.subplots()
    bars = axes.barh(list(found), list(found.values()))
    axes.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=8)
    axes.set_xlabel("seconds")
    axes.margins(x=0.15)
    axes.invert_yaxis()
