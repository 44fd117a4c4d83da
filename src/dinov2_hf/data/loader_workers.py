"""Data loader workers that outlive the signals by which a batch system or a launcher announces the end of a run."""

import os
import signal
import sys
import threading


def outlive_preemption(worker: int) -> None:
    """
    Let this worker ignore SIGUSR1, and SIGTERM unless its parent sent it. For `worker_init_fn` of a `DataLoader`.

    The announcement goes to every process of a job, but the training process needs its workers until the end of its
    step: a dead worker is an exception in the middle of it. The parent's own SIGTERM is how multiprocessing ends
    workers, and waits for them. Where senders cannot be told apart (macOS), SIGTERM ends the worker as ever.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked here and in the threads to come, so that it is left to the thread that waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def leave_interruption_to_parent(worker: int) -> None:
    """
    Let this worker ignore Ctrl-C, which reaches every process of a terminal. For `worker_init_fn` of a `DataLoader`.

    The parent answers it and ends its workers. That one of their threads then has nobody to talk to is not reported.
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
