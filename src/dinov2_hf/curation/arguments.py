"""The arguments of a curation: a flat YAML recipe, overridden by flags of the same names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..options import argument, check_options, options_of, read_mapping
from ..output_folders import refuse_urls
from ..recipe_files import read_recipe
from ..value_ranges import ABOVE_ZERO, AT_LEAST_ONE, NOT_NEGATIVE, SHARE, Range
from .storage.image_source import RETRIEVAL_MODES, ImageSource, named_apart, read_source


COSINE = Range(-1, 1)
# Fields that do not change the result.
ENGINE_FIELDS = (
    "output_dir", "dataset_url", "stages_url", "num_shards", "num_processes", "executor", "executor_options",
    "batch_size", "num_workers", "device", "trust_torchscript", "skip_unreadable", "max_failure_rate", "verify",
    "overwrite", "progress",
)  # fmt: skip
# Fields of one launch, not of the curation: they are given again each time, and not kept in its recipe.
LAUNCH_FIELDS = ("trust_torchscript", "verify", "overwrite")
# Further names for `--stage`: each is one of the paper's steps, and consists of several stages.
STEPS = ("ingest", "embed", "deduplicate", "relative_deduplicate", "retrieve", "build")


@dataclass
class CurationArguments:
    """All arguments of a curation. Defaults are the paper's constants (appendix A) where it gives them.

    The last group, the engine, does not change results (except for the rounding of `bf16` and of another `index`). All
    others do.
    """

    # --- images
    uncurated: list[Any] = argument([], "Pools to choose from: paths, Hub names, or mappings.")
    curated: list[Any] = argument([], "Images to retrieve similar ones for, and to include.")
    benchmarks: list[Any] = argument([], "Evaluation images; what resembles them is left out of the pool.")
    output_dir: str = argument("", "Folder of the stages, the dataset and the report.")
    dataset_url: str | None = argument(
        None, "Address of an empty folder (s3://, gs://, ...) for the dataset; by default dataset in output_dir."
    )
    stages_url: str | None = argument(
        None, "Address of an empty folder where finished stages are kept too, and taken from; by default none."
    )
    keep_columns: list[str] = argument([], "Further columns of the sources to keep.")

    # --- ingest
    min_side: int | None = argument(None, "Drop images whose shorter side has fewer pixels.", AT_LEAST_ONE)
    max_aspect_ratio: float | None = argument(
        None, "Drop images longer than this times their shorter side.", AT_LEAST_ONE
    )
    min_bytes: int | None = argument(None, "Drop smaller files.", AT_LEAST_ONE)
    max_bytes: int | None = argument(None, "Drop larger files.", AT_LEAST_ONE)
    max_image_pixels: int | None = argument(
        None, "Drop images of more pixels; by default 178,956,970, as Pillow does.", AT_LEAST_ONE
    )
    filters: list[str | dict] = argument([], "Names, package.module:function, or mappings of one to its options.")
    nsfw_model: str | None = argument(None, "Image classifier that finds unsafe images; none by default.")
    nsfw_label: str = argument("nsfw", "The label of nsfw_model to drop.")
    nsfw_threshold: float = argument(0.5, "Probability of that label above which an image is dropped.", SHARE)
    face_model: str | None = argument(None, "Object detector whose findings are blurred; none by default.")
    face_label: str = argument("face", "The label of face_model to blur.")
    face_threshold: float = argument(0.5, "Score from which on it is blurred.", SHARE)
    deduplicate_content: bool = argument(True, "Drop files of equal bytes.")
    perceptual_hash_distance: int | None = argument(
        0, "Drop images whose 64-bit perceptual hashes differ in at most so many bits; null: do not.", Range(0, 15)
    )

    # --- embed
    embedder: str | None = argument(
        None,
        'For finding copies: "perceptual" (no model; null: this, for small pools), "efficientnet_lite0" (finds more;'
        " needs the extra `copies`), package.module:function, a TorchScript file, a model folder or Hub name (also"
        " owner/name@revision), or precomputed vectors (.parquet or .npy files).",
    )
    retrieval_embedder: str | None = argument(
        None, "For retrieval and clustering, the same choices; null: embedder, where that is named."
    )
    feature_kind: str = argument("cls", "Feature of a model.", ("cls", "mean_patch", "last_layers"))
    torchscript_size: list[int] = argument(
        [288],
        "Of a TorchScript file: the shorter side in pixels (SSCD: 288), or height and width, for batches.",
        AT_LEAST_ONE,
    )

    # --- deduplicate (paper, section 3)
    num_neighbors: int = argument(64, "Neighbours of each image to look at.", AT_LEAST_ONE)
    deduplication_threshold: float = argument(0.6, "Cosine above which two images of the pool are copies.", COSINE)
    benchmark_threshold: float = argument(0.45, "Cosine above which an image repeats one of a benchmark.", COSINE)
    representative: str = argument("smallest_id", "Of a group, the image to keep.", ("smallest_id", "best_quality"))
    exclude_copies_of_curated: bool = argument(
        False, "Drop images of the pool that are copies of curated images which go into the dataset as they are."
    )
    exclude_benchmark_copies_of_curated: bool = argument(
        False, "Leave curated images that resemble one of a benchmark out of the dataset; they are counted anyway."
    )
    split_chains: bool = argument(False, "Of a chain of copies keep so many that each dropped one resembles one kept.")

    # --- select
    selection: str | None = argument(
        None,
        "From the pool; by default retrieval where there are curated images, hierarchical where there is a hierarchy.",
        ("retrieval", "hierarchical", "all"),
    )
    retrieval: str = argument("sample", "For curated sources that do not say.", RETRIEVAL_MODES)
    retrieval_num_neighbors: int = argument(4, "Images to retrieve for each curated one (sample).", AT_LEAST_ONE)
    min_similarity: float = argument(-1.0, "Retrieve nothing below this cosine (sample).", COSINE)
    num_clusters: int = argument(100_000, "Clusters of the pool (cluster).", AT_LEAST_ONE)
    min_cluster_queries: int = argument(3, "Take from clusters with more than this many curated images.", NOT_NEGATIVE)
    images_per_cluster: int = argument(10_000, "Images to take from each such cluster, at most.", AT_LEAST_ONE)
    max_per_source: int = argument(1_000_000, "Images for a curated source by cluster, at most.", AT_LEAST_ONE)
    kmeans_iterations: int = argument(20, "Rounds of k-means.", AT_LEAST_ONE)
    hierarchy: list[int] = argument([], "Clusters of each level, from the finest (hierarchical).", AT_LEAST_ONE)
    hierarchy_resamplings: int = argument(10, "Times that each level is learned from central images.", NOT_NEGATIVE)
    target_size: int | None = argument(None, "Images to draw from the hierarchy.", AT_LEAST_ONE)
    include_curated: bool = argument(True, "Whether curated images go into the dataset as they are.")
    accounting: str = argument(
        "union", "union: each image once; multiset: as often as it was retrieved (paper).", ("union", "multiset")
    )
    seed: int = argument(0, "Of clustering and sampling.", NOT_NEGATIVE)
    stages: list[str | dict] = argument(
        [], "semdedup, density_pruning, balance, package.module:function, or mappings of one to its options."
    )

    # --- build
    image_format: str | None = argument(None, "Encode anew; null: keep their encoding.", ("jpeg", "webp"))
    strip_metadata: bool = argument(
        True, "Leave GPS, EXIF and other metadata out of the image files of the dataset; pixels stay the same."
    )
    rows_per_file: int = argument(5000, "Images in a parquet file of the dataset.", AT_LEAST_ONE)
    license: str | None = argument(None, "For the dataset card.")

    # --- engine
    num_shards: int | None = argument(
        None,
        "Shards of a stage, while images are read of each source; by default one for 5,000 images, at most 1,000.",
        AT_LEAST_ONE,
    )
    num_processes: int = argument(1, "Processes that run shards at the same time.", AT_LEAST_ONE)
    executor: str = argument(
        "in_process",
        "in_process (and pools), or local, slurm or ray by datatrove.",
        ("in_process", "local", "slurm", "ray"),
    )
    executor_options: dict[str, Any] = argument({}, "For datatrove's executor, such as partition.")
    batch_size: int = argument(64, "Images in a forward pass.", AT_LEAST_ONE)
    num_workers: int | None = argument(
        None,
        "Processes that decode images for each that embeds; by default up to 8 beside an accelerator, else none.",
        NOT_NEGATIVE,
    )
    device: str | None = argument(None, "Where models run; by default the accelerator of the process, or the CPU.")
    bf16: bool = argument(False, "Run models under bf16 autocast.")
    index: str | None = argument(None, "faiss index of the pool, such as Flat; null: by size and memory.")
    search_recall: float = argument(
        0.99,
        "Share of the true neighbours that a search which is not exhaustive shall find, measured on a sample; 1:"
        " search exhaustively.",
        Range(0, 1, low_included=False),
    )
    index_memory_gb: float = argument(8.0, "What the index may take in one process, in 1e9 bytes.", ABOVE_ZERO)
    index_probes: int | None = argument(
        None,
        "Inverted lists that a search visits; by default so many that search_recall is reached.",
        AT_LEAST_ONE,
    )
    trust_torchscript: bool = argument(
        False, "Run the code in a TorchScript file, which can overwrite any file; not read from a recipe."
    )
    skip_unreadable: bool = argument(False, "Leave out images whose files give read errors, rather than stop.")
    max_failure_rate: float = argument(
        0.5, "Stop where a larger share of a shard's images, and at least 100, are broken or unreadable.", SHARE
    )
    verify: bool = argument(False, "Read finished shards again and compare checksums.")
    overwrite: bool = argument(False, "Make stages of another configuration again.")
    progress: bool = argument(True, "Show progress bars.")

    def __post_init__(self) -> None:
        for role in ("uncurated", "curated", "benchmarks"):
            value = getattr(self, role)
            setattr(self, role, [value] if isinstance(value, (str, Mapping, ImageSource)) else list(value or ()))
        self.output_dir = os.path.expanduser(self.output_dir)
        check_options(self)
        _check(self)

    @property
    def sources(self) -> list[tuple[str, ImageSource]]:
        """(role, source) in the order of their numbers."""
        roles, values = [], []
        for role, given in (("uncurated", self.uncurated), ("curated", self.curated), ("benchmark", self.benchmarks)):
            roles += [role] * len(given)
            values += given
        return list(zip(roles, named_apart([read_source(value) for value in values]), strict=True))

    @property
    def named_filters(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, options) of `filters`."""
        return read_named("filters", self.filters)

    @property
    def named_stages(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, options) of `stages`."""
        return read_named("stages", self.stages)

    def retrieval_of(self, source: ImageSource) -> tuple[str, int]:
        """Mode and neighbours of a curated source."""
        num_neighbors = source.retrieval_num_neighbors or self.retrieval_num_neighbors
        return source.retrieval or self.retrieval, num_neighbors

    @property
    def modes_of_sources(self) -> dict[str, list]:
        """The results of `retrieval_of` by name of the curated source; empty without retrieval."""
        if self.how_selected != "retrieval":
            return {}
        return {source.name: list(self.retrieval_of(source)) for role, source in self.sources if role == "curated"}

    @property
    def retrieval_modes(self) -> set[str]:
        """The modes of retrieval that occur."""
        return {mode for mode, _ in self.modes_of_sources.values()}

    def includes(self, source: ImageSource) -> bool:
        """Whether a curated source's own images go into the dataset."""
        return self.include_curated if source.include is None else source.include

    @property
    def copy_embedder(self) -> str:
        """The embedder that finds copies: `embedder`, or the perceptual descriptor, which needs no model."""
        return self.embedder or "perceptual"

    @property
    def included_curated(self) -> list[int]:
        """The numbers of the curated sources whose own images go into the dataset."""
        sources = enumerate(self.sources)
        return [number for number, (role, source) in sources if role == "curated" and self.includes(source)]

    @property
    def included_names(self) -> list[str]:
        """The names of `included_curated`. They do not change when other sources are added."""
        return [self.sources[number][1].name for number in self.included_curated]

    @property
    def excludes_copies_of_curated(self) -> bool:
        return self.exclude_copies_of_curated and bool(self.included_curated)

    @property
    def finds_leaks(self) -> bool:
        """Whether curated images that go into the dataset are compared with benchmarks."""
        return bool(self.benchmarks) and bool(self.included_curated)

    @property
    def compares_curated(self) -> bool:
        """Whether `embedder` makes vectors of curated images, for the comparison with the pool or the benchmarks."""
        return self.finds_leaks or self.excludes_copies_of_curated

    @property
    def how_selected(self) -> str:
        if self.selection:
            return self.selection
        return "retrieval" if self.curated else "hierarchical" if self.hierarchy else "all"


