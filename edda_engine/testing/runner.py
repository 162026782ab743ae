"""``Runner``: what a test does with workflows. Each front door has its own ``WorkflowRunner`` on top of it.

How it thinks. The worker runs in the background, by the real clock, as in production. Only while a call of the runner
waits for it is time skipped, and only when nothing goes on any more: to the next instant at which anything becomes
due, so that all that happens happens in its order.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from sqlalchemy import select

from edda_engine.activity import Activity
from edda_engine.channels import channel_message, direct_message
from edda_engine.client import Instance
from edda_engine.core.events import HistoryEvent
from edda_engine.core.ports import DIRECT_CHANNEL, OutgoingMessage
from edda_engine.core.status import Status
from edda_engine.errors import UsageError
from edda_engine.events import event_message
from edda_engine.outcomes import Ended
from edda_engine.storage.outlook import Outlook
from edda_engine.storage.schema import waits
from edda_engine.testing.choices import Chosen, declared_of, is_workflow
from edda_engine.testing.clock import SkippableClock
from edda_engine.testing.crashes import CrashReport, CrashSweep
from edda_engine.testing.errors import StuckError
from edda_engine.testing.recordings import load_recording, recording_of
from edda_engine.testing.replaying import assert_replays
from edda_engine.testing.worker import Bench, Deadline, WorkerUnderTest
from edda_engine.timers import checked_seconds
from edda_engine.workflow import DeclaredWorkflow, StartOptions

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT_SECONDS = 30.0
_ANNOUNCED = {"timer": "until its time has come", "event": "for the event {}", "message": "for a message on channel {}"}


class Runner:
    """Runs workflows in the process of a test, skips time, and looks at what they did.

    Each call that waits first commits what the test has in the application's session, because a workflow sees only
    what is committed. What a test leaves out (*instance_id*) is the instance that this runner started last.

    :param timeout: Seconds, by the real clock, that one call may take.
    """

    def __init__(self, bench: Bench, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._bench, self._timeout = bench, timeout
        self._clock = SkippableClock()
        self._worker = WorkerUnderTest(bench, self._clock)
        self._last: str | None = None
        self._is_open = False

    def __enter__(self) -> Self:
        self._worker.open()
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_open = False
        self._worker.close()

    # Running.

    @overload
    def run(self, workflow: DeclaredWorkflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def run(self, workflow: Chosen[P], /, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    def run(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start a workflow, skip all that it waits for, and return what it returned.

        :param workflow: A workflow, or one with options: ``run(fulfil.options(delay=60), order_id=1)``.
        :raises WorkflowFailedError: it failed; ``__cause__`` is the original exception.
        :raises StuckError: it waits for something that time alone does not bring.
        """
        return self.finish(self.start(workflow, *args, **kwargs))

    @overload
    def start(self, workflow: DeclaredWorkflow[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> str: ...
    @overload
    def start(self, workflow: Chosen[P], /, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def start(self, workflow: Any, /, *args: Any, **kwargs: Any) -> str:
        """Start a workflow, commit that, and return its instance id; no time is skipped."""
        self._ready()
        declared, options = declared_of(workflow)
        return self._start(declared, options, args, kwargs)

    def finish(self, instance_id: str | None = None) -> Any:
        """Skip time until an instance has ended, and return its result.

        :raises WorkflowFailedError: it failed; ``__cause__`` is the original exception.
        :raises WorkflowCancelledError: it was cancelled.
        :raises StuckError: it waits for something that time alone does not bring, or this takes too long.
        """
        self._ready()
        found = self._named(instance_id)
        deadline = Deadline(self._timeout)

        def doing() -> str:
            return self._too_long(f"Instance {found} has not ended", self._where(found))

        def has_ended() -> bool:
            return self._bench.client.get(found).status.is_finished

        while True:
            seen = self._worker.rest(deadline, doing=doing, is_enough=has_ended)
            outcome = self._bench.client.outcome(found)
            if isinstance(outcome, Ended):
                return outcome.value
            if seen is None:  # it has recurred
                continue
            seconds = self._worker.seconds_to_next(seen)
            if seconds is None or self._bench.client.get(found).is_blocked:
                raise StuckError(f"Instance {found} will not end, however much time passes: {self._where(found)}")
            self._worker.skip(seconds)

    def settle(self) -> None:
        """Let everything go on that can without time passing: up to the timers, events and retries that are waited for.

        :raises StuckError: there is no end to it.
        """
        self._ready()
        self._settle(Deadline(self._timeout))

    def advance(
        self,
        *,
        seconds: float = 0.0,
        minutes: float = 0.0,
        hours: float = 0.0,
        days: float = 0.0,
    ) -> None:
        """Let so much time pass; whatever becomes due meanwhile is done, in its order.

        :raises StuckError: it takes too long, by the real clock.
        :raises UsageError: the span is negative.
        """
        self._ready()
        span = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days)
        if span < timedelta():
            raise UsageError(f"advance(): {span.total_seconds():g} seconds cannot pass; time only goes forward.")
        until = self._clock.now() + timedelta(seconds=checked_seconds("advance", "by", span))
        deadline = Deadline(self._timeout)
        while True:
            seen = self._settle(deadline)
            assert seen is not None
            left = (until - self._clock.now()).total_seconds()
            if left <= 0:
                return
            following = self._worker.seconds_to_next(seen)
            self._worker.skip(left if following is None else min(left, following))

    def now(self) -> datetime:
        """What ``ctx.now()`` says now: the real time and all that was skipped."""
        return self._clock.now()

    def kill(self) -> None:
        """Kill the worker as ``kill -9`` would; another one goes on with what it had."""
        self._ready()
        self._worker.kill()

    # What must hold.

    @overload
    def crash_everywhere(
        self, workflow: DeclaredWorkflow[P, Any] | Chosen[P], /, *args: P.args, **kwargs: P.kwargs
    ) -> CrashReport: ...
    @overload
    def crash_everywhere(
        self,
        scenario: Callable[[], Any],
        /,
        *,
        ignore: Collection[str] = (),
        look: Callable[[], Any] | None = None,
        reset: Callable[[], object] | None = None,
    ) -> CrashReport: ...
    def crash_everywhere(self, what: Any, /, *args: Any, **kwargs: Any) -> CrashReport:
        """Run the same once for every commit, kill the worker there, and check that nothing comes out differently.

        Compared are what was returned or raised, the rows of all tables of the application, the events in the outbox
        and the workflows that were started. The database is put back before each run to what it holds now, and is left
        as the last run leaves it. Values that differ between two runs without a crash, such as times, are not
        compared; the report names them.

        :param what: A workflow, with its arguments: ``crash_everywhere(fulfil, order_id=1)``. Or a function without
            arguments that uses this runner, to send events in between, say; what it returns is compared.
        :param ignore: Columns that are not compared, ``"created_at"`` or ``"orders.created_at"``.
        :param look: A function whose value must be the same each time too: what a fake service was asked, say.
        :param reset: A function that is called before each run: to empty that fake, say.
        :raises CrashError: something else came out of a crash; says of which, and what.
        """
        self._ready()
        if not is_workflow(what):
            if args or not callable(what) or isinstance(what, Activity):
                raise UsageError(
                    "crash_everywhere() takes a workflow with its arguments, `crash_everywhere(fulfil, order_id=1)`, or a"
                    f" function without arguments that runs one; not {what!r}."
                )
            return self._crash_everywhere(what, *args, **kwargs)
        declared, options = declared_of(what)
        # The same each time, and with it what ctx.uuid4() and ctx.idempotency_key are derived from.
        options = replace(options, instance_id=options.instance_id or uuid.uuid4().hex)

        def run_it() -> Any:
            return self.finish(self._start(declared, options, args, kwargs))

        return self._crash_everywhere(run_it, name=f"Workflow {declared.name!r}")

    def assert_replays(
        self,
        instance: str | Path | None = None,
        *,
        may_read: Collection[str] = (),
        compares_arguments: bool = True,
    ) -> None:
        """Replay the recorded history of an instance with the code of today; nothing is executed.

        This is what happens after a crash, a deploy or a long wait. The body must ask for what is recorded, in that
        order and with the same arguments, come to the recorded end if there is one, and read neither the wall clock nor
        random numbers.

        :param instance: An instance id, or the path of a file made by :meth:`save_recording`.
        :param may_read: What the body may read all the same, because nothing depends on it: ``{"time.monotonic"}``.
        :param compares_arguments: Whether other arguments than the recorded ones are a failure. A replay is not
            disturbed by them, so the code may have changed there on purpose.
        :raises ReplayError: it goes another way; with the message of ``NonDeterminismError`` if an engine would notice.
        """
        recording = (
            load_recording(instance)
            if isinstance(instance, Path)
            else recording_of(self._bench.database, self._named(instance))
        )
        assert_replays(
            recording,
            database=self._bench.database,
            environment=self._bench.environment(),
            may_read=(may_read,) if isinstance(may_read, str) else may_read,
            compares_arguments=compares_arguments,
        )

    def save_recording(self, path: Path, instance_id: str | None = None) -> None:
        """Write an instance with its history to a file, to replay it later with newer code.

        Works on any database that the application is configured for, also without entering the runner's block.
        """
        recording_of(self._bench.database, self._named(instance_id)).save(path)

    # Sending.

    def send_event(
        self, event_type: str, data: Any = None, *, source: str = "test", instance_id: str | None = None
    ) -> str:
        """Send an event, once everybody who is about to wait for it does.

        :param instance_id: The one instance it is for; otherwise it goes to all that wait for its type.
        :returns: The event's id.
        """
        return self._send(
            event_message(
                event_type, source, data, instance_id=instance_id, max_payload_bytes=self._limit, time=self.now()
            )
        )

    def publish(self, channel: str, data: Any, metadata: Mapping[str, Any] | None = None) -> str:
        """Send a message to a channel's subscribers, once everybody who is about to subscribe has; returns its id."""
        return self._send(channel_message(channel, data, metadata, max_payload_bytes=self._limit))

    def send_to(
        self,
        instance_id: str,
        data: Any,
        channel: str = DIRECT_CHANNEL,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Send a message to one instance; returns its id."""
        return self._send(direct_message(instance_id, data, channel, metadata, max_payload_bytes=self._limit))

    # Looking.

    def get(self, instance_id: str | None = None) -> Instance:
        """An instance as the database shows it: ``runner.get().status``."""
        return self._bench.client.get(self._named(instance_id))

    def history(self, instance_id: str | None = None) -> list[HistoryEvent]:
        """The recorded steps of an instance, in order."""
        return self._bench.client.history(self._named(instance_id))

    def steps(self, instance_id: str | None = None) -> list[str]:
        """The ids of the recorded steps, in order: ``["reserve:1", "sleep:1", "ship:1"]``."""
        return [event.activity_id for event in self.history(instance_id)]

    def step(self, activity_id: str, instance_id: str | None = None) -> HistoryEvent:
        """One recorded step; its ``event_data`` has ``input``, ``result`` or ``error``, and ``retry_metadata``.

        :raises AssertionError: there is no such step; it tells which there are.
        """
        events = {event.activity_id: event for event in self.history(instance_id)}
        if activity_id not in events:
            raise AssertionError(f"No step {activity_id!r} is recorded; there are: {', '.join(events) or 'none'}.")
        return events[activity_id]

    # Inside.

    @property
    def _limit(self) -> int:
        return self._bench.max_payload_bytes

    def _crash_everywhere(
        self,
        scenario: Callable[[], Any],
        *,
        name: str | None = None,
        ignore: Collection[str] = (),
        look: Callable[[], Any] | None = None,
        reset: Callable[[], object] | None = None,
    ) -> CrashReport:
        ignored = (ignore,) if isinstance(ignore, str) else ignore
        sweep = CrashSweep(self._worker, self._clock, settle=self.settle, ignore=ignored, look=look, reset=reset)
        return sweep.over(scenario, name=name or f"Scenario {getattr(scenario, '__name__', 'of this test')!r}")

    def _ready(self) -> None:
        if not self._is_open:
            raise UsageError("Use the runner in its block: `with WorkflowRunner(app) as runner:`.")
        self._bench.save_session()

    def _start(
        self, workflow: DeclaredWorkflow[..., Any], options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        new = self._bench.client.prepare(workflow, options, args, kwargs)
        self._worker.start()  # makes the tables
        self._bench.client.write_start(new)
        self._bench.wake()
        self._last = new.instance_id
        return new.instance_id

    def _named(self, instance_id: str | None) -> str:
        found = instance_id or self._last
        if found is None:
            raise UsageError("Nothing was started with this runner yet: say which instance is meant.")
        return found

    def _settle(self, deadline: Deadline) -> Outlook | None:
        def doing() -> str:
            return self._too_long("Something still goes on", "; ".join(map(self._where, self._unfinished())))

        return self._worker.rest(deadline, doing=doing)

    def _send(self, message: OutgoingMessage) -> str:
        self.settle()
        self._bench.client.write_message(message)
        self._bench.wake()
        return message.message_id

    def _too_long(self, what: str, where: str) -> str:
        return (
            f"{what} after {self._timeout:g} s of real time: {where or 'nothing is known of it'}. Give the runner a longer"
            " timeout=, or look what is slow: an activity, a body that waits for something else than edda's sleep() and"
            " wait_event(), a lock that the test itself holds."
        )

    def _unfinished(self) -> list[str]:
        page = self._bench.client.find_instances(
            status=[status for status in Status if not status.is_finished], limit=5
        )
        return [found.instance_id for found in page.instances]

    def _where(self, instance_id: str) -> str:
        """Where an instance stands, in a sentence."""
        found = self._bench.client.get(instance_id)
        with self._bench.database.read() as conn:
            rows = conn.execute(select(waits).where(waits.c.instance_id == instance_id)).all()
        told = [f"{_ANNOUNCED[row.kind].format(repr(row.name))} ({row.activity_id})" for row in rows]
        steps = [event.activity_id for event in self._bench.client.history(instance_id)]
        said = f"workflow {found.workflow_name!r} is {found.status}"
        if told:
            said += f" and waits {' and '.join(told)}"
        if found.error is not None:
            said += f", {found.error_summary}"
        if not found.is_runnable:
            said += ", and its module is not imported"
        return f"{said}; recorded: {', '.join(steps) or 'nothing'}"
