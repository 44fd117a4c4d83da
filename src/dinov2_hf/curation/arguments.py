"""What a curation is told: a flat YAML recipe, overridden by flags of the same names."""

import dataclasses
import difflib
import math
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from ..output_folders import refuse_urls
from ..recipe_files import read_recipe
from .storage.sources import RETRIEVAL_MODES, ImageSource, named_apart, read_source


SELECTIONS = ("retrieval", "hierarchical", "all")
REPRESENTATIVES = ("smallest_id", "best_quality")
ACCOUNTINGS = ("union", "multiset")
EXECUTORS = ("in_process", "local", "slurm", "ray")
# Fields that do not change the result.
ENGINE_FIELDS = (
    "output_dir", "num_shards", "num_processes", "executor", "executor_options", "batch_size", "num_workers", "device",
    "trust_torchscript", "skip_unreadable", "verify", "overwrite", "progress",
)  # fmt: skip
# Of one launch, not of the curation: they are said again each time, and not kept in its recipe.
LAUNCH_FIELDS = ("trust_torchscript", "verify", "overwrite")
# What `--stage` takes: a name of one stage, or of a step of the paper that is several.
STAGE_GROUPS = {
    "ingest": ("ingest", "hash_deduplicate"),
    "embed": ("fit_descriptor", "embed"),
    "deduplicate": ("copies_train_index", "copies_fill_index", "copies_merge_index", "search_copies", "deduplicate"),
    "relative_deduplicate": (
        "benchmarks_train_index", "benchmarks_fill_index", "benchmarks_merge_index", "search_benchmarks",
        "relative_deduplicate",
    ),
    "retrieve": (
        "retrieval_embed", "retrieval_train_index", "retrieval_fill_index", "retrieval_merge_index",
        "search_retrieval", "kmeans", "assign_clusters", "select",
    ),
    "build": ("build", "report"),
}  # fmt: skip


def _argument(help: str, default: Any = None, **options: Any) -> Any:
    if "default_factory" not in options:
        options["default"] = default
    return field(metadata={"help": help}, **options)