def read_named(field: str, values: list[str | dict]) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a recipe: each is a name, or a mapping of a name to options."""
    found = []
    for value in values:
        ((name, options),) = value.items() if isinstance(value, dict) and len(value) == 1 else ((value, {}),)
        if not isinstance(name, str) or not isinstance(options or {}, dict):
            raise ValueError(f"{field} has {value!r}, but must have names, or mappings of one name to its options.")
        found.append((name, options or {}))
    return found


def _check(arguments: CurationArguments) -> None:
    """Check values that depend on each other, before any work."""
    if not arguments.uncurated:
        raise ValueError("uncurated is empty, but there must be at least one pool of images to choose from.")
    _refuse_url(arguments.output_dir)
    _ = arguments.named_filters, arguments.named_stages
    if len(arguments.torchscript_size) not in (1, 2):
        raise ValueError(
            f"torchscript_size is {arguments.torchscript_size}, but must be [shorter side] or [height, width]."
        )
    least, most = arguments.min_bytes, arguments.max_bytes
    if least is not None and most is not None and least > most:
        raise ValueError(f"min_bytes is {least}, more than max_bytes ({most}).")
    if arguments.how_selected == "retrieval" and not arguments.curated:
        raise ValueError(
            "selection is 'retrieval', but there are no curated images to retrieve for: name them with `curated`."
        )
    levels = arguments.hierarchy
    if arguments.how_selected == "hierarchical":
        if not levels or any(above >= below for below, above in zip(levels, levels[1:], strict=False)):
            raise ValueError(
                f"hierarchy is {levels}, but selection 'hierarchical' needs the clusters of each level, and each level"
                " must have fewer clusters than the one before, such as [1000, 100, 10]."
            )
        if arguments.target_size is None:
            raise ValueError("target_size is not given, but selection 'hierarchical' needs it.")
    elif levels or arguments.target_size:
        name = "hierarchy" if levels else "target_size"
        raise ValueError(
            f"{name} is {getattr(arguments, name)}, but selection is {arguments.how_selected!r}: it is for selection"
            " 'hierarchical'."
        )
    for _, source in arguments.sources:
        if not source.path:
            raise ValueError("a source has an empty path.")


def _refuse_url(output_dir: str) -> None:
    try:
        refuse_urls(output_dir)
    except ValueError as error:
        raise ValueError(
            f"{error} The dataset itself can be written to an address (--dataset_url), and finished stages can be kept"
            " at one (--stages_url)."
        ) from None


def read_arguments(recipe: str | Path | None, **overrides: Any) -> CurationArguments:
    """The values of a recipe, overridden by values given by name.

    Args:
        recipe: a flat YAML file, or None.
        overrides: fields of `CurationArguments`.

    Raises:
        ValueError: the file cannot be read, has an unknown name or a value of a wrong type, or a value is out of its
            range.
    """
    values = {} if recipe is None else read_recipe(recipe)
    if values.get("trust_torchscript"):
        raise ValueError(
            f"config is {str(recipe)!r}, which has trust_torchscript, but a recipe cannot give that trust; leave it"
            " out, and give --trust_torchscript if you trust where the file comes from."
        )
    return CurationArguments(**read_mapping(options_of(CurationArguments), {**values, **overrides}, "the recipe"))
