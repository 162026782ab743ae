"""A worker under test: its engine, on a loop and under a clock of the test's.

A :class:`Bench` is how a front door lends its application to this; see :mod:`edda_engine.testing.asynchronous` and
``edda_wsgi.testing``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Protocol

from edda_engine.client import Client
from edda_engine.errors import UsageError
from edda_engine.runtime.conditions import Conditions
from edda_engine.runtime.engine import Engine
from edda_engine.runtime.environment import Environment
from edda_engine.runtime.idling import IDLE_AFTER_SECONDS
from edda_engine.runtime.recovery import take_over
from edda_engine.storage import outbox, outlook
from edda_engine.storage.database import Database
from edda_engine.storage.outlook import Outlook
from edda_engine.testing.clock import SkippableClock
from edda_engine.testing.databases import hasty_sqlite
from edda_engine.testing.death import KillSwitch, Passing
from edda_engine.testing.errors import StuckError
from edda_engine.testing.loop import SkippableLoop
from edda_engine.workflow import workflows

_log_of_engine = logging.getLogger("edda_engine")

_THREADS = ("edda-activity", "edda-service", "edda-publisher")
_LOCKED_PAUSE_SECONDS = 0.02
_MANY = 20
"""After so many looks in vain a row is locked by somebody, the test itself perhaps."""
_ENOUGH_SECONDS = 0.5
_THREADS_END_WITHIN_SECONDS = 10.0
_HOP_BY_LEASE = 4
"""While leases are held, time is skipped by at most this part of the shortest one, so that they are renewed."""


class Bench(Protocol):
    """An application, as a test drives it; all of it is synchronous."""

    conditions: Conditions

    @property
    def database(self) -> Database:
        """Where its tables are."""
        ...

    @property
    def client(self) -> Client:
        """Questions and requests."""
        ...

    @property
    def service_name(self) -> str:
        """Whose instances its worker runs."""
        ...

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload."""
        ...

    @property
    def engine(self) -> Engine | None:
        """Its engine, if it has one now."""
        ...

    @property
    def has_relay(self) -> bool:
        """Whether its worker publishes the events of the outbox."""
        ...

    def refuse_unless_under_test(self) -> None:
        """Look whether its database may be changed at will, if that can be told."""
        ...

    def environment(self) -> Environment:
        """What surrounds user code."""
        ...

    def start_worker(self) -> None:
        """Run an engine under :attr:`conditions`; return when it claims."""
        ...

    def stop_worker(self, timeout: float) -> None:
        """Stop it."""
        ...

    def save_session(self) -> None:
        """Commit what the test has in the application's session: a worker sees only what is committed."""
        ...

    def wake(self) -> None:
        """Something was sent."""
        ...

    def let_go(self) -> None:
        """Close connections that nobody uses: the garbage collector would warn of each."""
        ...


class Deadline:
    """How long, by the real clock, a call of a test may take."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; never negative."""
        return max(0.0, self._end - time.monotonic())