@dataclass
class CurationArguments:
    """Everything a curation is told; defaults are the paper's constants (appendix A) where it gives them.

    The last group, the engine, does not change results (but for the rounding of `bf16` and of another `index`); all
    others do.
    """

    # --- images
    uncurated: list[Any] = _argument("Pools to choose from: paths, Hub names, or mappings.", default_factory=list)
    curated: list[Any] = _argument("Images to retrieve similar ones for, and to include.", default_factory=list)
    benchmarks: list[Any] = _argument(
        "Evaluation images; what resembles them is left out of the pool.", default_factory=list
    )
    output_dir: str = _argument("Folder of the stages, the dataset and the report.", "")
    keep_columns: list[str] = _argument("Further columns of the sources to keep.", default_factory=list)

    # --- ingest
    min_side: int | None = _argument("Drop images whose shorter side has fewer pixels.")
    max_aspect_ratio: float | None = _argument("Drop images longer than this times their shorter side.")
    min_bytes: int | None = _argument("Drop smaller files.")
    max_bytes: int | None = _argument("Drop larger files.")
    max_image_pixels: int | None = _argument("Drop images of more pixels; by default 178,956,970, as Pillow does.")
    filters: list[str] = _argument('Filters of your own, as "package.module:name".', default_factory=list)
    nsfw_model: str | None = _argument("Image classifier that finds unsafe images; none by default.")
    nsfw_label: str = _argument("The label of nsfw_model to drop.", "nsfw")
    nsfw_threshold: float = _argument("Probability of that label from which on an image is dropped.", 0.5)
    face_model: str | None = _argument("Object detector whose findings are blurred; none by default.")
    face_label: str = _argument("The label of face_model to blur.", "face")
    face_threshold: float = _argument("Score from which on it is blurred.", 0.5)
    deduplicate_content: bool = _argument("Drop files of equal bytes.", True)
    perceptual_hash_distance: int | None = _argument(
        "Drop images whose 64-bit perceptual hashes differ in at most so many bits; null: do not.", 0
    )

    # --- embed
    embedder: str = _argument(
        'For finding copies: "perceptual" (no model), a TorchScript file, a model folder or Hub name, or precomputed'
        " vectors (a .parquet or .npy file, or a folder of them).",
        "perceptual",
    )
    retrieval_embedder: str | None = _argument("For retrieval and clustering, the same choices; null: embedder.")
    feature_kind: str = _argument("Feature of a model: cls, mean_patch or last_layers.", "cls")
    torchscript_size: list[int] = _argument(
        "Of a TorchScript file: the shorter side in pixels (SSCD: 288), or height and width, for batches.",
        default_factory=lambda: [288],
    )

    # --- deduplicate (paper, section 3)
    num_neighbors: int = _argument("Neighbours of each image to look at.", 64)
    deduplication_threshold: float = _argument("Cosine above which two images of the pool are copies.", 0.6)
    benchmark_threshold: float = _argument("Cosine above which an image repeats one of a benchmark.", 0.45)
    representative: str = _argument(
        "The image of a group of copies to keep: smallest_id or best_quality.", "smallest_id"
    )
    split_chains: bool = _argument(
        "In a group joined by a chain of copies, keep more than one, so that each dropped image resembles one kept.",
        False,
    )

    # --- select
    selection: str | None = _argument(
        "retrieval, hierarchical or all; default: retrieval where there are curated images, hierarchical where there"
        " is a hierarchy."
    )
    retrieval: str = _argument("sample or cluster, for curated sources that do not say.", "sample")
    retrieval_num_neighbors: int = _argument("Images to retrieve for each curated one (sample).", 4)
    min_similarity: float = _argument("Retrieve nothing below this cosine (sample).", -1.0)
    num_clusters: int = _argument("Clusters of the pool (cluster).", 100_000)
    min_cluster_queries: int = _argument("Take from clusters with more than this many curated images.", 3)
    images_per_cluster: int = _argument("Images to take from each such cluster, at most.", 10_000)
    max_per_source: int = _argument("Images to retrieve for a curated source by cluster, at most.", 1_000_000)
    kmeans_iterations: int = _argument("Rounds of k-means.", 20)
    hierarchy: list[int] = _argument("Clusters of each level, from the finest (hierarchical).", default_factory=list)
    hierarchy_resamplings: int = _argument("Times that each level is learned again from central images.", 10)
    target_size: int | None = _argument("Images to draw from the hierarchy.")
    include_curated: bool = _argument("Whether curated images go into the dataset as they are.", True)
    accounting: str = _argument("union: each image once; multiset: as often as it was retrieved (paper).", "union")
    seed: int = _argument("Of clustering and sampling.", 0)

    # --- build
    image_format: str | None = _argument('Encode anew as "jpeg" or "webp"; null: keep their encoding.')
    strip_metadata: bool = _argument(
        "Leave GPS, EXIF and other metadata out of the image files of the dataset; pixels stay the same.", True
    )
    rows_per_file: int = _argument("Images in a parquet file of the dataset.", 5000)
    license: str | None = _argument("For the dataset card.")

    # --- engine
    num_shards: int | None = _argument("Shards of a stage; by default one for every 5,000 images, at most 1,000.")
    num_processes: int = _argument("Processes that run shards at the same time.", 1)
    executor: str = _argument("in_process (and pools), or local, slurm or ray by datatrove.", "in_process")
    executor_options: dict[str, Any] = _argument("For datatrove's executor, such as partition.", default_factory=dict)
    batch_size: int = _argument("Images in a forward pass.", 64)
    num_workers: int | None = _argument(
        "Processes that decode images for each embedding process; by default up to 8 beside an accelerator, else none."
    )
    device: str | None = _argument("Where models run; by default the accelerator of the process, or the CPU.")
    bf16: bool = _argument("Run models under bf16 autocast.", False)
    index: str | None = _argument("faiss index of the pool, such as Flat; by default chosen from size and memory.")
    index_memory_gb: float = _argument("What the index may take in one process, in 1e9 bytes.", 8.0)
    index_probes: int | None = _argument(
        "Inverted lists that a search visits, fewer faster, more exact; by default a quarter of them, from 64 to 256."
    )
    trust_torchscript: bool = _argument(
        "Run the code in a TorchScript file, which can overwrite any file; not read from a recipe.", False
    )
    skip_unreadable: bool = _argument("Leave out images whose files give read errors, rather than stop.", False)
    verify: bool = _argument("Read finished shards again and compare checksums.", False)
    overwrite: bool = _argument("Make stages of another configuration again.", False)
    progress: bool = _argument("Show progress bars.", True)

    def __post_init__(self) -> None:
        for role in ("uncurated", "curated", "benchmarks"):
            value = getattr(self, role)
            setattr(self, role, [value] if isinstance(value, (str, Mapping, ImageSource)) else list(value or ()))
        self.output_dir = os.path.expanduser(self.output_dir)
        _check(self)

    @property
    def sources(self) -> list[tuple[str, ImageSource]]:
        """(role, source) in the order of their numbering."""
        roles, values = [], []
        for role, given in (("uncurated", self.uncurated), ("curated", self.curated), ("benchmark", self.benchmarks)):
            roles += [role] * len(given)
            values += given
        return list(zip(roles, named_apart([read_source(value) for value in values]), strict=True))

    def retrieval_of(self, source: ImageSource) -> tuple[str, int]:
        """Mode and neighbours of a curated source."""
        num_neighbors = source.retrieval_num_neighbors or self.retrieval_num_neighbors
        return source.retrieval or self.retrieval, num_neighbors

    def includes(self, source: ImageSource) -> bool:
        """Whether a curated source's own images go into the dataset."""
        return self.include_curated if source.include is None else source.include

    @property
    def how_selected(self) -> str:
        if self.selection:
            return self.selection
        return "retrieval" if self.curated else "hierarchical" if self.hierarchy else "all"


