"""What the programs of ``costs.py`` share."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any

import psycopg
from common import plain_url
from sqlalchemy import Engine, event

ENVIRONMENT_BEGAN = "EDDA_BENCH_BEGAN_AT"
"""When the process that is measured was started, by the clock of this machine."""


START_PAUSE_SECONDS, STARTS_BEFORE = 0.01, 20
"""Between two starts that are measured, and how many are made before."""

LOCK_WAIT_SECONDS = 0.01
_LOOK_SECONDS = 0.004

_ENVIRONMENT_LAUNCHES = "EDDA_BENCH_LAUNCHES_AT"
"""The same of the moment when it has imported all, and launches the library."""


def launches() -> None:
    """This process has imported all, and launches the library now."""
    os.environ[_ENVIRONMENT_LAUNCHES] = str(time.time())


def tell_seconds() -> None:
    """Print how long ago this process was started, and how long ago it launched the library."""
    now = time.time()
    print(
        "seconds", *(now - float(os.environ[name]) for name in (ENVIRONMENT_BEGAN, _ENVIRONMENT_LAUNCHES)), flush=True
    )


def told_seconds(output: str) -> dict[str, float]:
    """What a process has told by :func:`tell_seconds`, as figures of a replay."""
    process, launch = map(float, output.split("seconds ")[1].split())
    return {"replay_seconds": round(process, 3), "from_launch_seconds": round(launch, 3)}


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite")


class StatementCounter:
    """Counts what this process executes through SQLAlchemy, on any engine, without BEGIN and COMMIT."""

    def __init__(self) -> None:
        self.statements: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.statements.values())

    def __enter__(self) -> StatementCounter:
        event.listen(Engine, "before_cursor_execute", self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        event.remove(Engine, "before_cursor_execute", self._count)

    def _count(self, _conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.statements[statement] += 1


class LockWatch:
    """Looks every few milliseconds who waits for a lock in a database."""

    _QUERY = (
        "SELECT pid, waitstart, extract(epoch FROM clock_timestamp() - waitstart) FROM pg_locks"
        " WHERE NOT granted AND waitstart IS NOT NULL"
        " AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
    )

    def __init__(self, url: str) -> None:
        self._url = plain_url(url)
        self._seconds: dict[Any, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @property
    def figures(self) -> dict[str, Any]:
        """Of the waits that were seen: one that was shorter than a pause between two looks may not have been."""
        return {
            "longest_lock_wait_ms": round(1000 * max(self._seconds.values(), default=0.0), 1),
            "lock_waits_over_10_ms": sum(seconds > LOCK_WAIT_SECONDS for seconds in self._seconds.values()),
        }

    def __enter__(self) -> LockWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as conn:
            while not self._ending.wait(_LOOK_SECONDS):
                for pid, since, seconds in conn.execute(self._QUERY):
                    self._seconds[pid, since] = float(seconds)