class WorkerUnderTest:
    """Starts, rests, skips, dies and comes back."""

    def __init__(self, bench: Bench, clock: SkippableClock) -> None:
        self.bench, self.clock = bench, clock
        self.switch: KillSwitch | None = None
        self._before = bench.conditions
        self._loop: SkippableLoop | None = None
        self._in_use = ExitStack()
        self._level: int | None = None
        self._others: set[threading.Thread] = set()
        self.on_death: Callable[[], None] = lambda: None
        """Called when it is gone, before another one goes on."""

    def open(self) -> None:
        """Take hold of the application; nothing is started yet.

        :raises UsageError: it runs workflows already, by the real clock.
        """
        self.bench.refuse_unless_under_test()
        if self.bench.engine is not None:
            raise UsageError(
                "This application runs workflows already, by the real clock. Leave start_worker() or initialize() out in"
                " a test with a WorkflowRunner, which starts the worker by itself."
            )
        self._before = self.bench.conditions
        self._in_use.enter_context(self.clock.in_use())
        self._in_use.enter_context(hasty_sqlite())

    def close(self) -> None:
        """Stop the worker and leave the application as it was."""
        try:
            self.stop()
        finally:
            self._in_use.close()
            self.bench.conditions = self._before
            self.switch = None
            self.bench.let_go()

    def start(self) -> None:
        """Begin to work, if that has not begun."""
        if self.bench.engine is not None:
            return
        if self.switch is None:
            self.switch = KillSwitch(
                self.bench.database.engine.url,
                probe=self._before.probe,
                has_work=lambda: self.look().has_work,
                died=self._has_died,
            )
            self._in_use.enter_context(self.switch.in_use())
        self.bench.conditions = replace(
            self._before, probe=self.switch, now=self.clock.now, new_event_loop=self._make_loop
        )
        self._others = set(threading.enumerate())
        self.bench.start_worker()

    def stop(self) -> None:
        """Stop at once; whatever is under way is handed back."""
        try:
            if self.bench.engine is not None:
                self.bench.stop_worker(0.0)
            self._wait_for_threads()
        finally:
            self._loop = None
            if self.switch is not None:
                self.switch.revive()
            if self._level is not None:
                _log_of_engine.setLevel(self._level)
                self._level = None

    def arm(self, kill_at: Passing | None) -> None:
        """Start, if need be, and die at that passing of a commit."""
        if self.switch is None:
            self.start()
        assert self.switch is not None
        self.switch.arm(kill_at)  # before it starts: its first claim counts
        self.start()

    def kill(self) -> None:
        """Die now."""
        self.start()
        assert self.switch is not None
        self.switch.kill()

    def look(self) -> Outlook:
        """What the database says there is to do."""
        with self.bench.database.read() as conn:
            return outlook.look(conn, service=self.bench.service_name, names=workflows.names())

    def rest(
        self, deadline: Deadline, *, doing: Callable[[], str], is_enough: Callable[[], bool] = lambda: False
    ) -> Outlook | None:
        """Let everything go on that can without time passing; what the database says then.

        :param is_enough: Asked now and then while something still goes on; if it is, nothing more is waited for.
        :returns: ``None`` if it was enough.
        :raises StuckError: there is no end to it.
        """
        for tries in itertools.count():
            self._come_back()
            loop, engine = self._running()
            rests = loop.wait_until_at_rest(min(deadline.left, _ENOUGH_SECONDS), unless=lambda: self.is_dead)
            if rests is not None:
                seen = self._seen_at(rests, loop, engine, deadline.left if tries < _MANY else _LOCKED_PAUSE_SECONDS)
                if seen is not None:
                    return seen
            elif not self.is_dead and is_enough():
                return None
            if deadline.left <= 0:
                raise StuckError(doing())
        raise AssertionError("unreachable")

    def _seen_at(self, rests: int, loop: SkippableLoop, engine: Engine, patience: float) -> Outlook | None:
        """What the database says, if nothing is left to do and this rest has lasted; else see that it goes on."""
        seen = self.look()
        if seen.has_work or (self.bench.has_relay and self._has_outbox_due()):
            engine.wake()
            engine.wake_relay()
            loop.wait_until_at_rest(patience, after=rests, unless=lambda: self.is_dead)
            return None
        if loop.wait_until_at_rest(0, after=rests - 1, unless=lambda: self.is_dead) != rests:
            return None
        if loop.ask(partial(_is_about_to_park, engine), _THREADS_END_WITHIN_SECONDS):
            self.skip(IDLE_AFTER_SECONDS)
            return None
        return seen

    def seconds_to_next(self, seen: Outlook) -> float | None:
        """Until anything becomes due; ``None`` if nothing does by itself."""
        loop, _ = self._running()
        timer = loop.ask(loop.seconds_to_next_timer, _THREADS_END_WITHIN_SECONDS)
        due = None if seen.next is None else seen.next.seconds
        return min((seconds for seconds in (timer, due) if seconds is not None), default=None)

    def skip(self, seconds: float) -> None:
        """Let time pass, up to *seconds*, and look what is due then."""
        loop, engine = self._running()

        def skip() -> None:
            if loop.is_waiting_for_threads or not _is_at_rest(engine):
                return
            leases = [run.lease.lock_timeout_seconds for run in engine.executor.held.values()]
            self.clock.skip(min([seconds, *(lease / _HOP_BY_LEASE for lease in leases)]))

        loop.ask(skip, _THREADS_END_WITHIN_SECONDS)
        engine.wake()

    # Inside.

    def _make_loop(self) -> SkippableLoop:
        self._loop = SkippableLoop(self.clock, is_engine_at_rest=self._is_engine_at_rest)
        return self._loop

    def _is_engine_at_rest(self) -> bool:
        engine = self.bench.engine
        return engine is not None and _is_at_rest(engine)

    def _running(self) -> tuple[SkippableLoop, Engine]:
        self.start()
        assert self._loop is not None
        assert self.bench.engine is not None
        return self._loop, self.bench.engine

    @property
    def is_dead(self) -> bool:
        """Whether it was killed and nobody has gone on yet."""
        return self.switch is not None and self.switch.is_dead

    def _has_died(self) -> None:
        if self._level is None:
            # What it has to say about its database, until it is thrown away, would only bury what a test has to say.
            self._level = _log_of_engine.level
            _log_of_engine.setLevel(logging.ERROR)
        if self._loop is not None:
            self._loop.tell()

    def _has_outbox_due(self) -> bool:
        with self.bench.database.read() as conn:
            return outbox.has_due(conn)

    def _come_back(self) -> None:
        """If the worker has died: throw it away, and do what its siblings do when they see that it is gone."""
        if not self.is_dead:
            return
        engine, loop = self.bench.engine, self._loop
        if engine is not None and loop is not None:
            # Otherwise it would go on trying, while those who wait for it are waited for.
            asyncio.run_coroutine_threadsafe(engine.committer.stop(), loop).result(_THREADS_END_WITHIN_SECONDS)
        self.stop()
        self.on_death()
        if engine is not None:
            with self.bench.database.write() as conn:
                take_over(conn, engine.worker_id)
        self.start()

    def _wait_for_threads(self) -> None:
        deadline = Deadline(_THREADS_END_WITHIN_SECONDS)
        for thread in threading.enumerate():
            if thread in self._others or not thread.name.startswith(_THREADS):
                continue
            thread.join(deadline.left)
            if not thread.is_alive():
                continue
            raise StuckError(
                f"An activity still runs {_THREADS_END_WITHIN_SECONDS:g} s after its worker was stopped. A real worker's"
                " thread would be gone with its process; here the test has to wait for it. Make it shorter in tests."
            )


def _is_about_to_park(engine: Engine) -> bool:
    """Whether a lease is given back in a moment, because its body can only wait; ask on the loop."""
    return any(run.is_idle for run in engine.executor.held.values())


def _is_at_rest(engine: Engine) -> bool:
    """Whether nothing goes on there by itself before time passes or something is sent; ask on the loop."""
    runs = engine.executor.held.values()
    only_pause = all(run.is_quiet and (run.pauses.naps or run.pauses.has_long) for run in runs)
    is_publishing = engine._relay is not None and engine._relay.is_publishing
    return engine.is_ready.is_set() and only_pause and engine.committer.pending == 0 and not is_publishing
