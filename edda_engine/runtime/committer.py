"""The committer: one thread that writes the steps and starts of all workflows of this process, together.

How it thinks. Whatever is ready when the thread looks becomes one transaction, so a commit costs the same for
one step as for a hundred; on PostgreSQL one statement does it, if all of it is plain. While the database is away
it keeps what it has and tries again; every unit carries its lease, so a late success can do no harm. A unit that
the database refuses must not take the others down: then each is written by itself, and the bad one gets its error.
Who starts an instance is waited for by a request perhaps, and is told at once that the database is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy.exc import IntegrityError

from edda_engine.runtime.handing import resolve
from edda_engine.runtime.probes import Probe, no_probe
from edda_engine.storage.at_once import is_plain, write_at_once
from edda_engine.storage.commit import BatchOutcome, Busy, HeldUnit, LeaseLost, Outcome, Start, Unit, commit_units
from edda_engine.storage.database import Database, is_outage, may_be_repeated

_log = logging.getLogger(__name__)

MAX_BATCH = 500
_BUSY_SECONDS = 0.005
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)

Resolve = Callable[[Any], None]
"""Called on the loop with what became of a unit: its outcome, or an exception."""


class _Job(NamedTuple):
    unit: Unit
    resolve: Resolve


class Committer:
    """Takes units on the loop, writes them on its thread, answers on the loop."""

    def __init__(self, database: Database, *, probe: Probe = no_probe) -> None:
        self._database = database
        self._kept = database.kept()
        self._probe = probe
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self.pending = 0
        """So many units are not answered yet."""
        self._is_over = False
        self._counting = threading.Lock()
        self._refused: Exception | None = None
        self._has_wondered = False
        self.transactions = 0
        self.units = 0

    def start(self) -> None:
        """Start the thread; call on the loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="edda-committer", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether its thread is gone: nothing is written any more."""
        return self._thread is not None and not self._thread.is_alive()

    async def commit(self, unit: HeldUnit) -> Outcome:
        """Write one unit and say what became of it.

        What cannot be written while this worker stops and the database is away is written by whoever goes on.

        :raises Exception: the database, or its driver, refuses this unit.
        """
        assert self._loop is not None
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self.put(unit, partial(resolve, future))
        try:
            return await future
        except Exception as error:
            if is_outage(error) and self._stopping.is_set():
                return LeaseLost()
            raise

    def put(self, unit: Unit, resolve: Resolve) -> None:
        """Write one unit, and tell on the loop what became of it; from any thread."""
        job = _Job(unit, resolve)
        with self._counting:
            self.pending += 1
            if not self._is_over:
                self._queue.put(job)
                return
        self._give_up([job])

    async def stop(self) -> None:
        """Write what is queued, then end the thread. While the database is away, what is queued is given up."""
        self._stopping.set()
        self._queue.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while True:
            batch, last = self._next_batch()
            if batch and (left := self._write_at_once(batch)):
                self._kept.close()  # the long way takes one of its own
                outcomes = self._write(left)
                self._wonder_at(outcomes)
                self._answer(*self._put_busy_back(left, outcomes))
            if last:
                self._kept.close()
                with self._counting:
                    self._is_over = True
                self._give_up(self._left())
                return

    def _left(self) -> list[_Job]:
        """What was put after the end was asked for."""
        left: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._queue.get_nowait()
                left += [job] if job is not None else []
        return left

    def _give_up(self, jobs: list[_Job]) -> None:
        """Nothing is written any more; whoever goes on with the instance does it. Who starts one looks by itself."""
        held = [job for job in jobs if not isinstance(job.unit, Start)]
        self._answer(held, [LeaseLost()] * len(held))

    def _next_batch(self) -> tuple[list[_Job], bool]:
        batch: list[_Job] = []
        job = self._next()
        while job is not None:
            batch.append(job)
            if len(batch) >= MAX_BATCH:
                return batch, False
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _next(self) -> _Job | None:
        """The first of a batch; while there is none, others may have the connection."""
        with contextlib.suppress(queue.Empty):
            return self._queue.get_nowait()
        self._kept.close()
        return self._queue.get()

    def _put_busy_back(
        self, batch: list[_Job], outcomes: list[BatchOutcome | BaseException]
    ) -> tuple[list[_Job], list[BatchOutcome | BaseException]]:
        """Units whose instance somebody else has locked are tried again a moment later; the others do not wait."""
        if not any(isinstance(outcome, Busy) for outcome in outcomes):
            return batch, outcomes
        answered: list[_Job] = []
        answers: list[BatchOutcome | BaseException] = []
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Busy):
                self._later(job)
            else:
                answered.append(job)
                answers.append(outcome)
        return answered, answers

    def _later(self, job: _Job) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._put_later, job)

    def _put_later(self, job: _Job) -> None:
        asyncio.get_running_loop().call_later(_BUSY_SECONDS, self._queue.put, job)

    def _write_at_once(self, batch: list[_Job]) -> list[_Job]:
        """Write the batch in one statement, if that can be; returns what is left for the long way.

        That may be all of it: why the database did not answer, and what to do then, is found out there.
        """
        units = [job.unit for job in batch]
        if self._database.is_sqlite or not all(map(is_plain, units)):
            return batch
        try:
            self._probe("batch.before_commit")
            outcomes = write_at_once(self._kept.execute, units)
            self._probe("batch.after_commit")
        except Exception as error:  # not the database's only, as below
            # An answer may have been lost, and what is asked for again be recorded: that is nothing to wonder at.
            self._refused = None if may_be_repeated(error) or isinstance(error, IntegrityError) else error
            return batch
        self.transactions += 1
        found = list(zip(batch, outcomes, strict=True))
        written = [(job, outcome) for job, outcome in found if outcome is not None]
        self.units += len(written)
        self._answer([job for job, _ in written], [outcome for _, outcome in written])
        return [job for job, outcome in found if outcome is None]

    def _wonder_at(self, outcomes: Sequence[BatchOutcome | BaseException]) -> None:
        """Say once that one statement is refused and several are not: everything costs more than it should."""
        refused, self._refused = self._refused, None
        if refused is None or self._has_wondered or any(isinstance(outcome, BaseException) for outcome in outcomes):
            return
        self._has_wondered = True
        _log.warning(
            "The database refuses to write a batch of steps by one statement, and takes it by several, which is slower: %s",
            _first_line(refused),
        )

    def _write(self, batch: list[_Job]) -> list[BatchOutcome | BaseException]:
        units = [job.unit for job in batch]
        try:
            return list(self._write_together(units))
        except Exception as error:  # not the database's only: a value that its driver cannot even send
            if len(units) == 1 or (may_be_repeated(error) and self._stopping.is_set()):
                return [error] * len(units)
            if is_outage(error):
                return self._write_all_but_starts(batch, error)
        return [self._write_alone(unit) for unit in units]

    def _write_all_but_starts(self, batch: list[_Job], outage: Exception) -> list[BatchOutcome | BaseException]:
        rest = [job for job in batch if not isinstance(job.unit, Start)]
        written = iter(self._write(rest) if rest else [])
        return [outage if isinstance(job.unit, Start) else next(written) for job in batch]

    def _write_alone(self, unit: Unit) -> BatchOutcome | BaseException:
        try:
            return self._write_together([unit])[0]
        except Exception as error:
            return error

    def _write_together(self, units: Sequence[Unit]) -> list[BatchOutcome]:
        attempt = 0
        while True:
            try:
                with self._database.write() as conn:
                    outcomes = commit_units(conn, units)
                    self._probe("batch.before_commit")
                self._probe("batch.after_commit")
            except Exception as error:
                if not may_be_repeated(error) or self._stopping.is_set():
                    raise
                if is_outage(error) and any(isinstance(unit, Start) for unit in units):
                    raise
                if attempt == 0:
                    _log.warning(
                        "The database does not answer; %s steps wait to be saved: %s", len(units), _first_line(error)
                    )
                self._stopping.wait(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
            else:
                if attempt:
                    _log.warning("The database answers again; %s waiting steps are saved.", len(units))
                self.transactions += 1
                self.units += len(units)
                return outcomes

    def _answer(self, batch: list[_Job], outcomes: Sequence[BatchOutcome | BaseException]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, batch, outcomes)
        except RuntimeError:
            _log.debug("The loop is closed; nobody waits for these steps any more.")

    def _deliver(self, batch: list[_Job], outcomes: Sequence[BatchOutcome | BaseException]) -> None:
        with self._counting:
            self.pending -= len(batch)
        for job, outcome in zip(batch, outcomes, strict=True):
            job.resolve(outcome)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