def _check(arguments: CurationArguments) -> None:
    """Mistakes that can be known before any work."""
    if not arguments.uncurated:
        raise ValueError("uncurated is empty, but there must be at least one pool of images to choose from.")
    refuse_urls(arguments.output_dir)
    for name, value in vars(arguments).items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} is not a number (nan).")
    for name, choices in (
        ("selection", (None, *SELECTIONS)), ("representative", REPRESENTATIVES), ("accounting", ACCOUNTINGS),
        ("retrieval", RETRIEVAL_MODES), ("executor", EXECUTORS), ("image_format", (None, "jpeg", "webp")),
        ("feature_kind", ("cls", "mean_patch", "last_layers")),
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value not in choices:
            known = [choice for choice in choices if choice is not None]
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}, or not given.")
    for name in ("deduplication_threshold", "benchmark_threshold", "min_similarity"):
        value = getattr(arguments, name)
        if not -1 <= value <= 1:
            raise ValueError(f"{name} is {value}, but a cosine must be from -1 to 1.")
    for name in ("nsfw_threshold", "face_threshold"):
        if not 0 <= getattr(arguments, name) <= 1:
            raise ValueError(f"{name} is {getattr(arguments, name)}, but must be from 0 to 1.")
    for name in (
        "num_neighbors", "retrieval_num_neighbors", "num_clusters", "images_per_cluster", "max_per_source",
        "rows_per_file", "num_processes", "batch_size", "kmeans_iterations",
    ):  # fmt: skip
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} is {getattr(arguments, name)}, but must be at least 1.")
    for name in (
        "num_shards", "target_size", "min_side", "min_bytes", "max_bytes", "max_image_pixels", "index_probes",
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1, or null.")
    if len(arguments.torchscript_size) not in (1, 2) or min(arguments.torchscript_size) < 1:
        raise ValueError(
            f"torchscript_size is {arguments.torchscript_size}, but must be [shorter side] or [height, width]."
        )
    for name in ("min_cluster_queries", "hierarchy_resamplings", "num_workers", "seed"):
        if (getattr(arguments, name) or 0) < 0:
            raise ValueError(f"{name} is {getattr(arguments, name)}, but must be at least 0.")
    if arguments.index_memory_gb <= 0:
        raise ValueError(f"index_memory_gb is {arguments.index_memory_gb}, but must be positive.")
    if arguments.max_aspect_ratio is not None and arguments.max_aspect_ratio < 1:
        raise ValueError(f"max_aspect_ratio is {arguments.max_aspect_ratio}, but must be at least 1, or null.")
    distance = arguments.perceptual_hash_distance
    if distance is not None and not 0 <= distance <= 15:
        raise ValueError(f"perceptual_hash_distance is {distance}, but must be from 0 to 15 bits, or null.")
    if None not in (arguments.min_bytes, arguments.max_bytes) and arguments.min_bytes > arguments.max_bytes:
        raise ValueError(f"min_bytes is {arguments.min_bytes}, more than max_bytes ({arguments.max_bytes}).")
    if arguments.how_selected == "retrieval" and not arguments.curated:
        raise ValueError(
            "selection is 'retrieval', but there are no curated images to retrieve for: name them, `curated`."
        )
    if arguments.how_selected == "hierarchical":
        levels = arguments.hierarchy
        if any(above >= below for below, above in zip(levels, levels[1:], strict=False)):
            raise ValueError(f"hierarchy is {levels}, but each level must have fewer clusters than the one before.")
        if not arguments.hierarchy or any(count < 1 for count in arguments.hierarchy):
            raise ValueError(
                f"hierarchy is {arguments.hierarchy}, but selection 'hierarchical' needs the clusters of each level,"
                " such as [1000, 100, 10]."
            )
        if arguments.target_size is None:
            raise ValueError("target_size is not given, but selection 'hierarchical' needs it.")
    elif arguments.hierarchy or arguments.target_size:
        name = "hierarchy" if arguments.hierarchy else "target_size"
        raise ValueError(
            f"{name} is {getattr(arguments, name)}, but selection is {arguments.how_selected!r}: it is for selection"
            " 'hierarchical'."
        )
    for _, source in arguments.sources:
        if not source.path:
            raise ValueError("a source has an empty path.")


def read_arguments(recipe: str | Path | None, **overrides: Any) -> CurationArguments:
    """A recipe's values, with those given by name in their place.

    Args:
        recipe: a flat YAML file, or None.
        overrides: fields of `CurationArguments`.

    Raises:
        ValueError: the file cannot be read, has an unknown name or a value of another type, or a value is out of its
            range.
    """
    values = {**({} if recipe is None else _read_recipe(recipe)), **overrides}
    known = {entry.name: entry for entry in dataclasses.fields(CurationArguments)}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(f"the recipe has {name!r}, which is no field of a curation{hint}")
        values[name] = _as_type(name, value, known[name].type)
    return CurationArguments(**values)


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    values = read_recipe(recipe)
    if values.get("trust_torchscript"):
        raise ValueError(
            f"config is {str(recipe)!r}, which has trust_torchscript, but a recipe cannot give that trust; leave it"
            " out, and give --trust_torchscript if you trust where the file comes from."
        )
    return values


def _as_type(name: str, value: Any, annotation: Any) -> Any:
    """The value in the type of its field: YAML reads 1e-3 as a string, and 1 as an int."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if value is None and types.NoneType in options:
        return None
    (expected, *_) = (option for option in options if option is not types.NoneType)
    items = get_args(expected)
    expected = get_origin(expected) or expected
    if name in ("uncurated", "curated", "benchmarks"):
        return value  # read with their own messages
    if expected is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, list) and expected is list:
        wrong = [item for item in value if not isinstance(item, items[0]) or isinstance(item, bool)]
        if not wrong:
            return value
        raise ValueError(f"{name} is {value!r}, but {wrong[0]!r} must be of type {items[0].__name__}.")
    elif isinstance(value, expected) and not (expected is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{name} is {value!r}, but must be of type {expected.__name__}.")
