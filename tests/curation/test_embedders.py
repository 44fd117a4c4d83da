"""Vectors from a model, a TorchScript file, or files that are there."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import AutoImageProcessor, AutoModel

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.curation import read_arguments
from dinov2_hf.curation.embedders import TorchScriptInput, kind_of_embedder, load_embedder
from dinov2_hf.curation.storage.embeddings import EmbeddingStore
from dinov2_hf.hub_repos import name_and_revision

from .scenes import scene


class MeanColour(torch.nn.Module):
    def forward(self, pixel_values):
        return pixel_values.mean(dim=(2, 3))


def vectors_of(curation, role="uncurated") -> tuple[np.ndarray, np.ndarray]:
    store = EmbeddingStore(curation.folders["embed"].path, f"shard-*/{role}.npy")
    return store.ids, store.read(0, len(store))


def dropped_by_embed(curation) -> list[tuple[str, str]]:
    paths = curation.folders["embed"].files("dropped.parquet")
    return [(row["id"], row["reason"]) for path in paths for row in parquet.read_table(path).to_pylist()]


def unit(vectors: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


def test_an_auto_model(planted, tmp_path, tiny_config):
    DINOv2Model(tiny_config).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "model"
    )
    planted.curate("ingest", embedder=str(tmp_path / "model"))
    curation = planted.curate("embed", embedder=str(tmp_path / "model"), batch_size=5)
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        pixels = processor(images=[scene(seed) for seed in range(12)], return_tensors="pt")["pixel_values"]
        expected = unit(model(pixels).last_hidden_state[:, 0])
    ids, found = vectors_of(curation)
    assert ids.tolist() == list(range(12))
    np.testing.assert_allclose(found, expected, atol=1e-3)  # half precision
    assert len(vectors_of(curation, "benchmark")[0]) == 1


@pytest.mark.parametrize("size", [[48], [40, 40]])
def test_a_torchscript_file(planted, tmp_path, size):
    torch.jit.script(MeanColour()).save(str(tmp_path / "copies.torchscript.pt"))
    changes = {
        "embedder": str(tmp_path / "copies.torchscript.pt"),
        "torchscript_size": size,
        "trust_torchscript": True,
    }
    planted.curate("ingest", **changes)
    ids, found = vectors_of(planted.curate("embed", **changes))
    pixels = [TorchScriptInput(size)(images=[scene(seed)])["pixel_values"][0] for seed in range(12)]
    np.testing.assert_allclose(found, unit(torch.stack([image.mean(dim=(1, 2)) for image in pixels])), atol=1e-3)


def test_the_input_of_sscd():
    """The shorter side to 288, and ImageNet's mean and deviation: white is (1 - mean) / deviation."""
    from PIL import Image

    (pixels,) = TorchScriptInput([288])(images=[Image.new("RGB", (600, 400), "white")])["pixel_values"]
    assert pixels.shape == (3, 288, 432)
    torch.testing.assert_close(pixels[:, 5, 5], torch.tensor([2.2489, 2.4286, 2.64]), atol=1e-4, rtol=0)


