"""What every benchmark program shares: the command line, a fresh database, the drive, and the counters.

How it thinks. Two libraries are only comparable if nothing around them differs, so the parts that measure are here
and the programs hold nothing but the work. A program runs one benchmark in one process and prints one line of JSON
on stdout. It needs psycopg and psutil, and no library under test.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg

RESULT_TIMEOUT_SECONDS = 120.0
_CONTROL = ("begin", "commit", "rollback", "savepoint", "release", "start transaction", "discard", ";")


# The command line.


def arguments(*benches: str) -> argparse.Namespace:
    """The options that all programs take; ``--opt key=value`` pairs arrive as the dict ``options``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", choices=benches, default=benches[0])
    parser.add_argument("--workflows", type=int, default=400, help="how many are measured")
    parser.add_argument("--steps", type=int, default=5, help="activities of one workflow")
    parser.add_argument("--concurrency", type=int, default=16, help="workflows in flight")
    parser.add_argument("--db", required=True, help="postgresql://...; dropped and created again")
    parser.add_argument("--keep-db", action="store_true", help="use the database as it is")
    parser.add_argument("--pool", type=int, default=0, help="connections of the library's pool; 0: its own default")
    parser.add_argument("--warmup", type=int, default=50, help="workflows before the measurement")
    parser.add_argument("--opt", action="append", default=[], help="key=value, for one program only")
    parsed = parser.parse_args()
    parsed.options = dict(pair.split("=", 1) for pair in parsed.opt)
    return parsed


def emit(**figures: Any) -> None:
    """Print the one line of this run."""
    print(json.dumps(figures), flush=True)


# The database.


