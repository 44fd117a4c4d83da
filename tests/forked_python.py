"""
`python ...` in a fork of a process that has imported everything, since a new interpreter needs seconds for that.

`start` and `run` stand in for `subprocess.Popen` and `subprocess.run` where a program is tested. Where its start is
tested (imports, the command, signals to a launcher), a new interpreter is what to run. The processes of a launcher
that is started here are forks as well. A fork ends as an interpreter does: exceptions, exit codes and functions of
`atexit` are Python's own.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path


EVERYTHING = (
    "accelerate.commands.launch", "cv2", "datasets", "deepspeed", "dinov2_hf.cli", "dinov2_hf.runs.run",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "torch.distributed.run", "transformers.pipelines",
)  # fmt: skip
TRANSFORMERS = ("torch", "transformers.pipelines")


class Process:
    """A program that was started, with the methods of `subprocess.Popen`."""

    def __init__(self, words: list, env: dict[str, str], cwd: str, stdout, stderr, address: str):
        self.args, self.returncode, self._files = words, None, (stdout, stderr)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        socket.send_fds(self._connection, [b"\n"], [file.fileno() for file in self._files])
        self._connection.sendall(json.dumps([list(map(str, words)), dict(env), str(cwd)]).encode())
        self._connection.shutdown(socket.SHUT_WR)
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._answers.readline())
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        for file in self._files:
            file.seek(0)
        return tuple(file.read() for file in self._files)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """A process that has imported modules and forks. It ends with this process."""

    def __init__(self, imported: tuple[str, ...]):
        self._folder = tempfile.TemporaryDirectory(prefix="forked_python")
        self.address = str(Path(self._folder.name) / "socket")
        # Variables that are read when modules are imported.
        settings = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HOME": self._folder.name}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno()), *imported],
                pass_fds=[listener.fileno()], stdin=subprocess.PIPE, env={**os.environ, **settings},
            )  # fmt: skip


server = functools.cache(Server)


def start(
    words: list,
    env: dict[str, str] | None = None,
    cwd: str | Path | None = None,
    imported: tuple[str, ...] = EVERYTHING,
) -> Process:
    """
    Start `python *words`.

    Args:
        words: `-m module`, `-c program` or a file, and what is handed to it.
        imported: modules that are there already, which must change nothing for the program.
    """
    output = [tempfile.TemporaryFile("w+") for _ in range(2)]
    env = os.environ if env is None else env
    return Process(words, env, cwd or os.getcwd(), *output, server(imported).address)


def run(words: list, **options) -> subprocess.CompletedProcess:
    process = start(words, **options)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def forked_program(listener: socket.socket) -> list[str]:
    """Serve until the end of standard input. In a fork, the words of its command line come back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waiting = []  # processes, one for each program
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        waiting = [process for process in waiting if os.waitpid(process, os.WNOHANG) == (0, 0)]
        waiting.append(os.fork())
        if waiting[-1] == 0:
            _, files, _, _ = socket.recv_fds(connection, 1, 2)
            words, environment, folder = json.load(connection.makefile())
            program = os.fork()
            if program == 0:
                become(files, environment, folder)
                connection.close()
                listener.close()
                return words
            connection.sendall(f"{program}\n".encode())
            status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
            connection.sendall(f"{status}\n".encode())
            os._exit(0)
        connection.close()
    sys.exit()


def become(files: list[int], environment: dict[str, str], folder: str) -> None:
    """Take output, environment and working folder of the program, in a session of its own."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def interpret(words: list[str]) -> None:
    """What the interpreter does with its command line."""
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def fork_processes_of_launchers(address: str) -> None:
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    def forked(handler: SubprocessHandler, command: tuple[str, ...], env: dict[str, str]) -> Process:
        assert command[:2] == (sys.executable, "-u"), command
        output = handler._stdout or sys.__stdout__, handler._stderr or sys.__stderr__
        return Process(command[2:], env, os.getcwd(), *output, address)

    SubprocessHandler._popen = forked


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose own folders have names of packages
    listener = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        with contextlib.suppress(ModuleNotFoundError):  # of an extra
            importlib.import_module(name)
    fork_processes_of_launchers(listener.getsockname())
    gc.freeze()
    interpret(forked_program(listener))
