"""Steps, timers, starts and ends that touch nothing else, in one statement that checks the leases and writes.

How it thinks. A transaction of several statements waits for the server at each of them, and keeps its locks meanwhile.
One statement by itself waits once. It locks the rows of the instances first, and a row that is locked is read as it is
then, not as it was when the statement began (PostgreSQL, "Read Committed Isolation Level"); what follows from it is
written by the same statement, so nobody can take a lease in between.

What it does not write is no judgement: the lease may be gone, the row locked, the step recorded already. All of that is
seldom, and :mod:`edda_engine.storage.commit` finds out which it is. Only on PostgreSQL: SQLite has no ``INSERT`` in a
``WITH``, and no way to a server to save.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    CompoundSelect,
    Connection,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    cast,
    delete,
    false,
    literal_column,
    null,
    select,
    union_all,
    update,
)

from edda_engine.core.events import EventType, event_json
from edda_engine.core.ports import WaitKind
from edda_engine.storage import history, receiving, starts
from edda_engine.storage.alone import Alone, Execute
from edda_engine.storage.instances import ENDED
from edda_engine.storage.prepared import Columns, Prepared, as_rows, each_of, given_rows, is_one_of
from edda_engine.storage.receiving import is_for_one
from edda_engine.storage.schema import instances, retries, waits
from edda_engine.storage.types import clock_plus
from edda_engine.storage.units import (
    AlreadyRecorded,
    BatchOutcome,
    End,
    Holder,
    Saved,
    Start,
    Step,
    Take,
    Unit,
)
from edda_engine.storage.vanishing import limiting_silence
from edda_engine.storage.waits import DUE_SECONDS

_C = instances.c
_PG = "postgresql"

_HOLDER: Columns = {"instance_id": Text, "worker_id": Text, "epoch": Integer}
_STEP_OF_HOLDER: Columns = {**history.STEP, **_HOLDER}
_END_OF_HOLDER: Columns = {**_HOLDER, "new_status": Text, "new_output": Text, "new_error": Text}

_STEP, _TIMER, _TAKE, _END, _START = "step", "timer", "take", "end", "start"
_KINDS: Mapping[type[Unit], str] = {Step: _STEP, End: _END, Start: _START}


def is_plain(unit: Unit) -> bool:
    """Whether one statement can write it: nobody else's rows are touched, nor those that others put there for it."""
    match unit:
        case Step():
            return not (unit.outbox or unit.messages or unit.ends_wait or unit.had_retries)
        case Take():
            return unit.is_asked_again and (unit.request.kind is WaitKind.TIMER or is_for_one(unit))
        case End():
            return unit.mailbox is None and unit.successor is None
        case Start():
            return True
        case _:
            return False


def write_step(conn: Connection, step: Step) -> Saved | None:
    """Write one plain step beside what else is in the transaction, waiting for its instance; ``None`` if it is not."""
    given = {"ids": [step.holder.instance_id], "steps": _as_rows([step])}
    is_cancelled = conn.execute(_ONE_STEP.on(conn), given).scalar()
    return None if is_cancelled is None else _saved(is_cancelled=is_cancelled)


def write_at_once(execute: Execute, units: Sequence[Unit]) -> list[BatchOutcome | None]:
    """Write plain units, without waiting for an instance; ``None`` for each that is not written."""
    of_kind: defaultdict[str, list[Any]] = defaultdict(list)
    for unit in units:
        of_kind[_kind(unit)].append(unit)
    ends, new = of_kind[_END], [(unit.new, unit.claimed_by) for unit in of_kind[_START]]
    locked = {unit.holder.instance_id for unit in units if not isinstance(unit, Start)}
    given = {
        "ids": locked,
        "steps": _as_rows(of_kind[_STEP]),
        "timers": _as_rows([_fired(timer) for timer in of_kind[_TIMER]]),
        "receives": receiving.as_parameter(of_kind[_TAKE]),
        "ends": as_rows([_end(end) for end in ends]),
        "leaving": [end.holder.instance_id for end in ends if end.had_waits or end.had_retries],
        "starts": starts.as_parameter(new, _PG),
    }
    written = {row[:4]: row for row in execute(_for(of_kind), given)}
    return [_outcome(unit, written.pop(_key(unit), None)) for unit in units]  # of two that are the same, one


