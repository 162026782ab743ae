"""The atomic units, written: together or not at all, each refused without a valid lease.

Units of many instances share one transaction. The leases of all are checked and locked first, in one
statement; a unit whose lease is gone is left out without harming the others. A step that is recorded already
(by a commit whose acknowledgement was lost, or by another worker) is not written again: its recorded outcome
is what counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Connection, Float, Select, bindparam, func, insert, literal, null, select, update

from edda_engine.core.events import Recorded
from edda_engine.core.status import Status
from edda_engine.storage import at_once, channels, history, inboxes, messages, outbox, retries, taking, waits
from edda_engine.storage.instances import ENDED
from edda_engine.storage.prepared import Prepared, is_one_of
from edda_engine.storage.schema import instances
from edda_engine.storage.starts import Started, insert_instances
from edda_engine.storage.types import clock, clock_plus
from edda_engine.storage.units import (
    AlreadyRecorded,
    Attempt,
    BatchOutcome,
    Block,
    Busy,
    End,
    HeldUnit,
    Holder,
    LeaseLost,
    Open,
    Outcome,
    PutBack,
    Refused,
    Saved,
    Start,
    Step,
    Subscribe,
    Successor,
    Take,
    Unit,
    Wait,
)
from edda_engine.storage.vanishing import limiting_silence

__all__ = [
    "AlreadyRecorded", "Attempt", "BatchOutcome", "Block", "Busy", "End", "HeldUnit", "Holder", "LeaseLost", "Open", "Outcome",
    "PutBack", "Refused", "Saved", "Start", "Started", "Step", "Subscribe", "Successor", "Take", "Unit", "Wait", "commit_step",
    "commit_units",
]  # fmt: skip

_C = instances.c

_Held = dict[str, tuple[str | None, int, bool]]
"""By instance: who holds it, at which epoch, and whether it was asked to stop."""

_Key = tuple[str, str]


def commit_units(conn: Connection, units: Sequence[Unit]) -> list[BatchOutcome]:
    """Write units of any instances; the outcome of each, in order. Waits for no lock of another transaction.

    For a :class:`Start` that holds if nobody else may start an instance of the same id.
    """
    starts = [unit for unit in units if isinstance(unit, Start)]
    started = iter(_commit_starts(conn, starts))
    written = iter(_commit_held(conn, [unit for unit in units if not isinstance(unit, Start)]))
    return [next(started) if isinstance(unit, Start) else next(written) for unit in units]


def _commit_starts(conn: Connection, starts: Sequence[Start]) -> list[BatchOutcome]:
    if not starts:
        return []
    found = insert_instances(conn, [(unit.new, unit.claimed_by) for unit in starts])
    return [each if isinstance(each, Started) else Refused(each) for each in found]


def _commit_held(conn: Connection, units: Sequence[HeldUnit]) -> list[BatchOutcome]:
    if not units:
        return []
    held = _held(conn, units, waits=False)
    missing = {unit.holder.instance_id for unit in units} - held.keys()
    locked = (
        set(conn.execute(select(_C.instance_id).where(_C.instance_id.in_(missing))).scalars()) if missing else set()
    )
    outcomes = _write_units(conn, units, held)
    if not locked:
        return list(outcomes)
    return [
        Busy() if unit.holder.instance_id in locked else outcome for unit, outcome in zip(units, outcomes, strict=True)
    ]


def _write_units(conn: Connection, units: Sequence[HeldUnit], held: _Held) -> list[Outcome]:
    are_held = [_is_held(unit.holder, held) for unit in units]
    valid: defaultdict[type[HeldUnit], list[Any]] = defaultdict(list)
    for unit, is_held in zip(units, are_held, strict=True):
        if is_held:
            valid[type(unit)].append(unit)
    recorded_before = _commit_steps(conn, valid[Step])
    # A run that was asked to stop takes nothing: its body would never see it.
    takes = [unit for unit in valid[Take] if not held[unit.holder.instance_id][2]]
    answers = taking.commit_takes(conn, takes)
    for unit in valid[Subscribe]:
        answers[_key(unit)] = taking.commit_subscription(conn, unit)
    for unit in valid[PutBack]:
        taking.put_back(conn, unit)
    _commit_attempts(conn, valid[Attempt])
    due = _commit_waits(conn, valid[Wait], held)
    _commit_ends(conn, [_unless_cancelled(unit, held) for unit in valid[End]])
    _commit_blocks(conn, valid[Block])
    outcomes: list[Outcome] = []
    for unit, is_held in zip(units, are_held, strict=True):
        if not is_held:
            outcomes.append(LeaseLost())
            continue
        is_cancelled = held[unit.holder.instance_id][2]
        match unit:
            case Step() if (known := recorded_before.get(_key(unit))) is not None:
                outcomes.append(AlreadyRecorded(known, is_cancelled))
            case Take() | Subscribe():
                outcomes.append(replace(answers.get(_key(unit), Open(None)), is_cancelled=is_cancelled))
            case _:
                is_due = unit.holder.instance_id in due
                outcomes.append(Saved(is_cancelled, is_due=is_due) if is_cancelled or is_due else _SAVED)
    return outcomes


_SAVED = Saved()


def _key(unit: Step | Take | Subscribe) -> _Key:
    return unit.holder.instance_id, unit.key.activity_id


def commit_step(conn: Connection, step: Step) -> Outcome:
    """Write one step into the transaction that its activity has written to already.

    The caller commits on :class:`Saved`, and rolls everything back on anything else.
    """
    if conn.dialect.name == "postgresql" and at_once.is_plain(step):
        saved = at_once.write_step(conn, step)
        if saved is not None:
            return saved
    return _write_units(conn, [step], _held(conn, [step], waits=True))[0]


def _held(conn: Connection, units: Sequence[HeldUnit], *, waits: bool) -> _Held:
    """Lock the instances and read who holds them; without waiting, those that others have locked are left out.

    In the order of their ids, as every statement that locks several does: no two wait for each other.
    """
    only_reads = all(isinstance(unit, (Step, Attempt)) for unit in units)
    ids = {unit.holder.instance_id for unit in units}
    rows = conn.execute(_LOCK[only_reads, waits].on(conn), {"ids": list(ids)}).all()
    return {row[0]: (row[1], row[2], bool(row[3])) for row in rows}


def _lock(dialect: str, *, only_reads: bool, waits: bool) -> Select[Any]:
    return (
        select(
            _C.instance_id,
            _C.locked_by,
            _C.lock_epoch,
            _C.cancel_requested_at.is_not(None),
            *limiting_silence(dialect),
        )
        .where(is_one_of(dialect, _C.instance_id, "ids"))
        .order_by(_C.instance_id)
        .with_for_update(read=only_reads, skip_locked=not waits)
    )


_LOCK = {
    (only_reads, waits): Prepared(partial(_lock, only_reads=only_reads, waits=waits))
    for only_reads in (False, True)
    for waits in (False, True)
}


def _is_held(holder: Holder, held: _Held) -> bool:
    row = held.get(holder.instance_id)
    return row is not None and row[0] == holder.worker_id and row[1] == holder.epoch


def _commit_steps(conn: Connection, steps: Sequence[Step]) -> dict[_Key, Recorded]:
    if not steps:
        return {}
    written = history.insert_steps(conn, [step.as_row() for step in steps])
    keys = [_key(step) for step in steps]
    outbox.insert_events(
        conn, [(*key, event) for key, step in zip(keys, steps, strict=True) if key in written for event in step.outbox]
    )
    messages.insert_messages(
        conn, [message for key, step in zip(keys, steps, strict=True) if key in written for message in step.messages]
    )
    waits.forget(conn, [key for key, step in zip(keys, steps, strict=True) if step.ends_wait])
    retries.forget(conn, [key for key, step in zip(keys, steps, strict=True) if step.had_retries])
    missing = [key for key in keys if key not in written]
    return history.load_steps(conn, missing) if missing else {}


def _commit_attempts(conn: Connection, attempts: Sequence[Attempt]) -> None:
    if attempts:
        retries.save(conn, [(unit.holder.instance_id, unit.activity_id, unit.state) for unit in attempts])


def _commit_waits(conn: Connection, released: Sequence[Wait], held: _Held) -> set[str]:
    """Give leases back. What came while its instance was held makes it due again at once; returns those that are."""
    if not released:
        return set()
    ids = [unit.holder.instance_id for unit in released]
    # One that was asked to stop is due at once: its next run finds that out and ends it.
    due = {instance_id for instance_id in ids if held[instance_id][2]}
    # By the database's clock: the delay was measured when the body paused, and this commit may be late.
    deadlines: dict[str, float] = {}
    for wait in _standing(conn, released):
        if wait.has_mail:
            due.add(wait.instance_id)
        if wait.due_in_seconds is not None:
            seconds = max(0.0, wait.due_in_seconds)
            deadlines[wait.instance_id] = min(seconds, deadlines.get(wait.instance_id, seconds))
    delays: dict[str, float | None] = {}
    for unit in released:
        known = [unit.delay_seconds, deadlines.get(unit.holder.instance_id)]
        first = min((seconds for seconds in known if seconds is not None), default=None)
        delays[unit.holder.instance_id] = 0.0 if unit.holder.instance_id in due else first
    for is_timed, statement in ((True, _RELEASE_UNTIL), (False, _RELEASE)):
        rows = [
            {"id": unit.holder.instance_id, "new_status": unit.status, "delay": delays[unit.holder.instance_id]}
            for unit in released
            if (delays[unit.holder.instance_id] is not None) == is_timed
        ]
        if rows:
            conn.execute(statement, rows)
    return due


def _standing(conn: Connection, released: Sequence[Wait]) -> list[waits.Standing]:
    """The waits at which the bodies are. Of the others those that take from queues end: nobody would take for them."""
    asks = {unit.holder.instance_id: unit.asks for unit in released}
    found, left = [], []
    for wait in waits.standing(conn, list(asks)):
        at = asks[wait.instance_id]
        if at is None or wait.activity_id in at:
            found.append(wait)
        elif wait.is_competing:
            left.append(wait.key)
    waits.forget(conn, left)
    return found


_RELEASE = (
    update(instances)
    .where(_C.instance_id == bindparam("id"))
    .values(status=bindparam("new_status"), locked_by=None, lock_expires_at=None, wake_at=null(), updated_at=clock())
)
_RELEASE_UNTIL = _RELEASE.values(wake_at=clock_plus(bindparam("delay", type_=Float)))


_END = (
    update(instances)
    .where(_C.instance_id == bindparam("id"))
    .values(
        status=bindparam("new_status"),
        output=bindparam("new_output", type_=_C.output.type),
        error=bindparam("new_error", type_=_C.error.type),
        **ENDED,
    )
)


def _commit_ends(conn: Connection, ends: Sequence[End]) -> None:
    if not ends:
        return
    conn.execute(
        _END,
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
    # A branch may have been waiting for its next attempt, or for a message, when the body ended.
    retries.forget_instances(conn, [end.holder.instance_id for end in ends if end.had_retries])
    waits.forget_instances(conn, [end.holder.instance_id for end in ends if end.had_waits])
    left = [end.mailbox for end in ends if end.mailbox is not None and end.successor is None]
    channels.forget_mailboxes(conn, left)
    for end in ends:
        if end.successor is not None:
            _start_successor(conn, end.holder.instance_id, end.successor)


def _unless_cancelled(end: End, held: _Held) -> End:
    """A run that was asked to stop has no successor."""
    if end.successor is None or not held[end.holder.instance_id][2]:
        return end
    return replace(end, status=Status.CANCELLED, successor=None)


def _start_successor(conn: Connection, instance_id: str, successor: Successor) -> None:
    """Start the run that goes on: it has its predecessor's mailbox, and with it what is unread."""
    same = ("workflow_name", "service", "priority", "lock_timeout_seconds", "parent_instance_id")
    values = {
        "instance_id": literal(successor.instance_id),
        "input": literal(successor.input_json, _C.input.type),
        "source_hash": literal(successor.source_hash),
        "status": literal(str(Status.PENDING)),
        "wake_at": clock(),
        "created_at": clock(),
        "updated_at": clock(),
        "continued_from": _C.instance_id,
        "mailbox": func.coalesce(_C.mailbox, _C.instance_id),
    } | {name: _C[name] for name in same}
    conn.execute(
        insert(instances).from_select(
            list(values), select(*values.values()).where(_C.instance_id == instance_id), include_defaults=False
        )
    )


def _commit_blocks(conn: Connection, blocks: Sequence[Block]) -> None:
    if not blocks:
        return
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
    # Its waits go on: a timer keeps its time, and what comes is kept for it. But what queues have is for others.
    inboxes.return_queued(conn, [block.holder.instance_id for block in blocks])
