"""Recipes, and mistakes that are found before any work."""

import pytest

from dinov2_hf.curation import CurationArguments, read_arguments


def test_a_recipe_and_what_overrides_it(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "uncurated: [pool]\nbenchmarks: [{path: eval, split: test}]\nbenchmark_threshold: 4e-1\nnum_clusters: 10\n"
    )
    arguments = read_arguments(tmp_path / "recipe.yaml", num_clusters=20)
    assert (arguments.benchmark_threshold, arguments.num_clusters) == (0.4, 20)
    assert [(role, source.name, source.split) for role, source in arguments.sources] == [
        ("uncurated", "pool", "all"), ("benchmark", "eval", "test"),
    ]  # fmt: skip
    assert arguments.how_selected == "all"
    assert CurationArguments(uncurated="pool", curated="others").how_selected == "retrieval"


@pytest.mark.parametrize("name", ["curate_lvd", "curate_small"])
def test_the_recipes_can_be_read(name):
    arguments = read_arguments(name, uncurated=["pool"], curated=["others"])
    assert arguments.deduplication_threshold == 0.6
    assert arguments.how_selected == "retrieval"


def test_the_defaults_are_the_paper_s():
    arguments = CurationArguments(uncurated="pool")
    assert (arguments.num_neighbors, arguments.deduplication_threshold, arguments.benchmark_threshold) == (
        64,
        0.6,
        0.45,
    )
    assert (arguments.num_clusters, arguments.min_cluster_queries, arguments.images_per_cluster) == (
        100_000,
        3,
        10_000,
    )
    assert (arguments.retrieval_num_neighbors, arguments.max_per_source) == (4, 1_000_000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"uncurated": []}, "uncurated is empty"),
        ({"deduplication_threshold": 1.1}, "`deduplication_threshold` is 1.1; it must be between -1 and 1"),
        ({"benchmark_threshold": -2}, "`benchmark_threshold` is -2.0; it must be between -1"),
        ({"benchmark_threshold": float("nan")}, "`benchmark_threshold` is nan; it must be between -1"),
        ({"min_similarity": 60}, "`min_similarity` is 60.0"),
        ({"num_neighbors": 0}, "`num_neighbors` is 0; it must be at least 1"),
        ({"num_neighbors": "many"}, "`num_neighbors` is many; it must be a whole number"),
        ({"num_neighbors": True}, "`num_neighbors` is True; it must be a whole number"),
        ({"num_neighbors": None}, "`num_neighbors` is null; it must be a whole number"),
        ({"num_shards": 0}, "`num_shards` is 0; it must be at least 1"),
        ({"max_aspect_ratio": 0.5}, "`max_aspect_ratio` is 0.5"),
        ({"perceptual_hash_distance": 40}, "`perceptual_hash_distance` is 40; it must be between 0 and 15"),
        (
            {"representative": "prettiest"},
            '`representative` is "prettiest"; it must be "smallest_id" or "best_quality"',
        ),
        ({"selection": "retrieval"}, "selection is 'retrieval', but there are no curated images"),
        ({"selection": "hierarchical"}, r"hierarchy is \[\], but selection 'hierarchical' needs"),
        ({"selection": "hierarchical", "hierarchy": [10, 20], "target_size": 5}, "must have fewer clusters"),
        ({"selection": "hierarchical", "hierarchy": [20, 10]}, "target_size is not given"),
        (
            {"deduplication_treshold": 0.5},
            "unknown key `deduplication_treshold`. Did you mean `deduplication_threshold`",
        ),
        ({"torchscript_size": [1, 2, 3]}, "torchscript_size is .*, but must be .shorter side. or"),
        ({"nsfw_threshold": 2}, "`nsfw_threshold` is 2.0; it must be between 0 and 1"),
        ({"torchscript_size": ["x"]}, "`torchscript_size` is x; it must be a whole number"),
        ({"filters": [3]}, "`filters` is 3; it must be a text"),
        ({"min_bytes": 9, "max_bytes": 3}, r"min_bytes is 9, more than max_bytes \(3\)"),
        ({"target_size": 9}, "target_size is 9, but selection is 'all': it is for selection 'hierarchical'"),
        ({"curated": ["others"], "hierarchy": [2]}, r"hierarchy is \[2\], but selection is 'retrieval'"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(ValueError, match=message):
        read_arguments(None, **{"uncurated": ["pool"], **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must be a list of `name: value` lines"),
        ("a: [", "is not valid YAML in line 1"),
        (None, "is neither a file nor a recipe of the package"),
        ("seed: 1\nuncurated: a\nseed: 2\n", "has `seed` twice, in the lines 1 and 3"),
    ],
)
def test_a_recipe_that_is_none(tmp_path, text, message):
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_arguments(tmp_path / "recipe.yaml")


def test_mistakes_of_a_launch(planted):
    with pytest.raises(ValueError, match="rank and world_size must both be given"):
        planted.curate("ingest", rank=0)
    with pytest.raises(ValueError, match="rank is 2, but must be from 0 to world_size - 1 .1."):
        planted.curate("ingest", rank=2, world_size=2)
    with pytest.raises(ValueError, match="rank needs stage"):
        planted.curate(rank=0, world_size=2)
    with pytest.raises(ValueError, match="output_dir is not given"):
        planted.curate(output_dir="")
    with pytest.raises(ValueError, match="retrieval_num_neighbors is 9, but only 7 images of the pool are left"):
        planted.curate(retrieval_num_neighbors=9)


def test_numbers_that_no_pool_of_this_size_allows(planted):
    """Known before an image is read; what deduplication leaves is known later."""
    curated = {"path": str(planted.folder / "curated"), "retrieval": "cluster"}
    with pytest.raises(ValueError, match="num_clusters is 100000, but the pool has only 12 images"):
        planted.curate(curated=[curated])
    with pytest.raises(ValueError, match="retrieval_num_neighbors is 13, but the pool has only 12 images"):
        planted.curate(retrieval_num_neighbors=13)
    with pytest.raises(ValueError, match="hierarchy is 20, but the pool has only 12 images"):
        planted.curate(curated=[], hierarchy=[20, 2], target_size=3)
    with pytest.raises(ValueError, match="index 'HNSW32' is not among the tested forms"):
        planted.curate(index="HNSW32")
    assert not (planted.folder / "out").exists()
