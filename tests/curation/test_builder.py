"""The curation as a builder of `datasets`, the command, and the upload."""

import json
import shutil

import datasets
import numpy as np
import pytest

from dinov2_hf.cli import main
from dinov2_hf.curation import CuratedImages
from dinov2_hf.curation.hub_dataset import push_dataset
from dinov2_hf.curation.storage.image_source import read_source
from dinov2_hf.curation.storage.sources import OpenSources
from dinov2_hf.hub_repos import prepare_repo
from tests.hub.conftest import client, environment, hub, session_hub, start_client  # noqa: F401

from .scenes import encoded, scene


def builder(planted, tmp_path, **changes) -> CuratedImages:
    values = vars(planted.arguments(**changes))
    return CuratedImages(cache_dir=str(tmp_path / "cache"), **{k: v for k, v in values.items() if k != "output_dir"})


def test_prepared_once_and_cached_by_what_goes_into_it(planted, tmp_path):
    first = builder(planted, tmp_path)
    assert isinstance(first, datasets.DatasetBuilder)
    first.download_and_prepare()
    found = first.as_dataset(split="train")
    assert found["id"] == ["pool/0", "pool/7", "pool/8", "curated/0", "curated/1"]
    assert found.features["image"] == datasets.Image()
    assert found[1]["image"].convert("RGB").tobytes() == scene(7).tobytes()

    again = builder(planted, tmp_path, num_processes=2, batch_size=3)  # the engine changes no result
    assert again.cache_dir == first.cache_dir
    for path in (first.work_dir / "stages").iterdir():  # were it made again, this would fail
        path.rename(path.with_name(f"moved_{path.name}"))
    again.download_and_prepare()
    assert again.as_dataset(split="train").to_dict() == found.to_dict()

    other = builder(planted, tmp_path, retrieval_num_neighbors=1)
    assert other.cache_dir != first.cache_dir


def test_new_files_are_another_dataset(planted, tmp_path):
    from .scenes import write_scenes

    pool = write_scenes(tmp_path / "mine", range(3))
    before = builder(planted, tmp_path, uncurated=str(pool)).fingerprint
    (pool / "002.png").write_bytes(encoded(scene(50)))
    assert builder(planted, tmp_path, uncurated=str(pool)).fingerprint != before


def test_new_vectors_are_another_dataset(planted, tmp_path):
    shutil.copytree(planted.folder / "vectors", tmp_path / "mine")
    before = builder(planted, tmp_path, embedder=str(tmp_path / "mine")).fingerprint
    np.save(tmp_path / "mine" / "pool.npy", np.load(tmp_path / "mine" / "pool.npy")[::-1])
    assert builder(planted, tmp_path, embedder=str(tmp_path / "mine")).fingerprint != before


def test_the_command(planted, tmp_path, capsys):
    words = [
        "curate", "--uncurated", planted.folder / "pool", "--curated", planted.folder / "curated", "--embedder",
        planted.folder / "vectors", "--output_dir", tmp_path / "out", "--retrieval_num_neighbors", 2,
        "--num_shards", 2, "--no-progress", "--perceptual_hash_distance", "null",
    ]  # fmt: skip
    main([str(word) for word in [*words, "--stage", "ingest"]])
    assert "ingest                   4 of 4 shards, 14 rows" in capsys.readouterr().out
    main([str(word) for word in words])
    printed = capsys.readouterr().out
    assert "no copies in the pool                  8   dropped: 4 copy in the pool (cosine > 0.6)" in printed
    assert "in the dataset                         5" in printed
    assert (tmp_path / "out" / "report.html").exists()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in [*words, "--deduplication_threshold", 2]])
    assert stop.value.code == 2
    assert "error: `--deduplication_threshold` is 2.0; it must be between -1 and 1." in capsys.readouterr().err


def test_an_upload_that_cannot_be_is_found_before_any_work(planted, tmp_path):
    words = ["curate", "--uncurated", planted.folder / "pool", "--output_dir", tmp_path / "out", "--no-progress"]
    words = [str(word) for word in words]
    for more, message in (
        (["--push_to_hub", "ada/images"], "ada/images cannot be prepared for an upload: HF_HUB_OFFLINE is set"),
        (["--push_to_hub", "a b"], "the repository a b cannot be prepared for an upload: "),
        (["--push_to_hub", "ada/images", "--stage", "ingest"], "needs the whole dataset"),
        (["--private"], "`--private` is for a new repository on the Hub; give `--push_to_hub` too"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*words, *more])
        assert message in stop.value.code
        assert "\n" not in stop.value.code
    assert not (tmp_path / "out").exists()


