"""Whose the output folder is: nothing is deleted or replaced that a curation did not write."""

import shutil

import pytest
import yaml

from dinov2_hf.curation.launch import _note_recipe
from dinov2_hf.output_folders import part_writer, read_marker, sole_writer, write_marker
from tests import forked_python

from .scenes import write_scenes


def tree(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("source", "output", "relation"),
    [
        ("proj/dataset/data", "proj", "is around"),
        ("photos", "photos/curated", "is inside"),
        ("photos", "photos", "is the same as"),
        ("photos", "photos/../photos/curated", "is inside"),
    ],
)
@pytest.mark.parametrize("role", ["uncurated", "curated", "benchmarks"])
def test_an_output_that_overlaps_a_source_is_refused(planted, tmp_path, source, output, relation, role):
    write_scenes(tmp_path / source, range(3))
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=f"the output .* {relation} the source"):
        planted.curate(**{role: str(tmp_path / source)}, output_dir=str(tmp_path / output), overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("field", ["embedder", "retrieval_embedder", "nsfw_model", "face_model"])
def test_an_output_that_overlaps_a_model_or_vectors_is_refused(planted, tmp_path, field):
    shutil.copytree(planted.folder / "vectors", tmp_path / "mine" / "vectors")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="is around the source .*mine/vectors"):
        planted.curate(**{field: str(tmp_path / "mine" / "vectors")}, output_dir=str(tmp_path / "mine"))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["stages", "dataset/data/train-0.parquet", "report.html", "report.json", "dropped.parquet", "curation.yaml"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_user_has_in_the_output_folder_is_not_replaced(planted, tmp_path, name, overwrite):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=f"{name.split('/')[0]} was not written by dinov2_hf .* another --output_dir"):
        planted.curate(overwrite=overwrite)
    assert tree(tmp_path) == before


def test_other_files_of_the_output_folder_stay(planted, tmp_path):
    """Beside the dataset, in `stages`, and through `--overwrite`."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    planted.curate()
    assert read_marker(tmp_path / "out")["kind"] == "curation"
    (tmp_path / "out" / "stages" / "my_experiment").mkdir()
    (tmp_path / "out" / "stages" / "my_experiment" / "weights.pt").write_text("mine")
    (tmp_path / "out" / "stages" / ".DS_Store").touch()
    (tmp_path / "out" / "dataset" / ".DS_Store").touch()
    curated = {"path": str(planted.folder / "curated"), "retrieval": "cluster"}
    planted.curate(curated=[curated], num_clusters=7, min_cluster_queries=0, overwrite=True)
    assert (tmp_path / "out" / "stages" / "my_experiment" / "weights.pt").read_text() == "mine"
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out" / "stages" / "search_retrieval").exists()  # of the earlier configuration
    (tmp_path / "out" / "dataset" / "mine.txt").touch()
    with pytest.raises(ValueError, match="dataset holds mine.txt, which dinov2_hf did not write"):
        planted.curate(overwrite=True)
    assert (tmp_path / "out" / "stages" / "kmeans").exists()  # refused before anything was removed


@pytest.mark.parametrize("name", ["stages", "dataset", "report.html", "report.json", "curation.yaml", "stages/embed"])
def test_nothing_is_written_through_links(planted, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    write_marker(tmp_path / "out", "curation")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
        planted.curate(overwrite=True)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_of_another_kind(planted, tmp_path):
    (tmp_path / "out").mkdir()
    write_marker(tmp_path / "out", "run")
    with pytest.raises(ValueError, match="holds a training run, and a curation is not written into that"):
        planted.curate()
    (tmp_path / "file").write_text("mine")
    for output, message in (("file", "is a file"), ("file/out", "cannot be created")):
        with pytest.raises(ValueError, match=message):
            planted.curate(output_dir=str(tmp_path / output))
    with pytest.raises(ValueError, match="s3://bucket/out is a URL, but output is only written to folders"):
        planted.curate(output_dir="s3://bucket/out")


def test_an_edited_card_stays_until_there_is_another(planted, tmp_path):
    card = planted.curate().output_dir / "dataset" / "README.md"
    card.write_text("mine")
    planted.curate()
    assert card.read_text() == "mine"
    planted.curate(license="mit", overwrite=True)
    assert "license: mit" in card.read_text()


@pytest.mark.slow
def test_a_second_curation_of_one_folder_is_refused(planted, tmp_path):
    """A whole one beside any other. Launches that share a stage are not refused beside each other."""
    with sole_writer(tmp_path / "out"), pytest.raises(ValueError, match="out is being written by another process"):
        planted.curate()
    planted.curate("ingest", rank=1, world_size=2)
    with part_writer(tmp_path / "out", "ingest.0-of-2"):
        planted.curate("ingest", rank=1, world_size=2)
        for rank, stage in ((0, "ingest"), (None, None), (None, "ingest")):
            with pytest.raises(ValueError, match="out is being written by another process"):
                planted.curate(stage, rank=rank, world_size=None if rank is None else 2)
    planted.curate()


@pytest.mark.slow
def test_two_commands_at_once(planted, tmp_path):
    """Of two that start together one does the work; the other ends with a sentence."""
    recipe = tmp_path / "recipe.yaml"
    values = {name: value for name, value in vars(planted.arguments()).items() if value is not None}
    recipe.write_text(yaml.safe_dump(values))
    command = ["-m", "dinov2_hf.cli", "curate", "--config", str(recipe)]
    with sole_writer(tmp_path / "out"):
        second = forked_python.run(command)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("error: ")
    assert "is being written by another process" in second.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr


def test_the_recipe_of_a_run_does_not_overwrite(planted, tmp_path):
    planted.curate(overwrite=True, verify=True)
    recipe = yaml.safe_load((tmp_path / "out" / "curation.yaml").read_text())
    assert not {"overwrite", "verify", "trust_torchscript"} & set(recipe)


def test_what_file_browsers_leave_does_not_block_a_rerun(planted, planted_files, tmp_path):
    for name in ("pool", "vectors"):
        (tmp_path / name).unlink()
        shutil.copytree(planted_files / name, tmp_path / name)
    made = planted.curate().folders["ingest"].shard(0).stat().st_ino
    for folder in ("pool", "vectors", "out", "out/stages", "out/stages/ingest", "out/dataset", "out/dataset/data"):
        for name in (".DS_Store", "Thumbs.db"):
            (tmp_path / folder / name).write_bytes(b"view")
    for overwrite in (False, True):
        assert planted.curate(overwrite=overwrite).folders["ingest"].shard(0).stat().st_ino == made


def test_what_may_be_a_secret_is_not_in_the_recipe_of_a_run(planted, tmp_path, monkeypatch):
    """Nor in the name of a source, which is in the report and the card."""
    url = "https://me:password@example.org/pool.parquet?X-Amz-Signature=a.b"
    arguments = planted.arguments(uncurated=[{"path": url}], executor_options={"token": "hf_" + "a" * 30})
    (tmp_path / "out").mkdir()
    _note_recipe(arguments, tmp_path / "out")
    text = (tmp_path / "out" / "curation.yaml").read_text()
    assert "https://example.org/pool.parquet" in text
    assert not [word for word in ("password", "Signature", "aaaaa") if word in text]
    assert arguments.sources[0][1].name == "pool"
