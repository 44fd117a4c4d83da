"""Options that a curation does not read. On the command line, such an option is an error.

A recipe may have them, because it serves curations with and without models, clusters and benchmarks.
"""

from collections.abc import Callable, Iterable

from .arguments import CurationArguments
from .embedders import kind_of_embedder
from .stages.embed import specs_of
from .stages.stage import find_stage


# Fields, whether they are read, and the only reader.
READERS: tuple[tuple[str, Callable[[CurationArguments], bool], str], ...] = (
    ("nsfw_label nsfw_threshold", lambda a: a.nsfw_model is not None, "--nsfw_model"),
    ("face_label face_threshold", lambda a: a.face_model is not None, "--face_model"),
    ("torchscript_size trust_torchscript", lambda a: "torchscript" in _kinds(a), "an embedder in a TorchScript file"),
    ("feature_kind", lambda a: "model" in _kinds(a), "an embedder that is a model"),
    ("bf16", lambda a: {"model", "torchscript"} & _kinds(a), "an embedder that is a network"),
    ("batch_size num_workers", lambda a: _kinds(a) - {"precomputed"}, "an embedder that computes"),
    ("retrieval_embedder", lambda a: a.how_selected != "all", "a selection from the pool (--curated or --hierarchy)"),
    ("benchmark_threshold", lambda a: a.benchmarks, "--benchmarks"),
    (
        "exclude_copies_of_curated",
        lambda a: a.excludes_copies_of_curated,
        "--curated sources that go into the dataset",
    ),
    (
        "exclude_benchmark_copies_of_curated",
        lambda a: a.finds_leaks,
        "--benchmarks beside --curated sources that go into the dataset",
    ),
    ("include_curated", lambda a: a.curated, "--curated"),
    ("retrieval", lambda a: a.how_selected == "retrieval" and _is_left_open(a, "retrieval"), "--curated sources"),
    (
        "retrieval_num_neighbors min_similarity",
        lambda a: "sample" in a.retrieval_modes,
        "--curated sources that are retrieved for by sample",
    ),
    (
        "num_clusters min_cluster_queries images_per_cluster max_per_source",
        lambda a: "cluster" in a.retrieval_modes,
        "--curated sources that are retrieved for by cluster",
    ),
    (
        "kmeans_iterations",
        lambda a: "cluster" in a.retrieval_modes or a.how_selected == "hierarchical",
        "--retrieval cluster or --hierarchy",
    ),
    ("hierarchy_resamplings", lambda a: a.how_selected == "hierarchical", "--hierarchy"),
    ("accounting", lambda a: a.how_selected == "retrieval", "--curated"),
    ("executor_options", lambda a: a.executor != "in_process", "--executor local, slurm or ray"),
    ("num_processes", lambda a: a.executor != "slurm", "executors that start the processes; Slurm does that itself"),
    ("index_memory_gb", lambda a: a.index is None, "the choice of an index, which --index makes"),
    ("search_recall", lambda a: a.index != "Flat", "an index of inverted lists"),
    ("index_probes", lambda a: a.index != "Flat", "an index of inverted lists"),
)


def refuse_unread_options(arguments: CurationArguments, given: Iterable[str]) -> None:
    """
    Check that every given option is read, by the curation or by a stage of the user.

    Raises:
        ValueError: an option is not read; the message says what would read it.
    """
    of_stages = {field for name, _ in arguments.named_stages for field in find_stage(name).parameters}
    for fields, is_read, reader in READERS:
        for name in set(fields.split()) & set(given) - of_stages:
            if not is_read(arguments):
                raise ValueError(f"--{name} has no effect here: only {reader} reads it; leave it out.")


def _kinds(arguments: CurationArguments) -> set[str]:
    return {kind_of_embedder(spec) for spec in specs_of(arguments)}


def _is_left_open(arguments: CurationArguments, field: str) -> bool:
    """Whether a curated source does not set this itself."""
    return any(getattr(source, field) is None for role, source in arguments.sources if role == "curated")
