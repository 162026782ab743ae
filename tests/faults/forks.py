"""Processes that cost little: forked from one that has imported everything and has neither engine nor connection.

They are killed, stopped and resumed, and none is left behind.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

from tests.support import eventually

KILLED, DONE = 9, 0
SECONDS = 60.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "tests.faults.talkers", "tests.faults.trial"])


def fork(life: Callable[..., None], *args: Any, log: Path, **kwargs: Any) -> ForkServerProcess:
    """A process that calls a function and ends with 0, in a session of its own."""
    process = _context.Process(target=_live, args=(log, partial(life, *args, **kwargs)), daemon=True)
    process.start()
    return process


def run_module(name: str, *arguments: str, environment: dict[str, str]) -> None:
    """What ``python -m`` does, with just this environment; for processes that were forked for it."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


class Forks:
    """Starts processes for one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[ForkServerProcess] = []

    def start(self, life: Callable[..., None], *args: Any) -> ForkServerProcess:
        """A process that calls a function; what it logs is kept."""
        process = fork(life, *args, log=self.folder / f"log-{len(self._started)}")
        self._started.append(process)
        return process

    def end_of(self, process: ForkServerProcess) -> int | None:
        """Its exit status; ``None`` if it does not end."""
        process.join(SECONDS)
        return process.exitcode

    def wait_until_stopped(self, process: ForkServerProcess, has_no_lock: Callable[[], bool]) -> None:
        """Until it has stopped itself, and without a lock by which another thread of it would keep everybody out."""

        def look() -> bool:
            assert process.exitcode is None, f"it ended with {process.exitcode}"
            if psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                return False
            if has_no_lock():
                return True
            _resume(process)
            return False

        eventually(look, timeout=SECONDS, pause=0.01)

    def wake_all(self) -> None:
        """Let the stopped processes go on for good."""
        (self.folder / "awake").touch()
        for process in self._started:
            if process.is_alive():
                _resume(process)

    def clean_up(self) -> None:
        """Kill what is left, and show what all have logged: pytest prints it if the test has failed."""
        for process in self._started:
            process.kill()
            process.join()
            process.close()
        for log in sorted(self.folder.glob("log-*")):
            print(f"--- {log.name}:\n{log.read_text(errors='replace')[-6000:]}")


def stop(folder: Path) -> None:
    """Stop this process until it is woken for good; between, its other threads may end what they are writing."""
    while not (folder / "awake").exists():
        os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait(0.01)


def _live(log: Path, life: Callable[[], None]) -> None:
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    life()
    sys.exit(DONE)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _resume(process: ForkServerProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