def test_vectors_that_cannot_be_used_are_counted(planted, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("curated", "benchmark"):
        (folder / f"{name}.npy").symlink_to(planted.folder / "vectors" / f"{name}.npy")
    rows = np.load(planted.folder / "vectors" / "pool.npy")
    rows[1], rows[2] = 0, np.nan
    table = {"row": [0, 1, 2, *range(4, 12)], "features": list(rows[[0, 1, 2, *range(4, 12)]])}
    parquet.write_table(pa.table(table), folder / "pool.parquet")
    planted.curate("ingest", embedder=str(folder))
    curation = planted.curate("embed", embedder=str(folder))
    assert dropped_by_embed(curation) == [
        ("pool/1", "its vector is zero"),
        ("pool/2", "its vector is not finite"),
        ("pool/3", "has no precomputed vector"),
    ]
    assert vectors_of(curation)[0].tolist() == [0, *range(4, 12)]


def test_one_table_by_ids(planted, tmp_path):
    ids = [*(f"pool/{row}" for row in range(12)), "curated/0", "curated/1", "benchmark/0"]
    names = ("pool", "curated", "benchmark")
    vectors = np.concatenate([np.load(planted.folder / "vectors" / f"{name}.npy") for name in names])
    order = np.random.default_rng(0).permutation(len(ids))
    table = {"id": [ids[row] for row in order], "embedding": list(vectors[order])}
    parquet.write_table(pa.table(table), tmp_path / "vectors.parquet")
    np.save(tmp_path / "vectors.npy", vectors)
    found = []
    for name in ("vectors.parquet", "vectors.npy"):
        changes = {"embedder": str(tmp_path / name), "output_dir": str(tmp_path / name.replace(".", "_"))}
        planted.curate("ingest", **changes)
        found.append(vectors_of(planted.curate("embed", **changes))[1])
    np.testing.assert_array_equal(*found)
    parquet.write_table(pa.table({"id": ids * 2, "embedding": list(vectors) * 2}), tmp_path / "twice.parquet")
    changes = {"embedder": str(tmp_path / "twice.parquet"), "output_dir": str(tmp_path / "twice")}
    planted.curate("ingest", **changes)
    with pytest.raises(ValueError, match="twice.parquet' has more than one vector for 'pool/0'"):
        planted.curate("embed", **changes)


def test_files_that_do_not_fit(planted, tmp_path):
    def embed(name, **changes):
        changes = {
            "embedder": str(tmp_path / name),
            "output_dir": str(tmp_path / "other"),
            "overwrite": True,
            **changes,
        }
        planted.curate("ingest", **changes)
        planted.curate("embed", **changes)

    np.save(tmp_path / "short.npy", np.ones((5, 3), np.float32))
    with pytest.raises(ValueError, match=r"short.npy' has the shape \(5, 3\), but 15 vectors are needed"):
        embed("short.npy")
    parquet.write_table(pa.table({"row": [0], "features": [[1.0]]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="rows.parquet' has no column 'id'"):
        embed("rows.parquet")
    parquet.write_table(pa.table({"id": ["pool/0"], "colour": [1]}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="none.parquet' has the columns .*, but 'id' and one of features"):
        embed("none.parquet")
    vectors = [[1.0], [1.0, 2.0], *[[1.0]] * 10]
    parquet.write_table(
        pa.table({"id": [f"pool/{row}" for row in range(12)], "features": vectors}), tmp_path / "w.parquet"
    )
    with pytest.raises(ValueError, match=r"w.parquet' has a vector of shape \(2,\) for 'pool/1', but one of \(1,\)"):
        embed("w.parquet", num_shards=1)
    parquet.write_table(pa.table({"row": ["a"], "features": [[1.0]]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="text.parquet' needs integers in the column 'row'"):
        embed("text.parquet", curated=[], benchmarks=[])
    for name, message in (("broken.npy", "not a readable .npy"), ("broken.parquet", "not a readable parquet")):
        (tmp_path / name).write_bytes(b"no")
        with pytest.raises(ValueError, match=f"{name}' is {message}"):
            embed(name)


def test_vectors_of_another_width_than_the_other_shards(planted, tmp_path):
    """Each shard is of one width, but not the same."""
    vectors = [[1.0, 1.0]] * 6 + [[1.0, 1.0, 1.0]] * 6
    table = {"id": [f"pool/{row}" for row in range(12)], "features": vectors}
    parquet.write_table(pa.table(table), tmp_path / "w.parquet")
    changes = {"embedder": str(tmp_path / "w.parquet"), "num_shards": 2, "curated": [], "benchmarks": []}
    with pytest.raises(
        ValueError, match="vectors of width 3, but .* has 2: a store holds the embeddings of one model"
    ):
        planted.curate(**changes)


@pytest.mark.parametrize("spec", ["nowhere/at/all", "missing.npy", "missing.parquet", "missing.torchscript.pt"])
def test_an_embedder_that_is_not_there(spec):
    with pytest.raises(ValueError, match="does not exist"):
        kind_of_embedder(spec)


def test_embedders_that_cannot_be_loaded(planted, tmp_path):
    (tmp_path / "not.pt").write_bytes(b"no TorchScript")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty', a folder with neither a model .config.json. nor vectors"):
        kind_of_embedder(str(tmp_path / "empty"))
    changes = {"embedder": str(tmp_path / "not.pt"), "trust_torchscript": True}
    with pytest.raises(ValueError, match="not.pt', which is not a TorchScript file"):
        planted.curate(**changes, output_dir=str(tmp_path / "hub"))
    for field in ("embedder", "retrieval_embedder", "nsfw_model", "face_model"):
        with pytest.raises(ValueError, match=f"{field} is 'nobody/nothing', which cannot be loaded"):
            planted.curate(output_dir=str(tmp_path / "hub"), **{field: "nobody/nothing"})
    assert not (tmp_path / "hub").exists()  # known before any work


class WritesFiles(torch.nn.Module):
    def forward(self, pixel_values):
        torch.from_file("OVERWRITTEN", shared=True, size=8)
        return pixel_values.mean(dim=(2, 3))


@pytest.mark.parametrize("field", ["embedder", "retrieval_embedder"])
def test_a_torchscript_file_is_a_program_and_runs_only_where_it_is_trusted(planted, tmp_path, monkeypatch, field):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(WritesFiles()).save("copies.pt")
    (tmp_path / "OVERWRITTEN").write_text("mine")
    with pytest.raises(ValueError, match="a TorchScript file, .* overwrite any of .* --trust_torchscript"):
        planted.curate(**{field: "copies.pt"})
    (tmp_path / "recipe.yaml").write_text("uncurated: [pool]\ntrust_torchscript: true\n")
    with pytest.raises(ValueError, match="has trust_torchscript, but a recipe cannot give that trust"):
        read_arguments(tmp_path / "recipe.yaml")
    assert (tmp_path / "OVERWRITTEN").read_text() == "mine"
    assert not (tmp_path / "out").exists()


class NotAVector(torch.nn.Module):
    def forward(self, pixel_values):
        return pixel_values


class NotANumber(torch.nn.Module):
    def forward(self, pixel_values):
        return pixel_values.mean(dim=(2, 3)) * float("nan")


class OneSizeOnly(torch.nn.Module):
    def forward(self, pixel_values):
        return pixel_values.reshape(-1, 3 * 999)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (NotAVector(), "embedder is .*, which fails on a test picture: .*but .images, width. is needed"),
        (NotANumber(), "embedder is .*, which gives numbers that are not finite for a test picture"),
        (OneSizeOnly(), "embedder is .*, which fails on a test picture: "),
    ],
)
def test_an_embedder_that_fails_is_found_before_an_image_is_read(planted, tmp_path, network, message):
    torch.jit.script(network).save(str(tmp_path / "network.pt"))
    with pytest.raises(ValueError, match=message) as found:
        planted.curate(embedder=str(tmp_path / "network.pt"), trust_torchscript=True)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_is_found_before_an_image_is_read(planted, tmp_path, tiny_config):
    DINOv2Model(tiny_config).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor().save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="retrieval_embedder is .*model', which cannot be loaded"):
        planted.curate(retrieval_embedder=str(tmp_path / "model"))
    assert not (tmp_path / "out").exists()


def test_a_model_without_some_of_its_weights_is_refused(planted, tmp_path, tiny_config):
    """`AutoModel` makes random ones in their place."""
    from safetensors.torch import load_file, save_file

    DINOv2Model(tiny_config).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor().save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="embedder is .*model', which cannot be loaded: .* lack `layernorm.weight`"):
        planted.curate(embedder=str(tmp_path / "model"))
    assert not (tmp_path / "out").exists()


def test_a_run_is_taken_for_its_model(planted, tmp_path, tiny_config):
    DINOv2Model(tiny_config).save_pretrained(tmp_path / "run" / "model")
    DINOv2ImageProcessor().save_pretrained(tmp_path / "run" / "model")
    for name in ("run", "run/model"):
        changes = {"embedder": str(tmp_path / name), "output_dir": str(tmp_path / f"out_{name.replace('/', '_')}")}
        planted.curate("ingest", **changes)
        found = vectors_of(planted.curate("embed", **changes))[1]
        assert found.shape == (12, 32)


def test_a_model_on_the_hub_may_have_a_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kind_of_embedder("owner/name@v1.0") == "model"
    assert name_and_revision("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")
    assert name_and_revision("owner/name") == ("owner/name", None)
    (tmp_path / "owner" / "name@v1.0").mkdir(parents=True)
    assert name_and_revision("owner/name@v1.0") == ("owner/name@v1.0", None)  # a folder of that name
    with pytest.raises(ValueError, match="embedder is 'owner/name@v2', which cannot be loaded: "):
        load_embedder("owner/name@v2")  # HF_HUB_OFFLINE
