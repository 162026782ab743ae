"""Starts: how an instance comes into the database, for anybody to claim or claimed already by who starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Float, Integer, Text, bindparam, case, cast, func, literal, select, text

from edda_engine.core.codec import parse
from edda_engine.core.ports import NewInstance
from edda_engine.core.status import Status
from edda_engine.errors import InstanceConflictError
from edda_engine.storage.claiming import Lease
from edda_engine.storage.prepared import Columns, Prepared, as_rows, given_rows, insert_for
from edda_engine.storage.schema import instances
from edda_engine.storage.types import clock, clock_plus, stored_instant

_C = instances.c

_NEW: Columns = {
    "instance_id": Text,
    "workflow_name": Text,
    "service": Text,
    "input": Text,
    "source_hash": Text,
    "priority": Integer,
    "delay": Float,
    "start_at": Text,
    "lock_timeout_seconds": Float,
}

_CLAIMED: Columns = {**_NEW, "claimed_by": Text}


def inserting(dialect: str, parameter: str) -> Any:
    """Write those starts of a parameter made by :func:`as_parameter` whose ids are new; returns ids and instants."""
    new = dict(given_rows(dialect, parameter, _CLAIMED).c.items())
    is_claimed = new["claimed_by"].is_not(None)
    expires_at = clock_plus(new["lock_timeout_seconds"])
    values = _for_anybody(dialect, new)
    values |= {
        "status": case((is_claimed, literal(str(Status.RUNNING))), else_=literal(values["status"])),
        "wake_at": case((is_claimed, expires_at), else_=values["wake_at"]),
        "locked_by": new["claimed_by"],
        "lock_expires_at": case((is_claimed, expires_at)),
        "lock_epoch": case((is_claimed, 1), else_=values["lock_epoch"]),
        "started_at": case((is_claimed, clock())),
    }
    return _unless_known(
        insert_for(dialect)(instances)
        # SQLite would read ON CONFLICT as a join's condition if there were no WHERE before it.
        .from_select(list(values), select(*values.values()).where(text("1 = 1")), include_defaults=False)
    ).returning(_C.instance_id, _C.started_at)


def _for_anybody(dialect: str, new: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a start that waits to be claimed."""
    is_postgresql = dialect == "postgresql"
    start_at = cast(new["start_at"], _C.wake_at.type) if is_postgresql else new["start_at"]
    return {
        "instance_id": new["instance_id"],
        "workflow_name": new["workflow_name"],
        "service": new["service"],
        "status": str(Status.PENDING),
        "input": cast(new["input"], _C.input.type) if is_postgresql else new["input"],
        "source_hash": new["source_hash"],
        "priority": new["priority"],
        "wake_at": func.coalesce(start_at, clock_plus(new["delay"])),
        "lock_epoch": 0,
        "lock_timeout_seconds": new["lock_timeout_seconds"],
        "created_at": clock(),
        "updated_at": clock(),
    }


def _unless_known(insert: Any) -> Any:
    return insert.on_conflict_do_nothing(index_elements=["instance_id"])


def _inserting_one(dialect: str) -> Any:
    """Write one start for anybody, as plainly as can be: in a session it is often parsed and planned anew.

    (The driver forgets what it has prepared whenever a transaction is rolled back, as after each request that only reads.)
    """
    new = {name: bindparam(f"new_{name}", type_=kind()) for name, kind in _NEW.items()}
    return _unless_known(insert_for(dialect)(instances).values(_for_anybody(dialect, new))).returning(_C.instance_id)


_INSERT = Prepared(partial(inserting, parameter="rows"))
_INSERT_ONE = Prepared(_inserting_one)


def insert_instance(conn: Connection, new: NewInstance) -> bool:
    """Write a start; False if the same one is there already.

    :raises InstanceConflictError: the id belongs to another workflow or input.
    """
    given = {f"new_{name}": value for name, value in _values(new, conn.dialect.name).items()}
    if conn.execute(_INSERT_ONE.on(conn), given).first() is not None:
        return True
    started = _known_start(conn, new, None)
    if isinstance(started, InstanceConflictError):
        raise started
    return insert_instance(conn, new) if started is None else started.is_new


@dataclass(frozen=True, slots=True)
class Started:
    """What became of a start: *is_new* is false if the same one was there already."""

    is_new: bool
    lease: Lease | None = None
    """The right to work on it, of the worker it was claimed for."""


def insert_instances(
    conn: Connection, starts: Sequence[tuple[NewInstance, str | None]]
) -> list[Started | InstanceConflictError]:
    """Write starts, each for anybody to claim or claimed already by the worker that is named."""
    rows = conn.execute(_INSERT.on(conn), {"rows": as_parameter(starts, conn.dialect.name)})
    inserted = {row[0]: row[1] for row in rows}
    return [
        as_started(new, claimed_by, inserted.pop(new.instance_id))
        if new.instance_id in inserted  # of two that are the same, one
        else _known_start(conn, new, claimed_by) or insert_instances(conn, [(new, claimed_by)])[0]
        for new, claimed_by in starts
    ]


def as_parameter(starts: Sequence[tuple[NewInstance, str | None]], dialect: str) -> str:
    """The starts as one value."""
    return as_rows([{**_values(new, dialect), "claimed_by": claimed_by} for new, claimed_by in starts])


def _values(new: NewInstance, dialect: str) -> dict[str, Any]:
    return {
        "instance_id": new.instance_id,
        "workflow_name": new.workflow_name,
        "service": new.service,
        "input": new.input_json,
        "source_hash": new.source_hash,
        "priority": new.priority,
        "delay": new.delay_seconds or 0.0,
        "start_at": None if new.start_at is None else str(stored_instant(new.start_at, dialect)),
        "lock_timeout_seconds": new.lock_timeout_seconds,
    }


def as_started(new: NewInstance, claimed_by: str | None, started_at: datetime | None) -> Started:
    """What became of a start whose row is written."""
    if claimed_by is None:
        return Started(True)
    assert started_at is not None
    lease = Lease(
        new.instance_id, 1, new.workflow_name, new.input_json, new.lock_timeout_seconds, started_at,
        is_cancelled=False, mailbox=new.instance_id,
    )  # fmt: skip
    return Started(True, lease)


def _known_start(conn: Connection, new: NewInstance, claimed_by: str | None) -> Started | InstanceConflictError | None:
    """What the instance of that id means for this start; ``None`` if it is gone since its id was refused."""
    columns = (_C.workflow_name, _C.input, _C.locked_by, _C.lock_epoch, _C.started_at)
    known = conn.execute(select(*columns).where(_C.instance_id == new.instance_id)).first()
    if known is None:
        return None
    if known.workflow_name != new.workflow_name or parse(known.input) != parse(new.input_json):
        return InstanceConflictError(
            new.instance_id,
            recorded=f"{known.workflow_name}({_short(known.input)})",
            requested=f"{new.workflow_name}({_short(new.input_json)})",
        )
    if claimed_by is not None and (known.locked_by, known.lock_epoch) == (claimed_by, 1):
        # This very start: only the answer to its commit was lost. Its worker must know what it holds.
        return as_started(new, claimed_by, known.started_at)
    return Started(False)


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"
