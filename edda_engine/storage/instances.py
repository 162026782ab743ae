"""Instances: renew, release, cancel, look up. They are claimed in :mod:`edda_engine.storage.claiming`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    RowMapping,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from edda_engine.core.codec import parse
from edda_engine.core.status import FINISHED, Status
from edda_engine.storage import channels, retries, waits
from edda_engine.storage.documents import json_equals
from edda_engine.storage.schema import definitions, instances, workers
from edda_engine.storage.types import clock, clock_plus
from edda_engine.storage.vanishing import limiting_silence

_C = instances.c


def renew(conn: Connection, *, worker_id: str, instance_ids: Sequence[str]) -> dict[str, bool | None]:
    """Extend the leases this worker still holds; returns them, each with whether it is to be cancelled.

    A row that another transaction has locked is not waited for. It is held all the same, but not extended: ``None``.
    """
    mine = (
        select(_C.instance_id)
        .where(_C.instance_id.in_(instance_ids), _C.locked_by == worker_id)
        .order_by(_C.instance_id)
        .with_for_update(skip_locked=True)
        .cte("mine")
    )
    expires_at = clock_plus(_C.lock_timeout_seconds)
    renewed = (
        update(instances)
        .where(_C.instance_id.in_(select(mine.c.instance_id)))
        .values(lock_expires_at=expires_at, wake_at=expires_at)
        .returning(_C.instance_id, _C.cancel_requested_at, *limiting_silence(conn.dialect.name))
    )
    found: dict[str, bool | None] = {row[0]: row[1] is not None for row in conn.execute(renewed)}
    missing = [instance_id for instance_id in instance_ids if instance_id not in found]
    if missing:
        held = select(_C.instance_id).where(_C.instance_id.in_(missing), _C.locked_by == worker_id)
        found |= dict.fromkeys(conn.execute(held).scalars())
    return found


def is_cancelled(conn: Connection, instance_id: str) -> bool:
    """Whether the instance is cancelled, or was asked to stop."""
    query = select(_C.instance_id).where(_C.instance_id == instance_id, _C.cancel_requested_at.is_not(None))
    return conn.execute(query).first() is not None


_NOT_FINISHED = _C.status.not_in(list(FINISHED))


def _free(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Which instances meet these conditions and are not finished, but for those whose row somebody else has locked.

    A request that cancels an instance has its row locked until it commits. Nobody of the engine waits for that.
    """
    free = (
        select(_C.instance_id)
        .where(*conditions, _NOT_FINISHED)
        .order_by(_C.instance_id)
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    return _C.instance_id.in_(select(free.c.instance_id))


def _is_any(conn: Connection, *conditions: ColumnElement[bool]) -> bool:
    return bool(conn.execute(select(exists().where(*conditions, _NOT_FINISHED))).scalar_one())


_RELEASED: dict[str, Any] = {
    "locked_by": None, "lock_expires_at": None, "wake_at": clock(), "lock_epoch": _C.lock_epoch + 1, "updated_at": clock(),
}  # fmt: skip


ENDED: dict[str, Any] = {
    "locked_by": null(), "lock_expires_at": null(), "wake_at": null(), "updated_at": clock(), "completed_at": clock(),
}  # fmt: skip
"""What an end sets besides the outcome."""


def release_worker(conn: Connection, worker_id: str) -> list[str]:
    """Make what *worker_id* holds due at once, for others; its late writes are refused from now on.

    What somebody has locked is left: :func:`is_holding` tells.
    """
    released = update(instances).where(_free(_C.locked_by == worker_id)).values(_RELEASED)
    taken_over = released.values(takeovers=_C.takeovers + 1).returning(_C.instance_id)
    return list(conn.execute(taken_over).scalars())


def is_holding(conn: Connection, worker_id: str) -> bool:
    """Whether something is held by *worker_id*."""
    return _is_any(conn, _C.locked_by == worker_id)


def note_takeover(conn: Connection, *, instance_id: str, epoch: int, progress: int) -> None:
    """Count takeovers from one again: something was recorded since the last ones were counted."""
    conn.execute(
        update(instances)
        .where(_free(_C.instance_id == instance_id, _C.lock_epoch == epoch))
        .values(takeovers=1, takeover_progress=progress)
    )


def release(conn: Connection, *, worker_id: str, instance_ids: Collection[str], delay_seconds: float = 0.0) -> bool:
    """Hand leases back; the instances are due after *delay_seconds*. False if one is left that somebody has locked."""
    held = (_C.instance_id.in_(instance_ids), _C.locked_by == worker_id)
    wake_at = clock_plus(literal(delay_seconds, Float))
    conn.execute(update(instances).where(_free(*held)).values(_RELEASED | {"wake_at": wake_at}))
    return not _is_any(conn, *held)


IS_LAST_RUN = text("edda_instances.status <> 'recurred'")
"""Written out, so that the partial index of mailboxes is found by it."""


def current_run(conn: Connection, instance_id: str) -> str:
    """The last of the runs that have gone on from this one; the id itself if it has not recurred."""
    mailbox = select(func.coalesce(_C.mailbox, _C.instance_id)).where(_C.instance_id == instance_id).scalar_subquery()
    query = select(_C.instance_id).where(_C.mailbox == mailbox, IS_LAST_RUN)
    return str(conn.execute(query).scalar() or instance_id)


def make_due(conn: Connection, *, instance_id: str, epoch: int) -> bool:
    """Let a waiting instance be claimed now, if nobody has had it since *epoch*. False if somebody has locked its row."""
    waits_for_us = (
        _C.instance_id == instance_id,
        _C.lock_epoch == epoch,
        _C.locked_by.is_(None),
        _C.error.is_(None),  # one that is blocked stays so
    )
    done = update(instances).where(_free(*waits_for_us)).values(wake_at=clock()).returning(_C.instance_id)
    # Not the row count: SQLite's driver has none for a statement that begins with WITH.
    return conn.execute(done).first() is not None or not _is_any(conn, *waits_for_us)


def release_strays(conn: Connection, *, worker_id: str, held: Collection[str]) -> bool:
    """Hand back what is locked by *worker_id* although it does not know of it. False if something is left."""
    strays = (_C.locked_by == worker_id, _C.instance_id.not_in(held))
    conn.execute(update(instances).where(_free(*strays)).values(_RELEASED))
    return not _is_any(conn, *strays)


def request_cancel(conn: Connection, instance_id: str, reason: str | None) -> bool | None:
    """Cancel an instance nobody works on at once; ask the worker of a running one to stop.

    :returns: True if it is cancelled by this, or asked to stop; False if it had ended; ``None`` if there is none.
    """
    row = conn.execute(select(_C.status, _C.locked_by).where(_C.instance_id == instance_id).with_for_update()).first()
    if row is None:
        return None
    if Status(row.status).is_finished:
        return False
    values: dict[str, Any] = {"cancel_requested_at": clock(), "cancel_reason": reason, "updated_at": clock()}
    if row.locked_by is None:
        values |= {"status": Status.CANCELLED, "wake_at": None, "completed_at": clock(), "error": None}
        retries.forget_instances(conn, [instance_id])
        waits.forget_instances(conn, [instance_id])
        channels.forget_instance(conn, instance_id)
    conn.execute(update(instances).where(_C.instance_id == instance_id).values(**values))
    return True


def take_up_again(conn: Connection, instance_id: str) -> bool:
    """Make a failed or blocked instance due again; False if there is nothing to take up."""
    done = conn.execute(
        update(instances)
        .where(
            _C.instance_id == instance_id,
            _C.locked_by.is_(None),
            or_(_C.status == Status.FAILED, and_(_NOT_FINISHED, _C.wake_at.is_(None), _C.error.is_not(None))),
        )
        .values(
            status=Status.RUNNING,
            error=None,
            takeovers=0,
            output=None,
            completed_at=None,
            cancel_requested_at=None,
            cancel_reason=None,
            wake_at=clock(),
            updated_at=clock(),
        )
        .returning(_C.instance_id)
    )
    return done.first() is not None


_BOX = func.coalesce(_C.mailbox, _C.instance_id).label("mailbox")

_LISTED = (
    _C.instance_id, _C.workflow_name, _C.service, _C.status, _C.input, _C.output, _C.error, _C.source_hash, _C.priority,
    _C.wake_at, _C.locked_by, _C.lock_expires_at, _C.lock_epoch, _C.lock_timeout_seconds, _C.parent_instance_id,
    _C.continued_from, _BOX, _C.cancel_requested_at, _C.cancel_reason, _C.created_at, _C.started_at, _C.updated_at,
    _C.completed_at,
)  # fmt: skip


def find(conn: Connection, instance_id: str) -> RowMapping | None:
    """One instance, or ``None``."""
    return conn.execute(select(*_LISTED).where(_C.instance_id == instance_id)).mappings().first()


def outcome(conn: Connection, instance_id: str) -> RowMapping | None:
    """What ``result()`` needs of an instance, or ``None`` if there is no such instance."""
    return conn.execute(_OUTCOME, {"id": instance_id}).mappings().first()


_IS_IT = _C.instance_id == bindparam("id")
_OUTCOME = select(_C.workflow_name, _C.status, _C.output, _C.error, _C.cancel_reason).where(_IS_IT)


def is_known(conn: Connection, instance_id: str) -> bool:
    """Whether there is such an instance."""
    return conn.execute(_KNOWN, {"id": instance_id}).first() is not None


_KNOWN = select(_C.instance_id).where(_IS_IT)


def listed(
    conn: Connection,
    *,
    service: str | None,
    statuses: Collection[Status] | None,
    workflow_name: str | None,
    instance_id: str | None,
    input_filters: Mapping[str, str],
    started_after: datetime | None,
    started_before: datetime | None,
    after: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[RowMapping]:
    """Instances that match, newest first, after a known one. *input_filters*: JSON texts by dotted path."""
    query: Select[Any] = select(*_LISTED).order_by(_C.created_at.desc(), _C.instance_id.desc()).limit(limit)
    if service is not None:
        query = query.where(_C.service == service)
    if statuses is not None:
        query = query.where(_C.status.in_([str(status) for status in statuses]))
    if workflow_name is not None:
        query = query.where(_C.workflow_name == workflow_name)
    if instance_id is not None:
        query = query.where(_C.instance_id == instance_id)
    if started_after is not None:
        query = query.where(_C.created_at >= started_after)
    if started_before is not None:
        query = query.where(_C.created_at < started_before)
    if after is not None:
        created_at, last_id = after
        query = query.where(
            or_(_C.created_at < created_at, and_(_C.created_at == created_at, _C.instance_id < last_id))
        )
    for path, wanted in input_filters.items():
        query = query.where(json_equals(conn.dialect.name, _C.input, path.split("."), wanted))
    return conn.execute(query).mappings().all()


def unclaimable(conn: Connection, service: str) -> list[tuple[str, int]]:
    """Workflows of *service* with due instances that no registered worker knows, and how many are due."""
    due = conn.execute(
        select(_C.workflow_name, func.count())
        .where(_C.service == service, _C.wake_at <= clock())
        .group_by(_C.workflow_name)
    ).all()
    if not due:
        return []
    known: set[str] = set()
    for names_json in conn.execute(select(workers.c.workflows).where(workers.c.service == service)).scalars():
        known.update(parse(names_json))
    return [(name, count) for name, count in due if name not in known]


def save_definitions(conn: Connection, declared: Iterable[tuple[str, str, str]]) -> None:
    """Keep the source of each workflow version once: ``(name, hash, source)``."""
    dialect_insert: Any = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    rows = [{"workflow_name": name, "source_hash": digest, "source": source} for name, digest, source in declared]
    if rows:
        statement = dialect_insert(definitions).values(
            workflow_name=bindparam("workflow_name"), source_hash=bindparam("source_hash"), source=bindparam("source"),
            created_at=clock(),
        )  # fmt: skip
        conn.execute(statement.on_conflict_do_nothing(), rows)
