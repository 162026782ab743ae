"""One run of one body on this worker: numbers its calls, answers from history, and says how it ended.

How it thinks. The body runs in a task of its own. Each call asks :class:`~edda_engine.core.replay.Replay` first;
only what is not recorded becomes work. When all that is left to do is wait for longer than a moment, the run is
idle and its owner may give the lease back: the body then stays suspended exactly where it is, and goes on when
the instance is claimed here again with nobody in between. A run whose *fate* is sealed answers every further
call of its body with the matching control-flow exception, whatever the body catches.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from edda_engine.activity import Activity
from edda_engine.core.codec import parse
from edda_engine.core.events import GIVEN_UP, EventType, Recorded, StepKey
from edda_engine.core.failures import decode_error
from edda_engine.core.ports import WaitKind, current_place
from edda_engine.core.replay import Replay
from edda_engine.core.status import Status
from edda_engine.errors import Cancelled, LeaseLostError, NonDeterminismError, Recurred
from edda_engine.hooks import HooksBase, call_hook
from edda_engine.runtime.activities import StepWork, Workplace, exhausted_error
from edda_engine.runtime.body import Body
from edda_engine.runtime.branches import begin_line, current_line, guarded, line_here, no_further
from edda_engine.runtime.greenlets import hand_out, is_in_greenlet, wait_in_greenlet
from edda_engine.runtime.idling import when_idle
from edda_engine.runtime.later import Later, MakeUnit, giving_up
from edda_engine.runtime.owner import Owner
from edda_engine.runtime.past import Past
from edda_engine.runtime.pauses import IN_MEMORY_SECONDS, NAP_SECONDS, SHORT_TIMER_SECONDS, Pauses, for_ever, wake
from edda_engine.runtime.tasks import given_up
from edda_engine.runtime.unawaited import Unawaited
from edda_engine.storage.claiming import Lease
from edda_engine.storage.units import HeldUnit, Holder, Outcome, Successor
from edda_engine.workflow import DeclaredWorkflow

_NO_RETRIES: dict[str, Any] = {}
_REFUSALS = 100
"""So often is a call of a body refused that must not go on, before it is left waiting for ever."""


class Run:
    """A body under way."""

    successor: Successor | None = None
    fate: type[BaseException] | None = None
    mismatch: NonDeterminismError | None = None
    is_parked = is_ending = False
    body: asyncio.Task[Any] | None = None
    _resumed: asyncio.Event | None = None
    _busy = _turn = _refusals = 0

    def __init__(
        self,
        lease: Lease,
        workflow: DeclaredWorkflow[..., Any],
        past: Past,
        *,
        worker_id: str,
        workplace: Workplace,
        owner: Owner,
    ) -> None:
        self.lease, self.workflow = lease, workflow
        self.instance_id, self.workflow_name, self.worker_id = lease.instance_id, workflow.name, worker_id
        self.holder = Holder(lease.instance_id, worker_id, lease.epoch)
        self.mailbox = lease.mailbox or lease.instance_id
        self.replay = Replay(workflow.name, lease.instance_id, past.steps)
        self.retry_states = dict(past.retry_states) if past.retry_states else _NO_RETRIES
        self.had_retries = bool(past.retry_states)
        self.had_waits = self.had_mail = self.had_queues = lease.has_history or lease.mailbox != lease.instance_id
        self._seq = itertools.count(past.last_seq + 1)
        self._workplace, self.owner, self._is_heard = workplace, owner, type(workplace.hooks) is not HooksBase
        self.pauses, self._later = Pauses(), Later(owner.commit)
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the body has ended, or is not waited for any more."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unawaited = Unawaited()

    # What the executor asks.

    def begin(self) -> asyncio.Task[Any]:
        """Start the body's task."""
        self.body = asyncio.get_running_loop().create_task(self._run_body(), name=f"edda:body:{self.instance_id}")
        self.body.add_done_callback(lambda _: wake(self.is_over))
        return self.body

    @property
    def is_quiet(self) -> bool:
        """True while no attempt is running, no step is being written, and the body has not returned."""
        has_returned = self.is_ending or (self.body is not None and self.body.done())
        return self._busy == self.pauses.naps and not has_returned

    @property
    def is_idle(self) -> bool:
        """True while the body can do nothing but wait."""
        return self._busy == 0 and self.pauses.are_long and self.fate is None

    def resume(self, lease: Lease, *, is_due: bool) -> None:
        """Go on with a new lease, nobody having had the instance in between."""
        self.lease = lease
        self.holder = Holder(lease.instance_id, self.worker_id, lease.epoch)
        self._goes_on()
        if lease.is_cancelled:
            self.ask_to_stop()
        if lease.received is not None:
            self.pauses.tell(lease.received)
        if self.fate is not None:
            self.pauses.wake_all()
        self.pauses.wake_for_lease(is_due=is_due)
        self._look_if_idle()

    def seal(self, fate: type[BaseException]) -> None:
        """Take the body out of memory: nothing it does from now on has any effect."""
        if self.fate is None or fate is LeaseLostError:
            self.fate = fate
        for task in (self.body, *self._tasks):
            if task is not None and not task.done():
                task.cancel()
        self._goes_on()  # nobody waits for its lease any more

    def ask_to_stop(self) -> None:
        """The instance is cancelled: the body meets :class:`Cancelled` at its next step, or where it waits."""
        if self.fate is None:
            self.fate = Cancelled
            self.pauses.wake_all()

    async def until_held(self) -> None:
        """Return at once while the lease is ours; a parked body that goes on by itself waits for a new one."""
        while self.is_parked:
            self.owner.wants_back(self)
            self._resumed = self._resumed or asyncio.Event()
            await self._resumed.wait()

    def _goes_on(self) -> None:
        self.is_parked, resumed, self._resumed = False, self._resumed, None
        if resumed is not None:
            resumed.set()

    async def save_values(self) -> None:
        """Write what ``ctx.now()`` recorded and which calls were given up, before anything happens that may depend on it.

        :raises LeaseLostError: another worker owns the instance.
        """
        if await self._later.save(lambda: self.holder):
            self.has_sent()  # what went back to a queue is for others

    async def save_the_last(self) -> None:
        """The same before the run ends: what the branches of one that recurs have taken goes back.

        :raises LeaseLostError: another worker owns the instance.
        """
        if self.fate is Recurred:
            await given_up(self._tasks)
        await self.save_values()

    # What the body's calls ask (runtime.body.BodyRun, runtime.talking.TalkingRun).

    def perform(
        self, activity: Activity[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], key: StepKey
    ) -> Coroutine[Any, Any, Any]:
        """The work of a step, until its outcome is recorded."""
        return StepWork(self._workplace, self, key, activity, args, kwargs).outcome()

    def recur_as(self, successor: Successor) -> NoReturn:
        """End this run; the successor starts in the transaction that says so."""
        self.successor, self.fate = successor, Recurred
        if self.body is not None and self.body is not asyncio.current_task():
            self.body.cancel()  # the call came from another task of the body, which may wait for something else
        raise Recurred

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload."""
        return self._workplace.max_payload_bytes

    def call(
        self,
        name: str,
        work: Callable[[StepKey], Coroutine[Any, Any, Any]],
        answer: Callable[[Recorded], Any],
        *,
        about: str | None = None,
        activity_id: str | None = None,
        arguments: Callable[[], Any] | None = None,
        withdrawn: Callable[[StepKey], MakeUnit] | None = None,
        is_race: bool = False,
    ) -> Any:
        """Number a call now and hand out what comes of it: its recorded answer, or what *work* brings.

        :param about: How history names it, if that says more than what it is numbered by.
        :param withdrawn: What is written if the body gives it up, for a call that takes something from others.
        :param is_race: It only waits for other calls, and is no work of its own.
        """
        if self._is_beyond_refusing():
            return hand_out(for_ever())
        self.refuse_if_sealed()
        line = current_line()
        line.last_taken = None
        key = line.branch.take(name, activity_id)
        recorded = self.ask(key, about or name, arguments)
        if recorded is not None:
            called = self._answered(recorded, answer)
        else:
            called = self._race(key, work) if is_race else self._step(key, work, name, withdrawn)
        return wait_in_greenlet(called) if is_in_greenlet() else self._unawaited.note(called, key.activity_id, name)

    async def hold(self, seconds: float | None, *, kind: WaitKind, status: Status, activity_id: str) -> Recorded | None:
        """Pause until something may have come; a long pause may give the lease back meanwhile.

        :returns: What has come, if that was recorded with the lease; otherwise the database is to be asked.
        :raises Cancelled: the instance was asked to stop.
        """
        received = None
        longest = SHORT_TIMER_SECONDS if self.owner.promises.are_half_free else NAP_SECONDS
        if kind is WaitKind.TIMER and seconds is not None and seconds <= longest:
            await self.pauses.short(seconds)
        else:
            received = await self._long_pause(seconds, status=status, asks=activity_id)
        if self.fate is not None:
            raise self.fate
        return received

    def write_later(self, make_unit: MakeUnit) -> None:
        """Write this before anything happens that may depend on it."""
        self._later.add(make_unit)

    def has_sent(self) -> None:
        """Messages are committed: somebody may wait for them."""
        self._workplace.has_sent()

    def probe(self, name: str) -> None:
        """Say where the run is."""
        self._workplace.probe(name)

    # What the work on a step asks.

    def next_seq(self) -> int:
        """The number of the next recorded step."""
        return next(self._seq)

    async def commit(self, unit: HeldUnit) -> Outcome:
        """Write one unit."""
        return await self.owner.commit(unit)

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt; a long pause may give the lease back meanwhile.

        :raises Cancelled: the instance was asked to stop.
        """
        if seconds <= IN_MEMORY_SECONDS:
            await self.pauses.short(seconds)
        else:
            await self._long_pause(seconds, status=Status.WAITING_FOR_TIMER, asks=None)
        if self.owner.is_draining and self.fate is None:
            await self._long_pause(None, status=Status.WAITING_FOR_TIMER, asks=None)  # no attempt begins any more
        if self.fate is not None:
            raise self.fate

    def answer(self, activity: Activity[..., Any], recorded: Recorded) -> Any:
        """The value, or the exception, that a recorded step stands for.

        :raises Cancelled: the instance was asked to stop while this step was on its way.
        """
        if self.fate is Cancelled:
            raise Cancelled
        data = recorded.event_data
        if recorded.event_type == EventType.ACTIVITY_COMPLETED:
            owner = f"recorded result of activity {activity.name!r} ({recorded.activity_id})"
            return activity.parameters.result.decode_parsed(data.get("result"), owner=owner)
        error = decode_error(data["error"])
        metadata = data.get("retry_metadata")
        if metadata and metadata["exhausted"]:
            raise exhausted_error(activity.name, metadata) from error
        raise error

    def hook(self, name: str, *details: Any) -> None:
        """Tell the hooks."""
        if self._is_heard:
            call_hook(self._workplace.hooks, name, self.instance_id, *details)

    # Inside.

    async def _run_body(self) -> Any:
        calls = Body(self, now=self._workplace.now)  # not kept: what has ended goes without the garbage collector
        current_place.set(calls)
        begin_line(self._tasks, self._unawaited)
        with self._workplace.environment.around_body():
            owner = f"input of workflow {self.workflow_name!r}"
            args, kwargs = self.workflow.parameters.decode(parse(self.lease.input_json), owner=owner)
            self._workplace.probe("body.started")
            value = await guarded(calls.invoke(self.workflow, args, kwargs))
            self._unawaited.tell(self)
            return value

    def ask(self, key: StepKey, name: str, arguments: Callable[[], Any] | None = None) -> Recorded | None:
        """What history has for a call."""
        try:
            return self.replay.ask(key, name, arguments)
        except NonDeterminismError as mismatch:
            self.mismatch = self.mismatch or mismatch
            raise

    async def _answered(self, recorded: Recorded, answer: Callable[[Recorded], Any]) -> Any:
        self._unawaited.begun(recorded.activity_id)
        self.refuse_if_sealed()
        if recorded.event_type in GIVEN_UP:
            await no_further()  # the body gave this call up; it does so again
        found = answer(recorded)
        return await found if inspect.iscoroutine(found) else found

    async def _race(self, key: StepKey, work: Callable[[StepKey], Coroutine[Any, Any, Any]]) -> Any:
        self._unawaited.begun(key.activity_id)
        self.refuse_if_sealed()
        if self.owner.is_draining or line_here().past is not None:
            await no_further()
        value = await work(key)
        self.refuse_if_sealed()
        return value

    async def _step(
        self,
        key: StepKey,
        work: Callable[[StepKey], Coroutine[Any, Any, Any]],
        name: str,
        withdrawn: Callable[[StepKey], MakeUnit] | None,
    ) -> Any:
        self._unawaited.begun(key.activity_id)
        self.refuse_if_sealed()
        if self.owner.is_draining or line_here().past is not None:
            await no_further()  # nothing new is begun; the instance, if anything, goes on elsewhere
        try:
            await self.until_held()
            self._step_begins()
            try:
                if self._later.has_some:
                    await self.save_values()
                value = await work(key)
            finally:
                self._step_ends()
            if self.fate is not None:
                raise self.fate
        except LeaseLostError:
            self.fate = LeaseLostError
            raise
        except (asyncio.CancelledError, Recurred):
            if withdrawn is not None and self.fate in (None, Recurred):
                self.write_later(withdrawn(key))  # what this may have taken is for another call, or for the successor
            elif self.fate is None:
                self.write_later(giving_up(key, name, self.next_seq()))
            raise
        return value

    async def _long_pause(self, seconds: float | None, *, status: Status, asks: str | None) -> Recorded | None:
        if self.fate is not None:
            raise self.fate  # sealed while it asked for what it would wait for now: nobody would wake it
        self._step_ends()
        self._look_if_idle()
        try:
            return await self.pauses.long(seconds, is_parked=lambda: self.is_parked, status=status, asks=asks)
        finally:
            self._step_begins()

    def _step_begins(self) -> None:
        self._busy += 1
        self._turn += 1

    def _step_ends(self) -> None:
        self._busy -= 1
        self._turn += 1
        if self.pauses.has_long:
            self._look_if_idle()

    def _look_if_idle(self) -> None:
        turn = self._turn
        when_idle(
            lambda: turn == self._turn and self.is_idle and not self.is_parked, lambda: self.owner.has_gone_idle(self)
        )

    def _is_beyond_refusing(self) -> bool:
        """A body that catches every refusal and calls again would keep the loop for itself: it is left waiting."""
        if self.mismatch is None and self.fate is None:
            return False
        self._refusals += 1
        if self._refusals <= _REFUSALS:
            return False
        wake(self.is_over)
        return True

    def refuse_if_sealed(self) -> None:
        """Answer a body that must not go on."""
        if self.mismatch is not None:
            raise self.mismatch
        if self.fate is not None:
            raise self.fate
