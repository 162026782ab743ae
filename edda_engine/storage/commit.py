"""The atomic units: what is written together or not at all, each refused without a valid lease.

Units of many instances share one transaction. The leases of all are checked and locked first, in one
statement; a unit whose lease is gone is left out without harming the others. A step that is recorded already
(by a commit whose acknowledgement was lost, or by another worker) is not written again: its recorded outcome
is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Float, bindparam, literal, select, update

from edda_engine.core.events import FORMAT, EventType, Recorded, StepKey
from edda_engine.core.ports import OutboxEvent
from edda_engine.core.status import Status
from edda_engine.storage import history, outbox, retries
from edda_engine.storage.retries import RetryState
from edda_engine.storage.schema import instances
from edda_engine.storage.types import clock, clock_plus

_C = instances.c

_Held = dict[str, tuple[str | None, int, bool]]
"""By instance: who holds it, at which epoch, and whether it was asked to stop."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes: refused unless *worker_id* still holds the lease of that *epoch*."""

    instance_id: str
    worker_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step's outcome, with the events that belong to it."""

    holder: Holder
    key: StepKey
    seq: int
    event_type: EventType
    event_json: str
    outbox: tuple[OutboxEvent, ...] = ()
    had_retries: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed attempt that another one will follow."""

    holder: Holder
    activity_id: str
    state: RetryState


@dataclass(frozen=True, slots=True)
class Wait:
    """Give the lease back until *delay_seconds* have passed."""

    holder: Holder
    status: Status
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class End:
    """The final outcome of an instance."""

    holder: Holder
    status: Status
    output_json: str | None = None
    error_json: str | None = None
    had_retries: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Something keeps the instance from going on; it stays visible, and nobody claims it until an operator acts."""

    holder: Holder
    error_json: str


Unit = Step | Attempt | Wait | End | Block


@dataclass(frozen=True, slots=True)
class Saved:
    """The unit is written. *is_cancelled*: the instance was asked to stop."""

    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class AlreadyRecorded:
    """The step was recorded before; this is its outcome."""

    event: Recorded
    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """Another worker owns the instance; nothing was written."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else's transaction has locked the instance; nothing was written, and nobody waited. Try again."""


Outcome = Saved | AlreadyRecorded | LeaseLost
BatchOutcome = Outcome | Busy


def commit_units(conn: Connection, units: Sequence[Unit]) -> list[BatchOutcome]:
    """Write units of any instances; the outcome of each, in order. Waits for no lock of another transaction."""
    held = _held(conn, units, waits=False)
    missing = {unit.holder.instance_id for unit in units} - held.keys()
    locked = (
        set(conn.execute(select(_C.instance_id).where(_C.instance_id.in_(missing))).scalars()) if missing else set()
    )
    outcomes = _write_units(conn, units, held)
    return [
        Busy() if unit.holder.instance_id in locked else outcome for unit, outcome in zip(units, outcomes, strict=True)
    ]


def _write_units(conn: Connection, units: Sequence[Unit], held: _Held) -> list[Outcome]:
    valid = [unit for unit in units if _is_held(unit.holder, held)]
    steps = [unit for unit in valid if isinstance(unit, Step)]
    recorded_before = _commit_steps(conn, steps)
    _commit_attempts(conn, [unit for unit in valid if isinstance(unit, Attempt)])
    _commit_waits(conn, [unit for unit in valid if isinstance(unit, Wait)], held)
    _commit_ends(conn, [unit for unit in valid if isinstance(unit, End)])
    _commit_blocks(conn, [unit for unit in valid if isinstance(unit, Block)])
    outcomes: list[Outcome] = []
    for unit in units:
        if not _is_held(unit.holder, held):
            outcomes.append(LeaseLost())
            continue
        is_cancelled = held[unit.holder.instance_id][2]
        known = recorded_before.get((unit.holder.instance_id, unit.key.activity_id)) if isinstance(unit, Step) else None
        outcomes.append(Saved(is_cancelled) if known is None else AlreadyRecorded(known, is_cancelled))
    return outcomes


def commit_step(conn: Connection, step: Step) -> Outcome:
    """Write one step into the transaction that its activity has written to already.

    The caller commits on :class:`Saved`, and rolls everything back on anything else.
    """
    return _write_units(conn, [step], _held(conn, [step], waits=True))[0]