def _kind(unit: Unit) -> str:
    if isinstance(unit, Take):
        return _TIMER if unit.request.kind is WaitKind.TIMER else _TAKE
    return _KINDS[type(unit)]


def _for(of_kind: Mapping[str, Collection[Any]]) -> Alone:
    """Few statements, which the server comes to know soon: for one kind, for all that is frequent, and for all."""
    kinds = [kind for kind, units in of_kind.items() if units]
    return _PURE[kinds[0]] if len(kinds) == 1 else _ALL if _TAKE in kinds else _OFTEN


def _key(unit: Unit) -> tuple[str, str, str, int]:
    """How a row says that this was written: under this lease, and not under another that the worker had before."""
    if isinstance(unit, Step | Take):
        return _kind(unit), unit.holder.instance_id, unit.key.activity_id, unit.holder.epoch
    if isinstance(unit, Start):
        return _START, unit.new.instance_id, "", _NO_EPOCH
    return _kind(unit), unit.holder.instance_id, "", unit.holder.epoch


def _outcome(unit: Unit, row: Any) -> BatchOutcome | None:
    if row is None:
        return None
    if isinstance(unit, Start):
        return starts.as_started(unit.new, unit.claimed_by, row.started_at)
    if isinstance(unit, Take):
        ended = _fired(unit) if row.event_data is None else receiving.ended(unit, row.event_data)
        return AlreadyRecorded(ended.as_recorded())
    return _saved(is_cancelled=row.is_cancelled)


def _saved(*, is_cancelled: bool) -> Saved:
    return Saved(is_cancelled=True) if is_cancelled else _SAVED


_SAVED = Saved()
_NO_STEP: ColumnElement[str] = literal_column("''")
_NO_EPOCH = 0


def _as_rows(steps: Collection[Step]) -> str:
    return as_rows([step.as_row() | _holder(step.holder) for step in steps])


def _holder(holder: Holder) -> dict[str, Any]:
    return {"instance_id": holder.instance_id, "worker_id": holder.worker_id, "epoch": holder.epoch}


def _fired(timer: Take) -> Step:
    return timer.ended(EventType.TIMER_FIRED, event_json(timer.about))


def _end(end: End) -> dict[str, Any]:
    outcome = {"new_status": end.status, "new_output": end.output_json, "new_error": end.error_json}
    return _holder(end.holder) | outcome


def _one_step() -> Select[Any]:
    held = _held(read=True, skip_locked=False)
    written = _writing(held)
    of_written = held.c.instance_id == written.c.instance_id
    return select(held.c.is_cancelled, *limiting_silence(_PG)).join_from(written, held, of_written)


def _statement(*kinds: str) -> CompoundSelect[Any]:
    """For a batch of units of these kinds."""
    held = _held(read=kinds == (_STEP,), skip_locked=True)
    of_kind = {_STEP: _stepping, _TIMER: _timing, _TAKE: _received, _END: _ended, _START: _started}
    return union_all(*(of_kind[kind](held) for kind in kinds))


def _stepping(held: CTE) -> Select[Any]:
    steps = _writing(held)
    return _written(_STEP, steps, steps.c.activity_id, held)


def _timing(held: CTE) -> Select[Any]:
    timers = _firing(held)
    return _written(_TIMER, timers, timers.c.activity_id, held)


def _ended(held: CTE) -> Select[Any]:
    ended = _ending(held)
    return _written(_END, ended, _NO_STEP, held).add_cte(*_left_behind(ended))


def _started(_held: CTE) -> Select[Any]:
    started = starts.inserting(_PG, "starts").cte("started")
    return _row(_START, started.c.instance_id, _NO_STEP, literal_column(str(_NO_EPOCH)), false(), started.c.started_at)