def plain_url(url: str) -> str:
    """The URL as psycopg takes it, without a driver's name."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def with_driver(url: str) -> str:
    """The URL as SQLAlchemy takes it, naming psycopg 3."""
    return plain_url(url).replace("postgresql://", "postgresql+psycopg://", 1)


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def fresh_database(url: str) -> None:
    """Drop the database that *url* names, and create it empty."""
    name = urlsplit(plain_url(url)).path.lstrip("/")
    with psycopg.connect(with_database(plain_url(url), "postgres"), autocommit=True) as conn:
        conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        conn.execute(f'CREATE DATABASE "{name}"')


# The drive.


@dataclass(slots=True)
class Drive:
    """What became of the measured workflows."""

    wall_seconds: float
    latencies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def drive(one: Callable[[], Any], *, expected: Any, workflows: int, concurrency: int) -> Drive:
    """Call *one* from *concurrency* threads until *workflows* have ended; each call starts one and waits for it.

    A wrong result is an error, as is an exception; a run with errors is not a measurement.
    """

    def timed(_: int) -> float | str:
        began = time.perf_counter()
        try:
            found = one()
        except Exception as error:  # whatever a library may raise is counted, not passed on
            return repr(error)[:300]
        if found != expected:
            return f"got {found!r}"[:300]
        return time.perf_counter() - began

    with ThreadPoolExecutor(concurrency) as pool:
        began = time.perf_counter()
        outcomes = list(pool.map(timed, range(workflows)))
        wall = time.perf_counter() - began
    return Drive(
        wall,
        [outcome for outcome in outcomes if isinstance(outcome, float)],
        [outcome for outcome in outcomes if isinstance(outcome, str)],
    )


# The counters.


class Counters:
    """What the server and this process did between :meth:`start` and :meth:`stop`.

    ``write_txns``      transaction ids used up: transactions that wrote, and savepoints in which something was written.
    ``wal_from/_to``    the stretch of WAL; the caller may count the COMMIT records in it (see ``cluster.py``).
    ``statements``      executed, without BEGIN, COMMIT and the like; only where pg_stat_statements is loaded.
    ``cpu_py_s``        user and system CPU of this process, all threads: client threads and library together.
    ``cpu_pg_s``        the same of the whole server, if it runs on this host.
    """

    def __init__(self, url: str) -> None:
        self._conn = psycopg.connect(plain_url(url), autocommit=True)
        self._postmaster = _postmaster(self._conn)
        self._has_statements = _has_statements(self._conn)
        self._before: dict[str, Any] = {}

    def start(self) -> Counters:
        """Begin to count."""
        if self._has_statements:
            self._conn.execute(
                "SELECT pg_stat_statements_reset(0, (SELECT oid FROM pg_database WHERE datname = current_database()), 0)"
            )
        self._before = self._look()
        return self

    def stop(self) -> dict[str, Any]:
        """The differences."""
        before, after = self._before, self._look()
        found: dict[str, Any] = {
            "write_txns": after["xid"] - before["xid"],
            "wal_bytes": after["offset"] - before["offset"],
            "wal_from": before["lsn"],
            "wal_to": after["lsn"],
            "cpu_py_s": round(after["python"] - before["python"], 3),
        }
        if self._postmaster is not None:
            found["cpu_pg_s"] = round(after["server"] - before["server"], 3)
        if self._has_statements:
            found.update(self._statements())
        return found

    def _look(self) -> dict[str, Any]:
        row = self._conn.execute(
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, lsn::text, (lsn - '0/0'::pg_lsn)::bigint"
            " FROM pg_current_wal_flush_lsn() AS lsn"
        ).fetchone()
        assert row is not None
        return {
            "xid": row[0],
            "lsn": row[1],
            "offset": row[2],
            "python": time.process_time(),
            "server": _cpu_of_tree(self._postmaster),
        }

    def _statements(self) -> dict[str, int]:
        rows = self._conn.execute(
            "SELECT s.query, s.calls FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid"
            " WHERE d.datname = current_database() AND s.query NOT ILIKE '%%pg_stat_statements%%'"
        ).fetchall()
        control = sum(calls for query, calls in rows if query.strip().lower().startswith(_CONTROL))
        return {"statements": sum(calls for _, calls in rows) - control, "tx_control": control}


def _has_statements(conn: psycopg.Connection[Any]) -> bool:
    try:
        conn.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        conn.execute("SELECT count(*) FROM pg_stat_statements")
    except psycopg.Error:
        return False
    return True


def _postmaster(conn: psycopg.Connection[Any]) -> psutil.Process | None:
    try:
        parent: psutil.Process | None = psutil.Process(conn.info.backend_pid).parent()
    except psutil.Error:
        return None
    return parent if parent is not None and "postgres" in parent.name() else None


def _cpu_of_tree(root: psutil.Process | None) -> float:
    """CPU seconds of a process, of its children that live, and of those that have ended."""
    if root is None:
        return 0.0
    own = root.cpu_times()
    total: float = own.user + own.system + own.children_user + own.children_system
    for child in root.children():
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


# The figures.


def throughput(
    one: Callable[[], Any], *, expected: Any, given: argparse.Namespace, system: str, version: str, mode: str
) -> None:
    """Warm up, measure, and emit the line of a throughput run.

    What is loaded is spared by the garbage collector, of either library: as a server does that has loaded its application.
    """
    gc.collect()
    gc.freeze()
    warm = drive(one, expected=expected, workflows=given.warmup, concurrency=given.concurrency)
    counters = Counters(given.db).start()
    done = drive(one, expected=expected, workflows=given.workflows, concurrency=given.concurrency)
    counted = counters.stop()
    errors = warm.errors + done.errors
    steps = given.workflows * given.steps
    per_workflow = {
        f"{name}_per_wf": round(counted[name] / given.workflows, 3)
        for name in ("write_txns", "wal_bytes", "statements", "tx_control")
        if name in counted
    }
    emit(
        system=system,
        version=version,
        bench=given.bench,
        mode=mode,
        pool=given.pool or "default",
        workflows=given.workflows,
        steps=given.steps,
        concurrency=given.concurrency,
        errors=len(errors),
        **({"first_error": errors[0]} if errors else {}),
        wall_s=round(done.wall_seconds, 4),
        wf_per_s=round(given.workflows / done.wall_seconds, 1),
        steps_per_s=round(steps / done.wall_seconds, 1),
        latency_ms=distribution(done.latencies),
        cpu_py_ms_per_step=round(1000 * counted["cpu_py_s"] / steps, 4),
        cpu_pg_ms_per_step=round(1000 * counted["cpu_pg_s"] / steps, 4) if "cpu_pg_s" in counted else None,
        **counted,
        **per_workflow,
    )


def distribution(seconds: Sequence[float]) -> dict[str, float]:
    """Count, extremes and percentiles, in milliseconds."""
    if not seconds:
        return {"n": 0}
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(1000 * ordered[round(share * (len(ordered) - 1))], 2)

    return {"n": len(ordered), "min": at(0), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1)}


def leave() -> None:
    """End at once: a library's shutdown is no part of a throughput run."""
    os._exit(0)
