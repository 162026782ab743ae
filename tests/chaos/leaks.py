"""What the processes hold at the end, beside what they held when they were fresh.

A thread or a connection that is lost now and then cannot be told from one that is in use. So each process is looked at
when nothing is under way: it may have what it had when it had just begun, and beyond that only what pools of a known
size keep. Of the witness, which has lived through everything, even the names of its threads are compared; of the
servers' workers, of which the oldest is some seconds old, their number.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import make_url, text

from edda_engine.storage.database import MOST_CONNECTIONS
from tests.chaos import story
from tests.chaos.cast import Cast

LOOP_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Of the executor that an event loop has by itself; they are made when they are needed, and stay."""

_CONNECTIONS = text(
    "SELECT application_name, count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    " GROUP BY application_name"
)
_POOLS = Counter(
    [
        *(f"edda-activity_{place}" for place in range(story.THREADS)),
        *(f"asyncio_{place}" for place in range(LOOP_THREADS)),
    ]
)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one process holds."""

    threads: int
    connections: int
    """Of the application's pool; on SQLite of both pools together."""
    own_connections: int = 0
    """Of the engine's pool; on SQLite they cannot be told apart."""

    def __str__(self) -> str:
        return f"{self.threads} threads, {self.connections} + {self.own_connections} connections"


@dataclass(frozen=True, slots=True)
class Fresh:
    """What was held at the beginning."""

    witness: Footprint
    threads_of_the_witness: Counter[str]
    threads_of_a_worker: int

    @classmethod
    def of(cls, cast: Cast) -> Fresh:
        """Look at processes that have just begun."""
        held = footprints(cast)
        ours = {worker.is_witness: held[worker.pid] for worker in cast.workers()}
        return cls(ours[True], cast.threads_of_the_witness(), ours[False].threads)


def footprints(cast: Cast) -> dict[int, Footprint]:
    """Of each worker, by pid."""
    if cast.is_sqlite:
        file = Path(str(make_url(cast.engine.url).database))
        found = {worker.pid: psutil.Process(worker.pid) for worker in cast.workers()}
        return {pid: Footprint(process.num_threads(), _times_opened(process, file)) for pid, process in found.items()}
    by_name = _connections(cast)
    return {
        pid: Footprint(psutil.Process(pid).num_threads(), by_name[_name(pid)], by_name[f"{_name(pid)} edda"])
        for pid in (worker.pid for worker in cast.workers())
    }


def leaks(cast: Cast, fresh: Fresh) -> Counter[str]:
    """What is too much, in words."""
    witness = next(worker.pid for worker in cast.workers() if worker.is_witness)
    threads = cast.threads_of_the_witness() - (fresh.threads_of_the_witness | _POOLS)
    found = Counter({f"thread {name} of the witness": count for name, count in threads.items()})
    shared = story.POOL_SIZE + (MOST_CONNECTIONS if cast.is_sqlite else 0)
    most_threads = fresh.threads_of_a_worker + story.THREADS + LOOP_THREADS + story.REQUEST_THREADS
    for pid, held in footprints(cast).items():
        excesses = {
            "threads": 0 if pid == witness else held.threads - most_threads,
            "connections of its pool": held.connections - shared,
            "connections of the engine": held.own_connections - MOST_CONNECTIONS,
        }
        who = "the witness" if pid == witness else f"process {pid}"
        found.update({f"{what}, {who}": excess for what, excess in excesses.items() if excess > 0})
    return found + _strangers(cast)


def _strangers(cast: Cast) -> Counter[str]:
    """PostgreSQL: connections of processes that are no more, or that nobody has named."""
    if cast.is_sqlite:
        return Counter()
    known = {f"{_name(worker.pid)}{end}" for worker in cast.workers() for end in ("", " edda")}
    return Counter(
        {f"connections of {name!r}": count for name, count in _connections(cast).items() if name not in known}
    )


def _name(pid: int) -> str:
    return f"chaos {pid}"


def _connections(cast: Cast) -> Counter[str]:
    with cast.engine.connect() as conn:
        return Counter({row[0]: row[1] for row in conn.execute(_CONNECTIONS)})


def _times_opened(process: psutil.Process, file: Path) -> int:
    """Each connection of SQLite opens the file once."""
    return sum(Path(opened.path) == file for opened in process.open_files())
