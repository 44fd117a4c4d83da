"""How processes are started, so that each can use the GPU, and ended with all that they have started."""

import multiprocessing
from contextlib import suppress
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

import psutil
import torch


def context_for(device: str) -> BaseContext:
    """
    For processes that use the device: forks, which have what was imported before. If an import has looked for GPUs, no
    fork can use them: then new processes, which import by themselves.
    """
    forked = multiprocessing.get_context("fork")
    if device == "cpu":
        return forked
    with forked.Pool(1) as pool:
        return multiprocessing.get_context("spawn") if pool.apply(torch.cuda._is_in_bad_fork) else forked


def kill_tree(process: BaseProcess) -> None:
    """Kill a process and those that it and they have started, and wait for it."""
    if process.is_alive():
        family = psutil.Process(process.pid)
        for member in [*family.children(recursive=True), family]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.join()
