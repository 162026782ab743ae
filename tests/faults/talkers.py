"""Processes that run the conversation: forked from one that has imported everything, killed, stopped or cut at a point.

A worker starts what is not started yet, waits until all has ended, checks the results and exits with 0; killed by its
probe it exits with 9.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from edda_engine import EddaApp
from edda_engine.errors import DatabaseUnavailableError
from edda_engine.runtime.probes import POINTS
from tests.faults import conversation
from tests.faults.books import Books
from tests.faults.forks import KILLED, Forks, stop
from tests.faults.wire import end_connections

_SECONDS = 60.0


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
        if point not in self._points:
            return
        with self._lock:
            self._passed += 1
            is_now = not self._passings or self._passed in self._passings
        if not is_now:
            return
        match self._action:
            case "kill":
                os._exit(KILLED)
            case "stop":
                stop(self._folder)
            case "stop while delivering" if is_delivering(self._url):
                stop(self._folder)
                self._points = ()
            case "cut":
                end_connections(self._url)
            case "lose":
                raise OperationalError("COMMIT", None, psycopg.OperationalError("the connection is lost"))


def is_delivering(url: str) -> bool:
    """Whether somebody has the turn of delivery: the one advisory lock of a transaction."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(plain, autocommit=True) as conn:
        found = conn.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = 1701078125"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
    return found is not None and found[0] > 0


def converse(
    url: str, folder: Path, points: tuple[str, ...], passings: tuple[int, ...], action: str, options: Any
) -> None:
    """The life of one process."""
    asyncio.run(_converse(url, Fault(points, passings, action, url=url, folder=folder), options))


async def _converse(url: str, fault: Fault, options: dict[str, Any]) -> None:
    soon = {"poll_interval_seconds": 0.1, "recovery_interval_seconds": 0.1, "threads": 4} | options
    async with EddaApp("talk", url, probe=fault, **soon) as app:
        for instance_id, (workflow, arguments) in conversation.INSTANCES.items():
            await _patiently(partial(workflow.options(instance_id=instance_id).start, **arguments))
        for instance_id, expected in conversation.RESULTS.items():
            found = await _patiently(partial(app.result, instance_id, timeout=_SECONDS))
            assert found == expected, (instance_id, found)


async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """What a program does whose own question met a connection that was cut: it asks again."""
    while True:
        try:
            return await ask()
        except DatabaseUnavailableError:
            await asyncio.sleep(0.05)


class Talkers(Forks):
    """Starts processes on one database, and leaves none behind."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(folder)
        self._url = url

    def talk(
        self, *points: str, passings: tuple[int, ...] = (), action: str = "kill", **options: Any
    ) -> ForkServerProcess:
        """A worker to which something happens at these passings of these points, counted together."""
        return self.start(converse, self._url, self.folder, points, passings, action, options)

    def wait_until_it_stops(self, process: ForkServerProcess, *, transactions: int = 0) -> None:
        """Until it has stopped itself, in so many transactions, and none in which another thread would keep everybody out."""
        books = Books(self._url)
        self.wait_until_stopped(process, lambda: books.has_no_lock_but(transactions))
