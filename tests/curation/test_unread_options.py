"""Every option of `dinov2-hf curate`, given with another value: it changes something, is refused, or has a reason."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
import yaml

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.cli import main
from dinov2_hf.cli.curate import curate
from dinov2_hf.cli.more_options.curate import more_options
from dinov2_hf.curation import Dropped, stage
from dinov2_hf.curation.arguments import LAUNCH_FIELDS, CurationArguments
from dinov2_hf.curation.plan import plan
from dinov2_hf.options import options_of

from .scenes import write_scenes


# Another value for each, and what the curation is otherwise, where it is not read by one of the plainest kind.
CLUSTERS = {"hierarchy": [4, 2], "target_size": 3}
SAMPLE = {"curated": "curated"}
BY_CLUSTER = {"curated": "curated", "retrieval": "cluster", "num_clusters": 4}
CHANGES = {
    "uncurated": (["other"], {}),
    "curated": (["curated"], {}),
    "benchmarks": (["benchmark"], {}),
    "dataset_url": ("memory://dataset", {}),
    "keep_columns": (["label"], {}),
    "min_side": (5, {}),
    "max_aspect_ratio": (5.0, {}),
    "min_bytes": (5, {}),
    "max_bytes": (50_000, {}),
    "max_image_pixels": (50_000, {}),
    "filters": ([f"{__name__}:drops_nothing"], {}),
    "stages": ([f"{__name__}:drops_none"], {}),
    "nsfw_model": ("classifier", {}),
    "nsfw_label": ("LABEL_1", {"nsfw_model": "classifier"}),
    "nsfw_threshold": (0.9, {"nsfw_model": "classifier"}),
    "face_model": ("detector", {}),
    "face_label": ("nose", {"face_model": "detector"}),
    "face_threshold": (0.9, {"face_model": "detector"}),
    "deduplicate_content": (False, {}),
    "perceptual_hash_distance": (3, {}),
    "embedder": ("model", {}),
    "retrieval_embedder": ("model", SAMPLE),
    "feature_kind": ("mean_patch", {"embedder": "model"}),
    "torchscript_size": ([64], {"embedder": "copies.pt", "trust_torchscript": True}),
    "num_neighbors": (3, {}),
    "deduplication_threshold": (0.9, {}),
    "benchmark_threshold": (0.9, {"benchmarks": "benchmark"}),
    "representative": ("best_quality", {}),
    "split_chains": (True, {}),
    "exclude_copies_of_curated": (True, SAMPLE),
    "exclude_benchmark_copies_of_curated": (True, {"benchmarks": "benchmark", **SAMPLE}),
    "selection": ("all", SAMPLE),
    "retrieval": ("cluster", {"curated": "curated", "num_clusters": 4}),
    "retrieval_num_neighbors": (2, SAMPLE),
    "min_similarity": (0.1, SAMPLE),
    "num_clusters": (3, BY_CLUSTER),
    "min_cluster_queries": (1, BY_CLUSTER),
    "images_per_cluster": (7, BY_CLUSTER),
    "max_per_source": (7, BY_CLUSTER),
    "kmeans_iterations": (3, BY_CLUSTER),
    "hierarchy": ([4, 3], CLUSTERS),
    "hierarchy_resamplings": (2, CLUSTERS),
    "target_size": (4, CLUSTERS),
    "include_curated": (False, SAMPLE),
    "accounting": ("multiset", SAMPLE),
    "seed": (3, {}),
    "image_format": ("webp", {}),
    "rows_per_file": (3, {}),
    "strip_metadata": (False, {}),
    "license": ("mit", {}),
    "num_shards": (2, {}),
    "bf16": (True, {"embedder": "model"}),
    "index": ("IVF2,Flat", {}),
    "index_memory_gb": (1.0, {}),
    "index_probes": (3, {}),
    "search_recall": (0.9, {}),
}
# Options that no stage's configuration tells of, and where their effect is tested or why there is none to see.
REASONS = {
    "output_dir": "where it is written",
    "stages_url": "where stages are kept too: test_stages_in_store.py",
    "num_processes": "speed alone: test_curate.py::test_launches_and_processes_give_the_same_dataset",
    "executor": "who runs it: test_cluster_executors.py",
    "executor_options": "of datatrove: test_cluster_executors.py::test_the_jobs_of_slurm",
    "batch_size": "speed and memory alone",
    "num_workers": "speed alone",
    "device": "speed alone; one that is not there is refused below",
    "trust_torchscript": "test_embedders.py::test_a_torchscript_file_is_a_program_and_runs_only_where_it_is_trusted",
    "skip_unreadable": "test_image_reading.py::test_a_file_that_stays_unreadable_can_be_left_out",
    "max_failure_rate": "test_image_reading.py::test_a_run_of_which_most_images_fail_stops",
    "verify": "test_manifests.py::test_a_checksum_finds_what_a_size_does_not",
    "overwrite": "test_curate.py::test_a_change_is_refused_before_any_work_and_overwrite_keeps_what_it_can",
    "progress": "bars alone",
    "config": "test_arguments.py",
    "stage": "test_curate.py::test_steps_one_by_one",
    "rank": "test_curate.py::test_launches_and_processes_give_the_same_dataset",
    "world_size": "as rank",
    "push_to_hub": "test_builder.py::test_an_upload",
    "private": "test_builder.py::test_an_upload_that_cannot_be_is_found_before_any_work",
}
# With the plainest curation, of a pool by the perceptual descriptor, these are read by nothing.
REFUSED = {
    "nsfw_label": "porn", "nsfw_threshold": "0.9", "face_label": "nose", "face_threshold": "0.9",
    "torchscript_size": "64", "trust_torchscript": None, "feature_kind": "mean_patch", "bf16": None,
    "retrieval_embedder": "model", "benchmark_threshold": "0.5", "include_curated": None, "retrieval": "cluster",
    "retrieval_num_neighbors": "2", "min_similarity": "0.1", "num_clusters": "4", "min_cluster_queries": "1",
    "images_per_cluster": "3", "max_per_source": "3", "kmeans_iterations": "3", "hierarchy_resamplings": "2",
    "accounting": "multiset", "executor_options": "partition=gpu", "target_size": "3", "world_size": "2", "rank": "0",
    "device": "nowhere", "private": None, "exclude_copies_of_curated": None,
    "exclude_benchmark_copies_of_curated": None,
}  # fmt: skip


def drops_nothing(images, columns):
    return [0] * len(images)


@stage("drops_none", title="all", after="embed")
def drops_none(curation, shard):
    return Dropped(np.empty(0, np.int64), "")


class MeanColour(torch.nn.Module):
    def forward(self, pixel_values):
        return pixel_values.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, planted_files):
    from dinov2_hf import DINOv2Config

    folder = tmp_path_factory.mktemp("options")
    for name in ("a", "b"):
        write_scenes(folder / "pool" / name, range(6))
    for name in ("curated", "benchmark"):
        shutil.copytree(planted_files / name, folder / name)
    write_scenes(folder / "other", range(3))
    config = DINOv2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    for name in ("model", "classifier", "detector"):
        DINOv2Model(config).save_pretrained(folder / name)
        DINOv2ImageProcessor().save_pretrained(folder / name)
    torch.jit.script(MeanColour()).save(str(folder / "copies.pt"))
    return folder


def stages_of(folder, values) -> dict[str, str]:
    """The hash of what decides the content of each stage."""
    _, stages = plan(
        CurationArguments(**{"uncurated": "pool", "output_dir": "out", "embedder": "perceptual", **values})
    )
    return {stage.name: stage.folder.config_hash for stage in stages}


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_made(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    value, otherwise = CHANGES[name]
    assert value != getattr(CurationArguments(**{"uncurated": "pool", **otherwise}), name)
    assert stages_of(folder, {**otherwise, name: value}) != stages_of(folder, otherwise)


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_without_effect_is_refused_by_name(folder, monkeypatch, capsys, name):
    monkeypatch.chdir(folder)
    value = [] if REFUSED[name] is None else [REFUSED[name]]
    with pytest.raises(SystemExit) as stop:
        main(["curate", "--uncurated", "pool", "--output_dir", "out", f"--{name}", *value])
    assert name in stop.value.code
    assert "\n" not in stop.value.code
    assert not (folder / "out").exists()


def test_every_option_is_looked_at():
    options = {*options_of(curate), *more_options([])}
    assert options == set(CHANGES) | set(REASONS)
    assert not set(CHANGES) & set(REASONS)
    assert {field.name for field in dataclasses.fields(CurationArguments)} <= options


@pytest.mark.parametrize(
    "words",
    [
        ["--index", "Flat", "--index_probes", "4"],
        ["--index", "Flat", "--index_memory_gb", "1"],
        ["--executor", "slurm", "--num_processes", "4"],
        ["--curated", "curated", "--retrieval", "cluster", "--min_similarity", "0.5"],
        ["--curated", "curated", "--selection", "all", "--retrieval", "cluster"],
    ],
)
def test_options_that_exclude_each_other(folder, monkeypatch, words):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        main(["curate", "--uncurated", "pool", "--output_dir", "out", *words])
    assert "has no effect here" in stop.value.code


def test_a_recipe_may_hold_what_this_curation_does_not_read(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    (tmp_path / "recipe.yaml").write_text("retrieval_num_neighbors: 32\nnsfw_threshold: 0.7\n")
    words = ["--config", str(tmp_path / "recipe.yaml"), "--uncurated", "pool", "--output_dir", str(tmp_path / "out")]
    main(["curate", *words, "--stage", "ingest", "--no-progress"])
    recipe = yaml.safe_load((tmp_path / "out" / "curation.yaml").read_text())
    assert set(recipe) == {field.name for field in dataclasses.fields(CurationArguments)} - set(LAUNCH_FIELDS)


@pytest.mark.parametrize("flag", ["config", "uncurated", "seed", "stage", "executor_options", "bf16"])
def test_an_option_that_is_given_twice(capsys, flag):
    values = {"executor_options": ["a=1", "b=2"], "bf16": []}.get(flag, ["1", "2"])
    with pytest.raises(SystemExit):
        main(["curate", f"--{flag}", *values[:1], f"--{flag}", *values[1:]])
    assert "is given twice; give it once" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [(["a"], "must be NAME=VALUE"), (["a=1", "a=2"], "a is given twice")])
def test_options_of_an_executor_that_are_no_pairs(capsys, words, message):
    with pytest.raises(SystemExit):
        main(["curate", "--executor_options", *words])
    assert message in capsys.readouterr().err
