"""What must become of leases: a model of a few instances, beside the tables that the lease machine changes.

A transaction of an engine, a request or an operator may stay open. What it has locked, others pass over, and what it
changes, the model learns at its commit. Each transaction touches an instance once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from edda_engine.core.ports import NewInstance
from edda_engine.core.status import Status
from edda_engine.storage.database import Database
from edda_engine.storage.schema import history, instances, retries
from edda_engine.storage.types import clock
from edda_engine.storage.units import Attempt, Block, End, HeldUnit, Holder, Step, Wait
from tests.property.mailboxes import FLOW, SERVICE, World

WORKERS = ("worker", "sibling")
LATER, DUE = "later", "due"
LOCK_SECONDS = 1000.0


@dataclass
class Run:
    """One instance, as all that is committed makes it."""

    name: str
    status: Status | None = None
    """``None``: it is not started."""
    holder: Holder | None = None
    epoch: int = 0
    wake: str | None = None
    is_asked_to_stop: bool = False
    has_error: bool = False
    steps: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    locks: dict[str, bool] = field(default_factory=dict)
    """Which transactions have its row locked; True for those that let others read-lock it as well."""

    def __repr__(self) -> str:
        return self.name

    @property
    def is_finished(self) -> bool:
        return self.status is not None and self.status.is_finished

    @property
    def is_blocked(self) -> bool:
        return not self.is_finished and self.wake is None and self.has_error

    @property
    def is_due(self) -> bool:
        return self.status is not None and not self.is_finished and self.wake == DUE

    def held_by(self, worker_id: str) -> bool:
        return self.holder is not None and self.holder.worker_id == worker_id

    def is_free_for(self, slot: str, *, reads: bool = False) -> bool:
        """Whether a transaction gets its row without waiting."""
        others = [shares for name, shares in self.locks.items() if name != slot]
        return not others or (reads and all(others))

    def let_go(self, wake: str | None) -> None:
        self.holder, self.wake = None, wake


class Lock:
    """A row that a transaction has locked; the world lets go of it when the transaction ends."""

    def __init__(self, run: Run, slot: str, *, shares: bool) -> None:
        self._run, self._slot = run, slot
        run.locks[slot] = shares

    @property
    def is_busy(self) -> bool:
        return self._slot in self._run.locks

    @is_busy.setter
    def is_busy(self, value: bool) -> None:
        if not value:
            self._run.locks.pop(self._slot, None)


class Leases:
    """The runs, the tables, and every lease that there ever was."""

    def __init__(self, database: Database) -> None:
        self.world = World(database)
        self.runs = {name: Run(name) for name in "abcdefgh"}
        self.ever: list[Holder] = []

    def new(self, run: Run) -> NewInstance:
        """Each with a priority of its own, so that it is certain which ones a claim takes."""
        return NewInstance(
            instance_id=run.name, workflow_name=FLOW, service=SERVICE, input_json="{}", source_hash="",
            lock_timeout_seconds=LOCK_SECONDS, priority=ord(run.name),
        )  # fmt: skip

    def locked(self, slot: str, runs: Iterable[Run], *, shares: bool = False) -> list[Any]:
        return [Lock(run, slot, shares=shares) for run in runs]

    def untouched_by(self, slot: str) -> list[Run]:
        return [run for run in self.runs.values() if slot not in run.locks]

    # What a unit does.

    def written(self, unit: HeldUnit) -> None:
        """The model learns that a unit was written under a valid lease."""
        run = self.runs[unit.holder.instance_id]
        match unit:
            case Step():
                run.steps.setdefault(unit.key.activity_id, unit.seq)
            case Attempt():
                run.attempts[unit.activity_id] = unit.state.attempts
            case Wait():
                run.status = unit.status
                wake = None if unit.delay_seconds is None else LATER if unit.delay_seconds else DUE
                run.let_go(DUE if run.is_asked_to_stop else wake)
            case End():
                run.status, run.has_error = unit.status, unit.error_json is not None
                run.attempts.clear()
                run.let_go(None)
            case Block():
                run.has_error = True
                run.let_go(None)

    # Comparing.

    def compare(self) -> None:
        """When nobody is in the middle of something, the tables say what the model says."""
        with self.world.database.read() as conn:
            rows = {row.instance_id: row for row in conn.execute(_INSTANCES)}
            steps = {(row.instance_id, row.activity_id): row.seq for row in conn.execute(_HISTORY)}
            retries = {(row.instance_id, row.activity_id): row.attempts for row in conn.execute(_RETRIES)}
        started = {run.name: run for run in self.runs.values() if run.status is not None}
        assert rows.keys() == started.keys()
        for name, run in started.items():
            row = rows[name]
            holder = None if run.holder is None else run.holder.worker_id
            assert (row.status, row.locked_by, row.lock_epoch) == (run.status, holder, run.epoch), name
            assert (None if row.is_due is None else DUE if row.is_due else LATER) == run.wake, name
            assert (bool(row.is_asked), bool(row.has_error)) == (run.is_asked_to_stop, run.has_error), name
            assert (row.lock_expires_at is None) == (holder is None), name
        assert steps == {(run.name, key): seq for run in started.values() for key, seq in run.steps.items()}
        assert retries == {(run.name, key): count for run in started.values() for key, count in run.attempts.items()}


_C = instances.c
_INSTANCES = select(
    _C.instance_id,
    _C.status,
    _C.locked_by,
    _C.lock_epoch,
    _C.lock_expires_at,
    (_C.wake_at <= clock()).label("is_due"),
    _C.cancel_requested_at.is_not(None).label("is_asked"),
    _C.error.is_not(None).label("has_error"),
)
_HISTORY = select(history.c.instance_id, history.c.activity_id, history.c.seq)
_RETRIES = select(retries.c.instance_id, retries.c.activity_id, retries.c.attempts)