def _held(conn: Connection, units: Sequence[Unit], *, waits: bool) -> _Held:
    """Lock the instances and read who holds them; without waiting, those that others have locked are left out.

    In the order of their ids, as every statement that locks several does: no two wait for each other.
    """
    query = (
        select(_C.instance_id, _C.locked_by, _C.lock_epoch, _C.cancel_requested_at.is_not(None))
        .where(_C.instance_id.in_({unit.holder.instance_id for unit in units}))
        .order_by(_C.instance_id)
        .with_for_update(read=all(isinstance(unit, (Step, Attempt)) for unit in units), skip_locked=not waits)
    )
    return {row[0]: (row[1], row[2], bool(row[3])) for row in conn.execute(query)}


def _is_held(holder: Holder, held: _Held) -> bool:
    row = held.get(holder.instance_id)
    return row is not None and row[0] == holder.worker_id and row[1] == holder.epoch


def _commit_steps(conn: Connection, steps: Sequence[Step]) -> dict[tuple[str, str], Recorded]:
    if not steps:
        return {}
    written = history.insert_steps(
        conn,
        [
            {
                "instance_id": step.holder.instance_id,
                "activity_id": step.key.activity_id,
                "seq": step.seq,
                "branch": step.key.branch,
                "position": step.key.position,
                "event_type": step.event_type,
                "event_data": step.event_json,
                "format": FORMAT,
            }
            for step in steps
        ],
    )
    keys = [(step.holder.instance_id, step.key.activity_id) for step in steps]
    outbox.insert_events(
        conn, [(*key, event) for key, step in zip(keys, steps, strict=True) if key in written for event in step.outbox]
    )
    retries.forget(conn, [key for key, step in zip(keys, steps, strict=True) if step.had_retries])
    missing = [key for key in keys if key not in written]
    return history.load_steps(conn, missing) if missing else {}


def _commit_attempts(conn: Connection, attempts: Sequence[Attempt]) -> None:
    if attempts:
        retries.save(conn, [(unit.holder.instance_id, unit.activity_id, unit.state) for unit in attempts])


def _commit_waits(conn: Connection, waits: Sequence[Wait], held: _Held) -> None:
    if not waits:
        return
    statement = (
        update(instances)
        .where(_C.instance_id == bindparam("id"))
        .values(
            status=bindparam("new_status"),
            locked_by=None,
            lock_expires_at=None,
            wake_at=clock_plus(bindparam("delay", type_=Float)),
            updated_at=clock(),
        )
    )
    conn.execute(
        statement,
        [
            {
                "id": wait.holder.instance_id,
                "new_status": wait.status,
                # One that was asked to stop is due at once: its next run finds that out and ends it.
                "delay": 0.0 if held[wait.holder.instance_id][2] else wait.delay_seconds,
            }
            for wait in waits
        ],
    )


def _commit_ends(conn: Connection, ends: Sequence[End]) -> None:
    if not ends:
        return
    statement = (
        update(instances)
        .where(_C.instance_id == bindparam("id"))
        .values(
            status=bindparam("new_status"),
            output=bindparam("new_output", type_=_C.output.type),
            error=bindparam("new_error", type_=_C.error.type),
            locked_by=None,
            lock_expires_at=None,
            wake_at=None,
            updated_at=clock(),
            completed_at=clock(),
        )
    )
    conn.execute(
        statement,
        [
            {
                "id": end.holder.instance_id,
                "new_status": end.status,
                "new_output": end.output_json,
                "new_error": end.error_json,
            }
            for end in ends
        ],
    )
    # A branch may have been waiting for its next attempt when the body ended.
    retries.forget_instances(conn, [end.holder.instance_id for end in ends if end.had_retries])


def _commit_blocks(conn: Connection, blocks: Sequence[Block]) -> None:
    for block in blocks:
        conn.execute(
            update(instances)
            .where(_C.instance_id == block.holder.instance_id)
            .values(
                error=literal(block.error_json, _C.error.type),
                locked_by=None,
                lock_expires_at=None,
                wake_at=None,
                updated_at=clock(),
            )
        )
