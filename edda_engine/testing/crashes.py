"""Crashes everywhere: the same run again and again, each time killed at another commit.

How it thinks. First the run is made twice without disturbance: what it comes to, and which values are another each time
anyway. Then once for each passing of the beginning and the end of a commit, with the worker killed there and another
one going on. The number of commits is not known beforehand, because what is ready at the same time is saved together;
so for each kind of commit it goes on until a run ends without having been killed. Before each run the database is put
back, and the clock.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python
from sqlalchemy import select

from edda_engine.core.failures import describe
from edda_engine.errors import UsageError, WorkflowCancelledError, WorkflowFailedError
from edda_engine.storage.schema import history
from edda_engine.testing.clock import SkippableClock
from edda_engine.testing.death import COMMITS, Passing
from edda_engine.testing.errors import CrashError
from edda_engine.testing.rows import Rows, differences, read_rows, unknown_columns, volatile_columns
from edda_engine.testing.snapshots import Snapshot, snapshot_of
from edda_engine.testing.worker import Bench, WorkerUnderTest

_SHOWN_CHARACTERS = 400
_ADVICE = (
    "What an activity writes through its session is saved together with its step, once. What it does by other means (a"
    " connection of its own, a file, a call to another service) is done again when its worker dies before the step is"
    " saved: write through the session, or have the other side recognize ctx.idempotency_key. What a body decides by"
    " anything but its arguments and recorded results is decided anew: use ctx.now(), ctx.random(), ctx.uuid4()."
)


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What was tried."""

    kills: tuple[str, ...]
    """Where the worker was killed, one after the other."""
    not_compared: tuple[str, ...]
    """Columns, and parts of what was returned, that are another each time even without a crash."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What one run came to."""

    values: dict[str, Any]
    """What it returned, what *look* saw, what it raised; as JSON values."""
    rows: Rows
    error: Exception | None
    death: _Death | None


@dataclass(frozen=True, slots=True)
class _Death:
    """Where the worker was killed, and what was recorded then."""

    place: Passing
    recorded: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}. Recorded until then: {', '.join(self.recorded) or 'nothing'}"


