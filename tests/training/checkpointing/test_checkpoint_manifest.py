"""Damage of any kind is found and named."""

import hashlib
import json

import pytest

from dinov2_hf.training.checkpointing.checkpoint_manifest import find_damage, sync_folder, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "shards" / "rank_0.bin").write_bytes(b"rank 0")
    (tmp_path / "empty.txt").write_bytes(b"")
    write_manifest(tmp_path)
    sync_folder(tmp_path)
    return tmp_path


def test_the_manifest_holds_size_and_sha256_of_every_file(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest) == ["empty.txt", "shards/rank_0.bin", "weights.bin"]
    for name, entry in manifest.items():
        content = (folder / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert find_damage(folder) is None


def test_writing_it_again_gives_the_same(folder):
    before = (folder / "manifest.json").read_bytes()
    write_manifest(folder)
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("weights.bin", None, "its weights.bin is missing"),
        ("shards/rank_0.bin", b"rank", "its shards/rank_0.bin has 4 bytes instead of 6"),
        ("shards/rank_0.bin", b"rank 1", "its shards/rank_0.bin is not what was saved (SHA-256 differs)"),
        ("empty.txt", b"x", "its empty.txt has 1 bytes instead of 0"),
        ("manifest.json", None, "it has no manifest.json"),
        ("manifest.json", b"{", "its manifest.json is damaged"),
    ],
)
def test_damage_is_named(folder, name, content, complaint):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert find_damage(folder) == complaint


def test_a_file_more_is_no_damage(folder):
    (folder / "notes.txt").write_text("of the user")
    assert find_damage(folder) is None
