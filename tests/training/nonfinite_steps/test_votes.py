"""Votes are counted."""

import torch
from accelerate import Accelerator

from dinov2_hf.training.nonfinite_steps.votes import CountsOnTheWay, count_processes


def test_count_on_one_process():
    counts = count_processes(Accelerator(cpu=True), True, torch.tensor(False), torch.tensor(True))
    assert CountsOnTheWay(counts).read() == [1, 0, 1]
