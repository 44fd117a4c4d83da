"""Which signals end a data loader worker."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader

from dinov2_hf.data.loader_workers import outlive_preemption


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
