"""Data loader workers: shared memory for their batches, and signals that must not end them."""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path


SHARED_MEMORY = Path("/dev/shm")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container
BATCHES_OF_A_WORKER = 2  # batches that each worker of a `DataLoader` makes ahead
MOST_WORKERS = 16  # they decode and crop more images than a GPU trains on


def check_shared_memory(
    num_workers: int, batch_bytes: int, *, num_batches: int | None = None, free_bytes: int | None = None
) -> int:
    """
    Check whether the batches that wait for this process fit into shared memory, through which workers pass them. If it
    is full, a worker dies or hangs in the middle of a batch.

    Args:
        num_workers: workers of this process; the same number is assumed for the others on this machine
            (`LOCAL_WORLD_SIZE`).
        batch_bytes: bytes of one batch.
        num_batches: total number of batches; `None`: there is no end.
        free_bytes: free shared memory; `None` measures it. A system without `/dev/shm` has no such limit.

    Returns:
        The bytes that all processes of this machine may need.

    Raises:
        `ValueError`: they do not fit.
    """
    processes = processes_of_this_machine()
    ahead = num_workers * BATCHES_OF_A_WORKER
    needed = (ahead if num_batches is None else min(ahead, num_batches)) * batch_bytes * processes
    if free_bytes is None:
        free_bytes = shared_memory_free()
    if not num_workers or free_bytes is None or needed <= free_bytes:
        return needed
    fitting = free_bytes // max(BATCHES_OF_A_WORKER * batch_bytes * processes, 1)
    whose = f"{num_workers} data loader workers" + (f" of each of {processes} processes" if processes > 1 else "")
    raise ValueError(
        f"{whose} need up to {_size(needed)} of shared memory for the batches that they make ahead, but"
        f" {SHARED_MEMORY} has {_size(free_bytes)} free; use at most {fitting} workers, a smaller batch, or more"
        " shared memory (in a container, such as docker run --shm-size=16g)."
    )


def default_workers() -> int:
    """The number of cores for each process of this machine, minus one for the process itself; from 1 to 16."""
    return min(max(available_cores() // processes_of_this_machine() - 1, 1), MOST_WORKERS)


def available_cores() -> int:
    """The cores that this process may use: those that it is bound to, within the limit of a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        granted, period = CPU_LIMIT.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if granted == "max" else max(min(cores, int(granted) // int(period)), 1)


def processes_of_this_machine() -> int:
    """The number of training processes on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def shared_memory_free() -> int | None:
    """Free shared memory in bytes; None if the system has no `/dev/shm`."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def describe_workers(num_workers: int, needed: int) -> str:
    """A text for the log: the workers that decode images, and the shared memory that they need, in bytes."""
    if not num_workers:
        return "in the training process"
    free = shared_memory_free()
    limit = "" if free is None else f" of {_size(free)} free"
    processes = processes_of_this_machine()
    return (
        f"{num_workers} workers for each of {processes} processes on {available_cores()} cores, which need up to"
        f" {_size(needed)} of shared memory{limit}"
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def outlive_preemption(worker: int) -> None:
    """
    Make this worker ignore SIGUSR1, and SIGTERM unless its parent sent it. For `worker_init_fn` of a `DataLoader`.

    The signal goes to every process of a job, but the training process needs its workers until the end of its step: a
    dead worker raises an exception in the middle of it. multiprocessing ends workers by a SIGTERM of the parent, and
    waits for them. If the sender cannot be identified (macOS), SIGTERM ends the worker as usual.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked in this thread and in later ones, so that the waiting thread gets it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def leave_interruption_to_parent(worker: int) -> None:
    """
    Make this worker ignore Ctrl-C, which reaches every process of a terminal. For `worker_init_fn` of a `DataLoader`.

    The parent handles it and ends its workers. An error of a worker's thread whose partner has ended is not reported.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report = sys.excepthook
    sys.excepthook = lambda kind, error, trace: (
        None if issubclass(kind, ConnectionError | EOFError) else report(kind, error, trace)
    )


def _end_with_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