def prepare(repo_id, revision=None):
    """Runs in a process of its own, which knows the fake Hub."""
    return prepare_repo(repo_id, repo_type="dataset", revision=revision)


def test_a_repository_is_prepared_before_any_work(hub, client):  # noqa: F811
    assert client(prepare, "ada/images") == "ada/images"
    with pytest.raises(ValueError, match="the repository eve/images cannot be prepared"):
        client(prepare, "eve/images")


def upload(output_dir, repo_id, revision=None):
    """Runs in a process of its own, which knows the fake Hub."""
    return push_dataset(output_dir, repo_id, revision=revision)


def ids_of_source(name, revision=None):
    """Runs in a process of its own, which knows the fake Hub."""
    sources = OpenSources([("uncurated", read_source({"path": name, "id_column": "id", "revision": revision}))])
    return [sources.image_id(row) for row in range(len(sources))]


def test_an_unfinished_curation_is_not_uploaded(planted, tmp_path):
    planted.curate("ingest")
    with pytest.raises(ValueError, match="holds no finished dataset: run `dinov2-hf curate` to its end first"):
        push_dataset(tmp_path / "out", "ada/images")
    planted.curate()
    with pytest.raises(ValueError, match="ada/images cannot be prepared for an upload: HF_HUB_OFFLINE is set"):
        push_dataset(tmp_path / "out", "ada/images")  # HF_HUB_OFFLINE


def test_the_card_describes_the_dataset(planted, tmp_path):
    from huggingface_hub import DatasetCard

    from dinov2_hf.curation import read_arguments
    from dinov2_hf.curation.report.dataset_card import dataset_card

    curation = planted.curate(license="cc-by-4.0")
    report = json.loads((curation.output_dir / "report.json").read_text())
    card = DatasetCard(dataset_card(read_arguments(curation.output_dir / "curation.yaml"), report, "ada/images"))
    assert card.data.license == "cc-by-4.0"
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert 'load_dataset("ada/images", split="train")' in card.text
    assert "| no copies in the pool | 8 | 4 copy in the pool (cosine > 0.6) |" in card.text
    assert "| curated | curated | 2 | 2 |" in card.text


def test_an_upload(planted, tmp_path, hub, client):  # noqa: F811
    """In one commit, with a card that names the repository; files of an earlier upload in more parts go."""
    curation = planted.curate(rows_per_file=2)
    address = client(upload, curation.output_dir, "ada/images")
    assert address.endswith("/datasets/ada/images")
    files = hub.files("ada/images")
    parts = [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]
    assert sorted(files) == ["README.md", *parts, "report.json"]
    assert b'load_dataset("ada/images", split="train")' in files["README.md"]
    assert files[parts[0]] == (curation.output_dir / "dataset" / parts[0]).read_bytes()

    curation = planted.curate(rows_per_file=5, num_shards=1, output_dir=str(tmp_path / "again"))
    client(upload, curation.output_dir, "ada/images")
    assert [name for name in hub.files("ada/images") if name.startswith("data/")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert hub.repos["ada/images"].commits == ["Upload curated dataset"] * 2


def test_a_dataset_on_the_hub_is_a_source(planted, hub, client):  # noqa: F811
    curation = planted.curate()
    client(upload, curation.output_dir, "ada/images")
    ids = ["pool/0", "pool/7", "pool/8", "curated/0", "curated/1"]
    assert client(ids_of_source, "ada/images") == [f"images/{name}" for name in ids]
    client(upload, curation.output_dir, "ada/images", "old")
    client(upload, planted.curate(retrieval_num_neighbors=1, overwrite=True).output_dir, "ada/images")
    assert client(ids_of_source, "ada/images", "old") == [f"images/{name}" for name in ids]
    assert len(client(ids_of_source, "ada/images")) == 4


def test_only_the_hub_has_revisions(planted):
    with pytest.raises(ValueError, match="pool' has revision='main', but is not a dataset on the Hub: leave"):
        planted.curate(uncurated=[{"path": str(planted.folder / "pool"), "revision": "main"}])
