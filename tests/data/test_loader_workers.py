"""Which signals end a data loader worker, and whether there is room for what it makes."""

import os
import signal

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dinov2_hf import DINOv2Config, DINOv2Model
from dinov2_hf.data import MultiCropTransform, PreTrainingCollator, build_loader, loader_workers
from dinov2_hf.data.loader_workers import (
    available_cores,
    check_shared_memory,
    default_workers,
    describe_workers,
    outlive_preemption,
)
from dinov2_hf.features import FeatureExtractor


class Pids(torch.utils.data.Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return os.getpid()


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="senders of signals cannot be told apart here")
def test_a_worker_outlives_strangers_and_ends_with_its_parent():
    batches = iter(DataLoader(Pids(), num_workers=1, worker_init_fn=outlive_preemption))
    worker = next(batches).item()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        assert os.spawnlp(os.P_WAIT, "kill", "kill", f"-{number.value}", str(worker)) == 0
    # More than are fetched ahead, so that the worker has answered since.
    assert [next(batches).item() for _ in range(20)] == [worker] * 20
    (process,) = batches._workers
    process.terminate()
    process.join(timeout=30)
    assert process.exitcode == 0


def test_batches_that_do_not_fit_into_shared_memory(monkeypatch):
    """Two batches of each worker; a container gives 64 MiB unless told otherwise."""
    free, batch = 64 * 2**20, 10_000_000
    check_shared_memory(3, batch, free_bytes=free)
    with pytest.raises(
        ValueError, match="4 data loader workers need up to 80.0 MB .* has 67.1 MB free; use at most 3"
    ):
        check_shared_memory(4, batch, free_bytes=free)
    check_shared_memory(4, batch, num_batches=6, free_bytes=free)  # there are no more of them
    check_shared_memory(0, 10**15, free_bytes=0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="3 data loader workers of each of 2 processes .* use at most 1 workers"):
        check_shared_memory(3, batch, free_bytes=free)


def test_what_the_log_says_of_workers(monkeypatch):
    monkeypatch.setattr(loader_workers, "shared_memory_free", lambda: 2 * 10**9)
    monkeypatch.setattr(loader_workers, "available_cores", lambda: 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    needed = check_shared_memory(3, 10**7)
    assert needed == 2 * 3 * 2 * 10**7
    assert describe_workers(3, needed) == (
        "3 workers for each of 2 processes on 12 cores, which need up to 120.0 MB of shared memory of 2.0 GB free"
    )
    assert describe_workers(0, 0) == "in the training process"


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (16, 2, 7), (4, 8, 1), (128, 2, 16)]
)
def test_workers_come_from_the_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(loader_workers, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers() == workers


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1), ("", 8)])
def test_a_container_may_grant_less_than_there_is(monkeypatch, tmp_path, limit, cores):
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(loader_workers, "CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert available_cores() == cores


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no shared memory with a limit here")
@pytest.mark.parametrize("num_channels", [3, 5])
def test_a_run_that_would_hang_does_not_start(num_channels):
    """Whose batches are larger than any machine's memory."""
    rows = datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": None}] * 4})
    stream = rows.cast_column("image", datasets.Image(decode=False)).to_iterable_dataset(num_shards=2)
    normalised = {"image_mean": [0.5] * num_channels, "image_std": [0.5] * num_channels}
    transform = MultiCropTransform(num_channels=num_channels, **normalised)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="2 data loader workers need up to .* of shared memory"):
        build_loader(
            stream, "image", transform, PreTrainingCollator(14), batch_size=10**9,
            seed=0, num_workers=2, num_channels=num_channels,
        )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no shared memory with a limit here")
def test_features_that_would_hang_do_not_start(tmp_path):
    """An image processor of a size that no machine holds 8 of; the first image is broken, and does not tell."""

    class Huge:
        def __call__(self, images, return_tensors):
            return {"pixel_values": torch.zeros(()).expand(len(images), 3, 10**6, 10**6)}

    model = DINOv2Model(DINOv2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=14))
    rows = [{"image": {"bytes": b"broken", "path": None}}] + [{"image": Image.new("RGB", (14, 14))}] * 9
    with pytest.raises(ValueError, match="2 data loader workers need up to .* of shared memory"):
        next(FeatureExtractor(model, Huge(), batch_size=4, num_workers=2).batches(rows, skip_undecodable=True))