def _held(*, read: bool, skip_locked: bool) -> CTE:
    """Joined, and not ``= ANY``: a plan made when the table was small reads all of it, and compares no row with each id."""
    given = each_of("ids")
    return (
        select(_C.instance_id, _C.locked_by, _C.lock_epoch, _C.cancel_requested_at.is_not(None).label("is_cancelled"))
        .join_from(given, instances, _C.instance_id == given.c.text)
        .order_by(_C.instance_id)  # as every statement that locks several: no two wait for each other
        .with_for_update(read=read, skip_locked=skip_locked, of=instances)
        .cte("held")
    )


def _writing(held: CTE) -> CTE:
    given = given_rows(_PG, "steps", _STEP_OF_HOLDER, name="steps")
    written: CTE = history.inserting(_PG, given, given.join(held, _is_of_holder(given, held))).cte("written")
    return written


def _firing(held: CTE) -> CTE:
    """History says of the timers whose time is up that they are over; of an instance that was asked to stop none is."""
    given = given_rows(_PG, "timers", _STEP_OF_HOLDER, name="timers")
    over = (
        delete(waits)
        .where(waits.c.instance_id == given.c.instance_id, waits.c.activity_id == given.c.activity_id)
        .where(_is_of_holder(given, held), ~held.c.is_cancelled, waits.c.expires_at <= clock_plus(DUE_SECONDS))
        .returning(waits.c.instance_id, waits.c.activity_id)
        .cte("over")
    )
    is_it = and_(over.c.instance_id == given.c.instance_id, over.c.activity_id == given.c.activity_id)
    fired: CTE = history.inserting(_PG, given, given.join(over, is_it)).cte("fired")
    return fired


def _received(held: CTE) -> Select[Any]:
    taken, with_it = receiving.receiving("receives", held, _is_of_holder)
    row = _row(_TAKE, taken.c.instance_id, taken.c.activity_id, held.c.lock_epoch, false(), null(), taken.c.event_data)
    return row.join_from(taken, held, held.c.instance_id == taken.c.instance_id).add_cte(*with_it)


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


def _left_behind(ended: CTE) -> tuple[CTE, ...]:
    """A branch may have been waiting, for a time or for its next attempt, when the body ended."""
    return tuple(
        delete(table)
        .where(table.c.instance_id == ended.c.instance_id, is_one_of(_PG, table.c.instance_id, "leaving"))
        .cte(f"left_{table.name}")
        for table in (waits, retries)
    )


def _written(kind: str, written: CTE, activity_id: ColumnElement[str], held: CTE) -> Select[Any]:
    found = written.join(held, held.c.instance_id == written.c.instance_id)
    return _row(kind, written.c.instance_id, activity_id, held.c.lock_epoch, held.c.is_cancelled, null()).select_from(
        found
    )


def _row(
    kind: str,
    instance_id: Any,
    activity_id: Any,
    epoch: Any,
    is_cancelled: Any,
    started_at: Any,
    event_data: Any = None,
) -> Select[Any]:
    return select(
        literal_column(f"'{kind}'").label("kind"),
        instance_id.label("instance_id"),
        activity_id.label("activity_id"),
        epoch.label("epoch"),
        is_cancelled.label("is_cancelled"),
        cast(started_at, _C.started_at.type).label("started_at"),
        cast(null() if event_data is None else event_data, Text).label("event_data"),
    )


def _is_of_holder(given: FromClause, held: CTE) -> ColumnElement[bool]:
    return and_(
        held.c.instance_id == given.c.instance_id,
        held.c.locked_by == given.c.worker_id,
        held.c.lock_epoch == given.c.epoch,
    )


_PURE = {kind: Alone(partial(_statement, kind)) for kind in (_STEP, _TIMER, _TAKE, _END, _START)}
_OFTEN = Alone(partial(_statement, _STEP, _TIMER, _END, _START))
_ALL = Alone(partial(_statement, _STEP, _TIMER, _TAKE, _END, _START))
_ONE_STEP = Prepared(lambda _: _one_step())