class CrashSweep:
    """One scenario, killed everywhere.

    :param settle: Lets everything go on that can without time passing.
    :param ignore: Columns that are not compared, ``"created_at"`` or ``"orders.created_at"``.
    :param look: What else must be the same each time.
    :param reset: Called before each run, after the database was put back.
    """

    def __init__(
        self,
        worker: WorkerUnderTest,
        clock: SkippableClock,
        *,
        settle: Callable[[], None],
        ignore: Collection[str],
        look: Callable[[], Any] | None,
        reset: Callable[[], object] | None,
    ) -> None:
        self._worker, self._clock, self._settle = worker, clock, settle
        self._ignore, self._look, self._reset = frozenset(ignore), look, reset
        self._begins_at = clock.now()
        self._before: set[tuple[str, str]] = set()
        self._death: _Death | None = None

    @property
    def _bench(self) -> Bench:
        return self._worker.bench

    def over(self, scenario: Callable[[], Any], *, name: str) -> CrashReport:
        """Try every crash.

        :raises CrashError: something else came out of one.
        """
        self._worker.start()  # makes the tables, which belong to what is put back
        self._worker.stop()
        self._worker.on_death = self._note_death
        try:
            self._before = set(self._recorded())
            with snapshot_of(self._bench.database) as snapshot:
                return self._sweep(scenario, snapshot, name)
        finally:
            self._worker.on_death = lambda: None
            self._worker.arm(None)

    def _sweep(self, scenario: Callable[[], Any], snapshot: Snapshot, name: str) -> CrashReport:
        expected, again = (self._once(scenario, snapshot, kill_at=None) for _ in range(2))
        leaving_out = self._leaving_out(expected, again, name)
        deaths: list[str] = []

        def is_killed(passing: Passing) -> bool:
            found = self._once(scenario, snapshot, kill_at=passing)
            if found.death is None:
                return False
            deaths.append(str(found.death.place))
            told = _told(expected, found, leaving_out)
            if told:
                raise CrashError(
                    f"{name} comes to something else after a crash.\n\nIts worker was killed {found.death}. Another worker"
                    f" went on from there.\n\n{told}\n\n{_ADVICE}"
                ) from found.error
            return True

        for commit in COMMITS:
            number = 1
            while is_killed(Passing(f"{commit}.before_commit", number)):
                is_killed(Passing(f"{commit}.after_commit", number))
                number += 1
        if not deaths:
            raise UsageError(
                f"{name} came to its end without a commit of this runner's worker, so nothing could be killed. Let it run a"
                " workflow to its end: `return runner.run(...)`, or start() and finish()."
            )
        return CrashReport(tuple(deaths), tuple(sorted(leaving_out - self._ignore)))

    def _leaving_out(self, expected: _Run, again: _Run, name: str) -> set[str]:
        if unknown := unknown_columns(expected.rows, self._ignore):
            raise UsageError(f"crash_everywhere(ignore=...): no table has a column {unknown[0]!r}.")
        first, then = _parts(expected.values), _parts(again.values)
        volatile = {part for part in first.keys() | then.keys() if first.get(part) != then.get(part)}
        leaving_out = volatile_columns(expected.rows, again.rows) | volatile | self._ignore
        if "look" in volatile:  # all of it; then it would never find anything
            leaving_out.discard("look")
        told = _told(expected, again, leaving_out)
        if told:
            raise CrashError(
                f"{name} comes to something else each time, even without a crash, so nothing can be said about crashes."
                f" Two runs:\n\n{told.replace('without the crash', 'first').replace('after it', 'then')}\n\nMake it come to"
                " the same: reset what it uses beside the database with reset=."
            )
        return leaving_out

    def _once(self, scenario: Callable[[], Any], snapshot: Snapshot, *, kill_at: Passing | None) -> _Run:
        self._put_back(snapshot)
        self._worker.arm(kill_at)
        error: Exception | None = None
        value: Any = None
        try:
            value = scenario()
            self._settle()
        except (WorkflowFailedError, WorkflowCancelledError) as ended:
            error = ended
            self._settle()
        except Exception as broken:
            if self._death is None:
                raise  # not by the crash: it is the test that is wrong
            error = broken
        if self._worker.is_dead:  # by the last thing that it did
            self._settle()
        with self._bench.database.read() as conn:
            rows = read_rows(conn)
        seen = self._look() if self._look is not None else None
        self._bench.save_session()
        values = {"returned": value, "look": seen, "raised": _summary(error)}
        return _Run(to_jsonable_python(values, fallback=repr), rows, error, self._death)

    def _put_back(self, snapshot: Snapshot) -> None:
        self._worker.stop()
        snapshot.restore()
        self._clock.set(self._begins_at)
        self._death = None
        if self._reset is not None:
            self._reset()

    def _note_death(self) -> None:
        place = self._worker.switch.killed_at if self._worker.switch is not None else None
        if place is None or self._death is not None:
            return  # it was the scenario that killed
        self._death = _Death(place, tuple(step[1] for step in self._recorded() if step not in self._before))

    def _recorded(self) -> list[tuple[str, str]]:
        query = select(history.c.instance_id, history.c.activity_id).order_by(history.c.created_at, history.c.seq)
        with self._bench.database.read() as conn:
            return [(row.instance_id, row.activity_id) for row in conn.execute(query)]


def _summary(error: Exception | None) -> str | None:
    match error:
        case None:
            return None
        case WorkflowFailedError():
            # Not its message: that of exhausted retries tells how long they took.
            kinds, cause = [], error.__cause__
            while cause is not None:
                kinds.append(describe(cause))
                cause = cause.__cause__
            names = " from ".join(kind for kind, _ in kinds)
            return f"WorkflowFailedError: {error.workflow_name}: {names}: {kinds[-1][1] if kinds else error.error}"
        case WorkflowCancelledError():
            return f"WorkflowCancelledError: {error.workflow_name}"
        case _:
            return "".join(traceback.format_exception_only(error)).strip()


def _parts(value: Any, path: str = "") -> dict[str, Any]:
    """A value as its leaves, each by its path: so that a part that is another each time can be left out."""
    if isinstance(value, dict) and value:
        inner = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
    elif isinstance(value, list) and value:
        inner = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        return {path: value}
    return {name: leaf for at, item in inner for name, leaf in _parts(item, at).items()}


def _told(expected: _Run, found: _Run, leaving_out: Collection[str]) -> str:
    """How two runs differ, in lines; empty if they do not."""
    lines = []
    for name in expected.values:
        before, after = ({name: run.values[name]} for run in (expected, found))
        if any(part.startswith(name) for part in leaving_out):
            before, after = (_kept(value, leaving_out) for value in (before, after))
        for part in dict.fromkeys((*before, *after)):
            if (was := before.get(part, "nothing")) != (has_become := after.get(part, "nothing")):
                lines += [f"{part}:", f"    {_short(was)} without the crash", f"    {_short(has_become)} after it"]
    for table, told in differences(expected.rows, found.rows, leaving_out=leaving_out).items():
        lines += [f"{table}:", *(f"    {line}" for line in told)]
    return "\n".join(lines)


def _kept(value: Any, leaving_out: Collection[str]) -> dict[str, Any]:
    return {part: leaf for part, leaf in _parts(value).items() if part not in leaving_out}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
