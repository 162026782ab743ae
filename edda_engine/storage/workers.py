"""Workers: who claims, and how the others see that one has died.

On PostgreSQL a worker holds a session advisory lock on a connection of its own; the server drops it with the
process. On SQLite all workers are on one host, and the pid with its start time tells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, text, update

from edda_engine.storage.schema import workers
from edda_engine.storage.types import clock, seconds_since

_C = workers.c


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A registered worker."""

    worker_id: str
    service: str
    host: str
    pid: int
    process_started: str
    advisory_key: int | None
    workflows: tuple[str, ...] = ()
    version: str = ""


def register(conn: Connection, worker: WorkerRecord) -> None:
    """Enter a worker. Its advisory lock, if any, is held already."""
    conn.execute(
        insert(workers).values(
            worker_id=worker.worker_id,
            service=worker.service,
            host=worker.host,
            pid=worker.pid,
            process_started=worker.process_started,
            advisory_key=worker.advisory_key,
            workflows=json.dumps(worker.workflows),
            version=worker.version,
            started_at=clock(),
            heartbeat_at=clock(),
        )
    )


def beat(conn: Connection, worker_id: str, workflow_names: Sequence[str]) -> bool:
    """Say that this worker lives; False if a sibling took it for dead and removed it."""
    statement = (
        update(workers)
        .where(_C.worker_id == worker_id)
        .values(heartbeat_at=clock(), workflows=json.dumps(list(workflow_names)))
        .returning(_C.worker_id)
    )
    return conn.execute(statement).first() is not None


def unregister(conn: Connection, worker_id: str) -> bool:
    """Remove a worker; False if somebody else did."""
    return conn.execute(delete(workers).where(_C.worker_id == worker_id).returning(_C.worker_id)).first() is not None


def siblings(conn: Connection, *, service: str, worker_id: str) -> list[WorkerRecord]:
    """The other registered workers of the service."""
    columns = (_C.worker_id, _C.service, _C.host, _C.pid, _C.process_started, _C.advisory_key)
    query = select(*columns).where(_C.service == service, _C.worker_id != worker_id)
    return [WorkerRecord(*row) for row in conn.execute(query)]


def silent(conn: Connection, *, service: str, seconds: float) -> list[str]:
    """Workers without a heartbeat for so long that no trace of them is worth keeping."""
    query = select(_C.worker_id).where(_C.service == service, seconds_since(_C.heartbeat_at) > seconds)
    return list(conn.execute(query).scalars())


_WITH_SIGN_OF_LIFE = text(
    "SELECT w.worker_id, w.service, w.host, w.pid, w.process_started, w.advisory_key,"
    " EXISTS (SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND ((l.classid::bigint << 32) | l.objid::bigint) = w.advisory_key)"
    " FROM edda_workers w"
    " WHERE w.service = :service AND w.worker_id <> :worker_id AND w.advisory_key IS NOT NULL"
)


def siblings_with_sign_of_life(conn: Connection, *, service: str, worker_id: str) -> list[tuple[WorkerRecord, bool]]:
    """PostgreSQL: the other workers that have an advisory lock, and whether they hold it.

    Without the lock a worker's connection is gone, and so, but for a moment, is the worker.
    """
    rows = conn.execute(_WITH_SIGN_OF_LIFE, {"service": service, "worker_id": worker_id})
    return [(WorkerRecord(*row[:6]), bool(row[6])) for row in rows]


def live_workflows(conn: Connection) -> dict[str, set[str]]:
    """The workflows that registered workers know, by service."""
    found: dict[str, set[str]] = {}
    for service, names in conn.execute(select(_C.service, _C.workflows)):
        found.setdefault(service, set()).update(json.loads(names))
    return found
