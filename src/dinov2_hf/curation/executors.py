"""Runs the shards of a stage: in this process, in a pool of processes, or in one of several launches."""

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context, parent_process, util
from pathlib import Path

import torch

from ..progress import Progress
from .storage.manifests import StageFolder, UnfinishedShard
from .storage.remote_stages import RemoteStages


SECONDS_TO_END = 5.0  # for a worker to end when asked; then it is killed


@dataclass(frozen=True)
class PlannedStage:
    """A step of the curation, which consists of independent shards.

    Args:
        folder: the folder of its shards.
        write_shard: writes files to `shard.folder` and sets `shard.rows`. It is pickled for other processes, so it is
            a function of a module or a `functools.partial` of one.
        needs: stages that must be finished before.
        collective: one shard, which all processes of a launch make together (`torch.distributed`).
        step: the name with which `--stage` runs it.
        inputs: for a stage whose shards serve later runs, maps the rank of a shard to the hash of all its inputs.
        store: a store where finished shards are also kept, and from which they are fetched.
    """

    folder: StageFolder
    write_shard: Callable[[UnfinishedShard], None]
    needs: tuple["PlannedStage", ...] = ()
    collective: bool = False
    step: str = ""
    inputs: Callable[[int], str] | None = None
    store: RemoteStages | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    def run_shard(self, rank: int) -> None:
        """Make a shard, or take what an earlier run, or another machine, made of the same."""
        with self.folder.writing(rank) as shard:
            self._begin(shard)
            is_kept = self.inputs is not None and shard.take_kept()
            # All processes make a collective stage together: none may take it while the others wait for its part.
            if not is_kept and not self.collective and self._take(shard):
                return
            if not is_kept:
                self.write_shard(shard)
        self.send([rank])

    def fetch(self) -> None:
        """Take from the store what is finished there and missing here."""
        for rank in self.folder.missing() if self.store is not None else ():
            if self.folder.is_finished(rank):  # another launch in this folder fetches too
                continue
            try:
                with suppress(_NotThere), self.folder.writing(rank) as shard:
                    self._begin(shard)
                    if not self._take(shard):
                        raise _NotThere
            except OSError:
                if not self.folder.is_finished(rank):
                    raise

    def send(self, ranks: Iterable[int]) -> None:
        """Put into the store what is finished here and missing there."""
        if self.store is not None:
            self.store.send(self.folder, ranks)

    def _begin(self, shard: UnfinishedShard) -> None:
        shard.inputs = "" if self.inputs is None else self.inputs(shard.rank)

    def _take(self, shard: UnfinishedShard) -> bool:
        return self.store is not None and self.store.take(self.folder, shard)

    def require_needs(self) -> None:
        """
        Raises:
            ValueError: an earlier stage is not finished; the message names the stage and its missing shards.
        """
        for stage in self.needs:
            stage.folder.open()
            missing = stage.folder.absent()
            if missing:
                shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
                raise ValueError(
                    f"stage {self.name!r} needs stage {stage.name!r}, of which {len(missing)} of"
                    f" {stage.folder.num_shards} shards are missing in {stage.folder.path} ({shown}): run that stage"
                    " first."
                )


class _NotThere(Exception):
    """What is asked of the store is not finished there."""


def start_pool(num_processes: int) -> Executor:
    """Processes that run shards of any stage. Their imports take seconds, so one pool serves all stages."""
    # Forked from a server that has imported everything, not from this process, whose threads may hold locks (faiss,
    # torch).
    if "forkserver" in get_all_start_methods():
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__.rpartition(".")[0] + ".plan"])
    else:
        context = get_context("spawn")
    threads = max(1, torch.get_num_threads() // num_processes)
    return ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin_worker, initargs=(threads,))


def run_stage(
    stage: PlannedStage,
    *,
    pool: Executor | None = None,
    rank: int = 0,
    world_size: int = 1,
    verify: bool = False,
    progress: bool = False,
) -> int:
    """Run the shards of a stage that are not finished.

    Args:
        stage: what to run.
        pool: from `start_pool`; None runs the shards in this process, one after the other.
        rank, world_size: run every `world_size`-th shard from `rank` on: the share of one of several launches.
        verify: accept a finished shard only if its checksums are right.
        progress: show a progress bar over the shards, with the time left.

    Returns:
        The number of shards that were run.

    Raises:
        ValueError: the configuration has changed, an earlier stage is not finished, or a shard raises it.
    """
    stage.folder.open()
    share = range(rank, stage.folder.num_shards, world_size)
    missing = [shard for shard in stage.folder.missing(verify) if shard in share]
    stage.send(shard for shard in share if shard not in missing)
    if not missing:
        return 0
    stage.require_needs()
    if world_size == 1:
        _remove_torn(stage.folder.path)
    done = stage.folder.num_shards - len(missing) if world_size == 1 else 0
    is_silent = not progress or len(missing) < 2
    with Progress(total=len(missing) + done, initial=done, desc=stage.name, unit="shard", disable=is_silent) as bar:
        for _ in _run_shards(stage, missing, pool):
            bar.update()
    return len(missing)


def run_collective(stage: PlannedStage, *, is_main: bool, verify: bool = False) -> None:
    """Run a stage of one shard in all processes together; the files of the main process are kept."""
    stage.folder.open()
    if not stage.folder.missing(verify):
        if is_main:
            stage.send([0])
        return
    stage.require_needs()
    if is_main:
        stage.run_shard(0)
    else:
        with tempfile.TemporaryDirectory() as folder:
            stage.write_shard(UnfinishedShard(Path(folder), is_kept=False))


def _run_shards(stage: PlannedStage, ranks: Sequence[int], pool: Executor | None) -> Iterator[int]:
    """Yield the ranks as they finish."""
    if pool is None or len(ranks) == 1:
        for rank in ranks:
            stage.run_shard(rank)
            yield rank
        return
    futures = {}
    try:
        futures.update((pool.submit(_run_in_worker, stage, rank), rank) for rank in ranks)
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as error:
        raise ValueError(
            f"a process of stage {stage.name!r} was killed, perhaps because memory ran out; finished shards are kept:"
            " run the same command again, with fewer num_processes if it recurs."
        ) from error
    except KeyboardInterrupt:  # shards take hours, so those that have begun are not awaited
        _end_workers(pool)  # cancelling futures before would end the pool's own thread with an error
        raise
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _run_in_worker(stage: PlannedStage, rank: int) -> None:
    """Run a shard in a process of a pool. The pool would report an exit by a signal as an error of the shard."""
    is_ending = False
    try:
        stage.run_shard(rank)
    except SystemExit:
        is_ending = True
    if is_ending:
        util._exit_function()  # as at every exit of such a process: ends processes of loaders, frees semaphores
        os._exit(1)


def _begin_worker(num_threads: int) -> None:
    """Take a share of the cores, and end with the process that started this one."""
    torch.set_num_threads(num_threads)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    # Ctrl-C reaches all processes of a terminal. The first process handles it, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an unfinished shard is removed on the way out
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _end_workers(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool, which must not outlive an interrupted run."""
    workers = list((pool._processes or {}).values())  # only Python 3.14 has a way, `terminate_workers`
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(SECONDS_TO_END)
        worker.kill()


def _remove_torn(stage_path: Path) -> None:
    """Remove hidden folders of killed processes from a stage."""
    for folder in stage_path.glob(".shard-*"):
        shutil.rmtree(folder, ignore_errors=True)
