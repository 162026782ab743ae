"""Steps, starts and ends that touch nothing else, in one statement that checks the leases and writes.

How it thinks. A transaction of several statements waits for the server at each of them, and keeps its locks meanwhile.
One statement by itself waits once. It locks the rows of the instances first, and a row that is locked is read as it is
then, not as it was when the statement began (PostgreSQL, "Read Committed Isolation Level"); what follows from it is
written by the same statement, so nobody can take a lease in between.

What it does not write is no judgement: the lease may be gone, the row locked, the step recorded already. All of that is
seldom, and :mod:`edda_engine.storage.commit` finds out which it is. Only on PostgreSQL: SQLite has no ``INSERT`` in a
``WITH``, and no way to a server to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    cast,
    false,
    literal_column,
    null,
    select,
    union_all,
    update,
)

from edda_engine.storage import history, starts
from edda_engine.storage.instances import ENDED
from edda_engine.storage.prepared import Columns, as_rows, given_rows, is_one_of
from edda_engine.storage.schema import instances
from edda_engine.storage.units import BatchOutcome, End, HeldUnit, Holder, Saved, Start, Step, Unit

_C = instances.c
_PG = "postgresql"

_HOLDER: Columns = {"instance_id": Text, "worker_id": Text, "epoch": Integer}
_STEP_OF_HOLDER: Columns = {**history.STEP, **_HOLDER}
_END_OF_HOLDER: Columns = {**_HOLDER, "new_status": Text, "new_output": Text, "new_error": Text}

_STARTED, _STEP, _ENDED = "start", "step", "end"


def is_plain(unit: Unit) -> bool:
    """Whether one statement can write it: it touches its own row of history or instances, and nothing else."""
    match unit:
        case Step():
            return not (unit.outbox or unit.messages or unit.ends_wait or unit.had_retries)
        case End():
            return not (unit.had_retries or unit.had_waits or unit.mailbox or unit.successor)
        case Start():
            return True
        case _:
            return False


def write_at_once(conn: Connection, units: Sequence[Unit]) -> list[BatchOutcome | None]:
    """Write plain units; ``None`` for each that is not written."""
    steps = [unit for unit in units if isinstance(unit, Step)]
    ends = [unit for unit in units if isinstance(unit, End)]
    new = [(unit.new, unit.claimed_by) for unit in units if isinstance(unit, Start)]
    given: dict[str, Any] = {}
    if steps or ends:
        held: list[HeldUnit] = [*steps, *ends]
        given["ids"] = list({unit.holder.instance_id for unit in held})
    if steps:
        given["steps"] = as_rows([step.as_row() | _holder(step.holder) for step in steps])
    if ends:
        given["ends"] = as_rows([_end(end) for end in ends])
    if new:
        given["starts"] = starts.as_parameter(new, conn.dialect)
    statement = _statement(bool(steps), bool(ends), bool(new))
    written = {(row[0], row[1], row[2]): row for row in conn.execute(statement, given).all()}
    return [_outcome(unit, written.pop(_key(unit), None)) for unit in units]  # of two that are the same, one


def _key(unit: Unit) -> tuple[str, str, str]:
    match unit:
        case Step():
            return _STEP, unit.holder.instance_id, unit.key.activity_id
        case End():
            return _ENDED, unit.holder.instance_id, ""
        case Start():
            return _STARTED, unit.new.instance_id, ""
        case _:
            raise AssertionError(unit)


def _outcome(unit: Unit, row: Any) -> BatchOutcome | None:
    if row is None:
        return None
    if isinstance(unit, Start):
        return starts.as_started(unit.new, unit.claimed_by, row.started_at)
    return Saved(is_cancelled=True) if row.is_cancelled else _SAVED


_SAVED = Saved()
_NO_STEP: ColumnElement[str] = literal_column("''")


def _holder(holder: Holder) -> dict[str, Any]:
    return {"instance_id": holder.instance_id, "worker_id": holder.worker_id, "epoch": holder.epoch}


def _end(end: End) -> dict[str, Any]:
    outcome = {"new_status": end.status, "new_output": end.output_json, "new_error": end.error_json}
    return _holder(end.holder) | outcome


@cache
def _statement(has_steps: bool, has_ends: bool, has_starts: bool) -> Any:
    """The statement for a batch with units of these kinds."""
    held = (
        select(_C.instance_id, _C.locked_by, _C.lock_epoch, _C.cancel_requested_at.is_not(None).label("is_cancelled"))
        .where(is_one_of(_PG, _C.instance_id, "ids"))
        .order_by(_C.instance_id)  # as every statement that locks several: no two wait for each other
        .with_for_update(read=not has_ends, skip_locked=True)
        .cte("held")
    )
    parts = []
    if has_steps:
        given = given_rows(_PG, "steps", _STEP_OF_HOLDER, name="steps")
        steps = history.inserting(_PG, given, given.join(held, _is_of_holder(given, held))).cte("written")
        parts.append(_written(_STEP, steps, steps.c.activity_id, held))
    if has_ends:
        parts.append(_written(_ENDED, _ending(held), _NO_STEP, held))
    if has_starts:
        started = starts.inserting(_PG, "starts").cte("started")
        parts.append(_row(_STARTED, started.c.instance_id, _NO_STEP, false(), started.c.started_at))
    return union_all(*parts)


def _ending(held: CTE) -> CTE:
    given = given_rows(_PG, "ends", _END_OF_HOLDER, name="ends")
    outcome = {
        "status": given.c.new_status,
        "output": cast(given.c.new_output, _C.output.type),
        "error": cast(given.c.new_error, _C.error.type),
    }
    return (
        update(instances)
        .where(_C.instance_id == given.c.instance_id, _is_of_holder(given, held))
        .values(outcome | ENDED)
        .returning(_C.instance_id)
        .cte("ended")
    )


def _written(kind: str, written: CTE, activity_id: ColumnElement[str], held: CTE) -> Select[Any]:
    found = written.join(held, held.c.instance_id == written.c.instance_id)
    return _row(kind, written.c.instance_id, activity_id, held.c.is_cancelled, null()).select_from(found)


def _row(kind: str, instance_id: Any, activity_id: Any, is_cancelled: Any, started_at: Any) -> Select[Any]:
    return select(
        literal_column(f"'{kind}'").label("kind"),
        instance_id.label("instance_id"),
        activity_id.label("activity_id"),
        is_cancelled.label("is_cancelled"),
        cast(started_at, _C.started_at.type).label("started_at"),
    )


def _is_of_holder(given: FromClause, held: CTE) -> ColumnElement[bool]:
    return and_(
        held.c.instance_id == given.c.instance_id,
        held.c.locked_by == given.c.worker_id,
        held.c.lock_epoch == given.c.epoch,
    )
