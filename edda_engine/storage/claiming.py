"""Claiming: whoever is due becomes somebody's to work on, for a while.

Due is one question, ``wake_at <= now`` and not finished. New, retried and abandoned instances are all found by
it; a running instance's ``wake_at`` is the end of its lease, so an expired lease is due too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import CTE, ColumnElement, Connection, Integer, Update, bindparam, case, func, select, update

from edda_engine.core.events import Recorded
from edda_engine.core.status import Status
from edda_engine.storage.alone import Alone, Execute
from edda_engine.storage.prepared import Prepared, is_one_of, is_one_of_few
from edda_engine.storage.schema import instances
from edda_engine.storage.types import clock, clock_plus
from edda_engine.storage.vanishing import limiting_silence

_C = instances.c


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on an instance, until it expires or *epoch* is outdated."""

    instance_id: str
    epoch: int
    workflow_name: str
    input_json: str
    lock_timeout_seconds: float
    started_at: datetime
    is_cancelled: bool
    mailbox: str = ""
    """Under which address the instance gets messages."""
    takeovers: int = 0
    """So often in a row did the worker die that ran it."""
    takeover_progress: int = 0
    """How much was recorded when that was counted."""
    received: Recorded | None = None
    """What has come for the one wait of the body that is suspended where it was claimed; it is recorded already."""

    @property
    def has_history(self) -> bool:
        """False for an instance that nobody has worked on before."""
        return self.epoch > 1


def claim_due(conn: Connection, *, worker_id: str, service: str, names: Collection[str], limit: int) -> list[Lease]:
    """Take up to *limit* due instances, the highest priority first, then the longest-waiting.

    An expired lease is due too: that is the whole of crash recovery by time.
    """
    given = {"worker_id": worker_id, "of_service": service, "names": names, "at_most": limit}
    return [as_lease(row) for row in conn.execute(_CLAIM.on(conn), given)]


@Prepared
def _CLAIM(dialect: str) -> Any:
    found = due(dialect, bindparam("at_most", type_=Integer))
    claimed = claiming(_C.instance_id.in_(select(found.c.instance_id)))
    return claimed.returning(*LEASED, *limiting_silence(dialect))


def claim_new(execute: Execute, *, worker_id: str, service: str, names: Collection[str], limit: int) -> list[Lease]:
    """Take up to *limit* of those that nobody has worked on, by a statement alone; only on PostgreSQL.

    Their epoch, which grows with each claim, is 0. They wait for nothing, so no message need be delivered before.
    """
    given = {"worker_id": worker_id, "of_service": service, "names": names, "at_most": limit}
    return [as_lease(row) for row in execute(CLAIM_NEW, given)]


def _claiming_new() -> Any:
    found = due("postgresql", bindparam("at_most", type_=Integer), _C.lock_epoch == 0)
    return claiming(is_one_of_few(_C.instance_id, select(found.c.instance_id))).returning(*LEASED)


CLAIM_NEW = Alone(_claiming_new)


def due(dialect: str, at_most: ColumnElement[int], *conditions: ColumnElement[bool]) -> CTE:
    """Which of the workflows *names* of the service *of_service* are due, at most so many; their rows are locked."""
    return (
        select(_C.instance_id)
        .where(is_of_worker(dialect), _C.wake_at <= clock(), *conditions)
        .order_by(_C.priority.desc(), _C.wake_at)
        .limit(at_most)
        # PostgreSQL skips rows that another worker is claiming. SQLite has no row locks and SQLAlchemy
        # leaves the clause out; there BEGIN IMMEDIATE already admits one writer.
        .with_for_update(skip_locked=True)
        .cte("due")
    )


def is_of_worker(dialect: str) -> ColumnElement[bool]:
    """Whether the worker can run it: of its service, and one of the workflows that it knows."""
    return (_C.service == bindparam("of_service")) & is_one_of(dialect, _C.workflow_name, "names")


def claiming(which: ColumnElement[bool]) -> Update:
    """These instances are *worker_id*'s from now on."""
    expires_at = clock_plus(_C.lock_timeout_seconds)
    return (
        update(instances)
        .where(which)
        .values(
            status=Status.RUNNING,
            locked_by=bindparam("worker_id"),
            lock_epoch=_C.lock_epoch + 1,
            takeovers=case((_C.locked_by.is_not(None), _C.takeovers + 1), else_=_C.takeovers),
            lock_expires_at=expires_at,
            wake_at=expires_at,
            started_at=func.coalesce(_C.started_at, clock()),
            updated_at=clock(),
        )
    )


LEASED: tuple[ColumnElement[Any], ...] = (
    _C.instance_id,
    _C.lock_epoch,
    _C.workflow_name,
    _C.input,
    _C.lock_timeout_seconds,
    _C.started_at,
    _C.cancel_requested_at,
    func.coalesce(_C.mailbox, _C.instance_id).label("mailbox"),
    _C.takeovers,
    _C.takeover_progress,
)
"""What a claimed row must tell, for :func:`as_lease`."""


def as_lease(row: Sequence[Any], received: Recorded | None = None) -> Lease:
    """The lease that a row tells of, which begins with :data:`LEASED`."""
    # Not `IS NOT NULL` in SQL: SQLite 3.40 answers it wrongly in RETURNING.
    is_cancelled, mailbox, takeovers, progress = row[6] is not None, row[7], row[8], row[9]
    return Lease(
        row[0], row[1], row[2], row[3], float(row[4]), row[5], is_cancelled, mailbox, takeovers, progress, received
    )
