"""Processes that run the conversation: forked from one that has imported everything, killed, stopped or cut at a point.

A worker starts what is not started yet, waits until all has ended, checks the results and exits with 0; killed by its
probe it exits with 9.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import OperationalError

from edda_engine import EddaApp
from edda_engine.errors import DatabaseUnavailableError
from edda_engine.runtime.probes import POINTS
from edda_engine.storage.database import normalized_url
from tests.faults import conversation
from tests.support import eventually

KILLED, DONE = 9, 0
_SECONDS = 60.0
_LOCK_ALL = "SELECT 1 FROM edda_instances FOR UPDATE NOWAIT"

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["pytest", "tests.faults.talkers"])


class Fault:
    """What happens at some passings of points, or at all: ``kill``, ``stop``, ``cut`` (all connections) or ``lose`` (the answer)."""

    def __init__(
        self, points: tuple[str, ...], passings: tuple[int, ...], action: str, *, url: str, folder: Path
    ) -> None:
        assert set(points) <= set(POINTS)
        self._points, self._passings, self._action, self._url, self._folder = points, passings, action, url, folder
        self._passed = 0
        self._lock = threading.Lock()

    def __call__(self, point: str) -> None:
        is_between = point.startswith("step.") and threading.current_thread() is threading.main_thread()
        if point not in self._points or (self._action == "lose" and is_between):
            return  # between two transactions there is no answer to lose
        with self._lock:
            self._passed += 1
            is_now = not self._passings or self._passed in self._passings
        if not is_now:
            return
        match self._action:
            case "kill":
                os._exit(KILLED)
            case "stop":
                self._stop()
            case "stop while delivering" if is_delivering(self._url):
                os.kill(os.getpid(), signal.SIGSTOP)
                self._points = ()
            case "cut":
                cut_connections(self._url)
            case "lose":
                raise OperationalError("COMMIT", None, psycopg.OperationalError("the connection is lost"))

    def _stop(self) -> None:
        # Between, other threads may end what they are writing: the test resumes it while it holds a lock.
        while not (self._folder / "awake").exists():
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.01)


def is_delivering(url: str) -> bool:
    """Whether somebody has the turn of delivery: the one advisory lock of a transaction."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(plain, autocommit=True) as conn:
        found = conn.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = 1701078125"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
    return found is not None and found[0] > 0


def cut_connections(url: str) -> int:
    """End every connection of a PostgreSQL database; how many there were."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(plain, autocommit=True) as conn:
        found = conn.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchone()
    assert found is not None
    return int(found[0])


def converse(
    url: str, folder: Path, points: tuple[str, ...], passings: tuple[int, ...], action: str, options: Any
) -> None:
    """The life of one process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = os.open(folder / f"log-{os.getpid()}", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    fault = Fault(points, passings, action, url=url, folder=folder)
    sys.exit(asyncio.run(_converse(url, fault, options)))


async def _converse(url: str, fault: Fault, options: dict[str, Any]) -> int:
    soon = {"poll_interval_seconds": 0.1, "recovery_interval_seconds": 0.1, "threads": 4} | options
    async with EddaApp("talk", url, probe=fault, **soon) as app:
        for instance_id, (workflow, arguments) in conversation.INSTANCES.items():
            await _patiently(partial(workflow.options(instance_id=instance_id).start, **arguments))
        for instance_id, expected in conversation.RESULTS.items():
            found = await _patiently(partial(app.result, instance_id, timeout=_SECONDS))
            assert found == expected, (instance_id, found)
    return DONE


async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """What a program does whose own question met a connection that was cut: it asks again."""
    while True:
        try:
            return await ask()
        except DatabaseUnavailableError:
            await asyncio.sleep(0.05)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _resume(process: ForkServerProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)


class Talkers:
    """Starts processes on one database, and leaves none behind."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self._started: list[ForkServerProcess] = []

    def start(
        self, *points: str, passings: tuple[int, ...] = (), action: str = "kill", **options: Any
    ) -> ForkServerProcess:
        """A worker to which something happens at these passings of these points, counted together."""
        process = _forkserver.Process(
            target=converse, args=(self._url, self._folder, points, passings, action, options), daemon=True
        )
        process.start()
        self._started.append(process)
        return process

    def end_of(self, process: ForkServerProcess) -> int | None:
        """Its exit status."""
        process.join(_SECONDS)
        return process.exitcode

    def wait_until_stopped(self, process: ForkServerProcess, *, may_hold_locks: bool = False) -> None:
        """Until it has stopped itself, and without a lock by which another thread of it would keep everybody out."""

        def look() -> bool:
            assert process.exitcode is None
            if psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                return False
            if may_hold_locks or self._can_be_written():
                return True
            _resume(process)
            return False

        eventually(look, timeout=_SECONDS, pause=0.02)

    def wake_all(self) -> None:
        """Let the stopped processes go on for good."""
        (self._folder / "awake").touch()
        for process in self._started:
            if process.is_alive():
                _resume(process)

    def _can_be_written(self) -> bool:
        url = normalized_url(self._url)
        is_sqlite = url.get_backend_name() == "sqlite"
        engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": 0.2} if is_sqlite else {})
        try:
            with engine.connect() as conn:
                conn.exec_driver_sql("BEGIN IMMEDIATE" if is_sqlite else _LOCK_ALL)
        except OperationalError:
            return False
        return True

    def clean_up(self) -> None:
        """Kill what is left, and show what all have logged: pytest prints it if the test has failed."""
        for process in self._started:
            process.kill()
            process.join()
            process.close()
        for log in sorted(self._folder.glob("log-*")):
            print(f"--- {log.name}:\n{log.read_text(errors='replace')[-4000:]}")
