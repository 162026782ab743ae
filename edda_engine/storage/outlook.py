"""One look at what there is to do, now and next: a single statement that takes no lock and writes nothing.

Idle workers ask it instead of claiming. Each part is one probe of a partial index, so it costs the same beside a
million sleeping instances. On PostgreSQL it orders what it looks for although any row would do: that leaves the planner
no reason to read the table, however old its statistics are. SQLite needs no such help, and would be misled by it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, exists, literal, or_, select, true

from edda_engine.core.status import WAITING, Status
from edda_engine.storage.alone import Alone, Execute
from edda_engine.storage.prepared import Prepared, is_one_of
from edda_engine.storage.schema import inbox, instances, messages
from edda_engine.storage.types import clock, seconds_since

_C = instances.c


@dataclass(frozen=True, slots=True)
class Next:
    """The instance of the service that becomes due next."""

    instance_id: str
    seconds: float
    is_waiting: bool
    """Its body may be in some worker's memory."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a look has shown."""

    has_due: bool
    has_messages: bool
    next: Next | None

    @property
    def has_work(self) -> bool:
        """Whether a claim may find something."""
        return self.has_due or self.has_messages


def _is_any(_order: ColumnElement[Any], *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(*conditions)


def is_any_in_order(order: ColumnElement[Any], *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether there is a row, found by the index that has this order."""
    first = select(literal(1)).where(*conditions).order_by(order).limit(1)
    return first.scalar_subquery().is_not(None)


def _looking(dialect: str) -> Any:
    is_any = is_any_in_order if dialect == "postgresql" else _is_any
    of_service = _C.service == bindparam("of_service")
    due = is_any(_C.wake_at, of_service, is_one_of(dialect, _C.workflow_name, "names"), _C.wake_at <= clock())
    new = or_(is_any(messages.c.seq, messages.c.is_new), is_any(inbox.c.receiver, inbox.c.is_new))
    following = (
        select(_C.instance_id, _C.status, (-seconds_since(_C.wake_at)).label("seconds"))
        .where(of_service, _C.wake_at > clock())
        .order_by(_C.wake_at)
        .limit(1)
        .subquery("following")
    )
    always = select(due.label("has_due"), new.label("has_messages")).subquery("always")
    return select(always, following).select_from(always.outerjoin(following, true()))


_LOOK = Prepared(_looking)
_LOOK_ALONE = Alone(partial(_looking, "postgresql"))


def look(conn: Connection, *, service: str, names: Collection[str]) -> Outlook:
    """What is due of these workflows, whether a message waits for its delivery, and what will be due next.

    Who can run what is due next does not matter: looking again then, in vain, is cheaper than to look past others'.
    """
    return _as_outlook(conn.execute(_LOOK.on(conn), {"of_service": service, "names": names}).one())


def look_alone(execute: Execute, *, service: str, names: Collection[str]) -> Outlook:
    """The same by a statement alone; only on PostgreSQL."""
    (row,) = execute(_LOOK_ALONE, {"of_service": service, "names": names})
    return _as_outlook(row)


def _as_outlook(row: Any) -> Outlook:
    if row.instance_id is None:
        return Outlook(bool(row.has_due), bool(row.has_messages), None)
    following_one = Next(row.instance_id, float(row.seconds), Status(row.status) in WAITING)
    return Outlook(bool(row.has_due), bool(row.has_messages), following_one)
