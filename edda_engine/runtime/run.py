"""One run of one body on this worker: numbers its calls, answers from history, and says how it ended.

How it thinks. The body runs in a task of its own. Each call asks :class:`~edda_engine.core.replay.Replay` first;
only what is not recorded becomes work. When all that is left to do is wait for longer than a moment, the run is
idle and its owner may give the lease back: the body then stays suspended exactly where it is, and goes on when
the instance is claimed here again with nobody in between. A run whose *fate* is sealed answers every further
call of its body with the matching control-flow exception, whatever the body catches.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, Protocol

from edda_engine.activity import Activity
from edda_engine.context import SyncWorkflowContext, WorkflowContext
from edda_engine.core.codec import codec_for, parse
from edda_engine.core.events import EventType, Recorded, StepKey, event_json
from edda_engine.core.failures import decode_error
from edda_engine.core.ports import current_place
from edda_engine.core.replay import Branch, Replay
from edda_engine.errors import Cancelled, LeaseLostError, NonDeterminismError
from edda_engine.runtime.activities import StepWork, Workplace, exhausted_error
from edda_engine.runtime.branches import begin_line, current_line, guarded
from edda_engine.runtime.greenlets import is_in_greenlet, run_in_greenlet, wait_in_greenlet
from edda_engine.runtime.pauses import IN_MEMORY_SECONDS, Pauses, for_ever
from edda_engine.storage.commit import Holder, LeaseLost, Outcome, Step, Unit
from edda_engine.storage.instances import Lease
from edda_engine.storage.retries import RetryState
from edda_engine.workflow import DeclaredWorkflow

_log = logging.getLogger(__name__)

_REFUSALS = 100
"""So often is a call of a body refused that must not go on, before it is left waiting for ever."""

IDLE_AFTER_SECONDS = 0.02
"""How long a body must have nothing to do but wait before its lease is given back."""

_DATETIME = codec_for(datetime)


class Owner(Protocol):
    """What a run needs of the executor that owns it."""

    is_draining: bool

    async def commit(self, unit: Unit) -> Outcome:
        """Write one unit."""
        ...

    async def find_recorded(self, instance_id: str, activity_id: str) -> Recorded | None:
        """Once the database answers: what it has of a step."""
        ...

    def has_gone_idle(self, run: Run) -> None:
        """The run only waits."""
        ...

    def wants_back(self, run: Run) -> None:
        """The body of a parked run has gone on by itself, after a timeout say, and needs its lease again."""
        ...


@dataclass(frozen=True, slots=True)
class Past:
    """What is recorded of an instance."""

    steps: tuple[Recorded, ...] = ()
    last_seq: int = 0
    retry_states: dict[str, RetryState] | None = None


class Run:
    """A body under way (see ``core.ports.BodyExecution``)."""

    is_body: Literal[True] = True

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
        self.replay = Replay(workflow.name, lease.instance_id, past.steps)
        self.retry_states = dict(past.retry_states or {})
        self.had_retries = bool(past.retry_states)
        self.fate: type[BaseException] | None = None
        self.mismatch: NonDeterminismError | None = None
        self.is_parked = False
        self.is_ending = False
        self.body: asyncio.Task[Any] | None = None
        self._seq = itertools.count(past.last_seq + 1)
        self._workplace, self._owner = workplace, owner
        self._busy = 0
        self._turn = 0
        self.pauses = Pauses()
        self._unsaved: list[tuple[StepKey, int, EventType, str]] = []
        self._resumed = asyncio.Event()
        self._refusals = 0
        self.given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._saving = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    # What the executor asks.

    def begin(self) -> asyncio.Task[Any]:
        """Start the body's task."""
        self.body = asyncio.get_running_loop().create_task(self._run_body(), name=f"edda:{self.instance_id}")
        return self.body

    @property
    def is_busy(self) -> bool:
        """True while an attempt is running or a step is being written."""
        return self._busy > 0

    @property
    def is_idle(self) -> bool:
        """True while the body can do nothing but wait."""
        return self._busy == 0 and self.pauses.has_long and self.fate is None

    def resume(self, lease: Lease) -> None:
        """Go on with a new lease, nobody having had the instance in between."""
        self.lease = lease
        self.holder = replace(self.holder, epoch=lease.epoch)
        self.is_parked = False
        self._resumed.set()
        if lease.is_cancelled:
            self.ask_to_stop()
        if self.fate is not None:
            self.pauses.wake_all()
        self.pauses.wake_due()
        self._look_if_idle()

    def seal(self, fate: type[BaseException]) -> None:
        """Take the body out of memory: nothing it does from now on has any effect."""
        if self.fate is None or fate is LeaseLostError:
            self.fate = fate
        for task in (self.body, *self._tasks):
            if task is not None and not task.done():
                task.cancel()

    def ask_to_stop(self) -> None:
        """The instance is cancelled: the body meets :class:`Cancelled` at its next step, or where it waits."""
        if self.fate is None:
            self.fate = Cancelled
            self.pauses.wake_all()

    async def until_held(self) -> None:
        """Return at once while the lease is ours; a parked body that goes on by itself waits for a new one."""
        while self.is_parked:
            self._resumed.clear()
            self._owner.wants_back(self)
            await self._resumed.wait()

    async def save_values(self) -> None:
        """Write what ``ctx.now()`` recorded and which calls were given up, before anything happens that may depend on it.

        :raises LeaseLostError: another worker owns the instance.
        """
        async with self._saving:
            values, self._unsaved = self._unsaved, []
            steps = [Step(self.holder, *value) for value in values]
            for outcome in await asyncio.gather(*(self._owner.commit(step) for step in steps)):
                if isinstance(outcome, LeaseLost):
                    raise LeaseLostError("Another worker owns this instance now.")

    # What the context asks (core.ports.BodyExecution).

    @property
    def is_replaying(self) -> bool:
        """True while history has answers that were not asked for yet."""
        return self.replay.is_replaying

    def call_activity(
        self, activity: Activity[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, activity_id: str | None
    ) -> Any:
        """Take the step's id now; return its value, or an awaitable of it."""
        if self._is_beyond_refusing():
            return self._hand_out(for_ever())
        self._refuse_if_sealed()
        key = self._branch().take(activity.name, activity_id)
        recorded = self._ask(key, activity.name, partial(activity.parameters.as_recorded, args, kwargs))
        return self._hand_out(self._step(activity, key, recorded, args, kwargs))

    def call_inline(self, workflow: DeclaredWorkflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run another workflow's function as part of this body."""
        self._refuse_if_sealed()
        if is_in_greenlet() and not workflow.is_async:
            return workflow.function(SyncWorkflowContext(self), *args, **kwargs)
        return self._hand_out(self._call(workflow, args, kwargs))

    def gather(self, branches: tuple[Callable[[], Any], ...], *, return_exceptions: bool) -> list[Any]:
        """Run branches of a plain ``def`` body side by side, each in a greenlet and a task of its own."""
        self._refuse_if_sealed()

        line = current_line()
        tasks = [line.fork().create_task(run_in_greenlet(branch)) for branch in branches]
        found: list[Any] = wait_in_greenlet(asyncio.gather(*tasks, return_exceptions=return_exceptions))
        return found

    def now(self) -> datetime:
        """The recorded time of this call, or now."""
        self._refuse_if_sealed()
        name = "ctx.now"
        key = self._branch().take(name)
        recorded = self._ask(key, name)
        if recorded is not None:
            moment: datetime = _DATETIME.decode_parsed(recorded.event_data["result"], owner=name)
            return moment.astimezone(UTC)
        moment = datetime.now(UTC)
        event = event_json(name, result_json=_DATETIME.encode(moment, owner=name))
        self._unsaved.append((key, self.next_seq(), EventType.VALUE_RECORDED, event))
        return moment

    def uuid4(self) -> uuid.UUID:
        """Derived from the instance and the place of the call."""
        return uuid.UUID(bytes=self._derived("uuid4")[:16], version=4)

    def random(self) -> float:
        """Derived from the instance and the place of the call."""
        return (int.from_bytes(self._derived("random")[:8], "big") >> 11) / (1 << 53)

    # What the work on a step asks.

    def next_seq(self) -> int:
        """The number of the next recorded step."""
        return next(self._seq)

    async def commit(self, unit: Unit) -> Outcome:
        """Write one unit."""
        return await self._owner.commit(unit)

    async def find_recorded(self, key: StepKey) -> Recorded | None:
        """Once the database answers: what it has of a step."""
        return await self._owner.find_recorded(self.instance_id, key.activity_id)

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt; a long pause may give the lease back meanwhile.

        :raises Cancelled: the instance was asked to stop.
        """
        if seconds <= IN_MEMORY_SECONDS:
            await self.pauses.short(seconds)
        else:
            self._step_ends()
            self._look_if_idle()
            try:
                await self.pauses.long(seconds, is_parked=lambda: self.is_parked)
            finally:
                self._step_begins()
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
        """Tell the hooks; what they raise is logged and changes nothing."""
        try:
            getattr(self._workplace.hooks, name)(self.instance_id, *details)
        except Exception:  # the edge of user code
            _log.exception("The hook %s raised for instance %s; nothing is changed by that", name, self.instance_id)

    # Inside.

    async def _run_body(self) -> Any:
        current_place.set(self)
        begin_line(self._tasks)
        with self._workplace.environment.around_body():
            owner = f"input of workflow {self.workflow_name!r}"
            args, kwargs = self.workflow.parameters.decode(parse(self.lease.input_json), owner=owner)
            self._workplace.probe("body.started")
            return await guarded(self._call(self.workflow, args, kwargs))

    async def _call(self, workflow: DeclaredWorkflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if workflow.is_async:
            return await workflow.function(WorkflowContext(self), *args, **kwargs)
        return await run_in_greenlet(workflow.function, SyncWorkflowContext(self), *args, **kwargs)

    def _hand_out(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return wait_in_greenlet(coroutine) if is_in_greenlet() else coroutine

    def _branch(self) -> Branch:
        return current_line().branch

    def _ask(self, key: StepKey, name: str, arguments: Callable[[], Any] | None = None) -> Recorded | None:
        try:
            return self.replay.ask(key, name, arguments)
        except NonDeterminismError as mismatch:
            self.mismatch = self.mismatch or mismatch
            raise

    async def _step(
        self,
        activity: Activity[..., Any],
        key: StepKey,
        recorded: Recorded | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._refuse_if_sealed()
        if recorded is not None:
            if recorded.event_type == EventType.ACTIVITY_CANCELLED:
                await for_ever()  # the body gave this call up; it does so again
            return self.answer(activity, recorded)
        if self._owner.is_draining:
            await for_ever()  # nothing new is begun; the instance goes on elsewhere
        await self.until_held()
        self._step_begins()
        try:
            if self._unsaved or self._saving.locked():
                await self.save_values()
            value = await StepWork(self._workplace, self, key, activity, args, kwargs).outcome()
        except LeaseLostError:
            self.fate = LeaseLostError
            raise
        except asyncio.CancelledError:
            if self.fate is None:
                # The body gave this call up, by a timeout say. That is part of its past: a replay must go the same way.
                event = event_json(activity.name)
                self._unsaved.append((key, self.next_seq(), EventType.ACTIVITY_CANCELLED, event))
            raise
        finally:
            self._step_ends()
        if self.fate is not None:
            raise self.fate
        return value

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

        def look() -> None:
            if turn == self._turn and self.is_idle and not self.is_parked:
                self._owner.has_gone_idle(self)

        asyncio.get_running_loop().call_later(IDLE_AFTER_SECONDS, look)

    def _is_beyond_refusing(self) -> bool:
        """A body that catches every refusal and calls again would keep the loop for itself: it is left waiting."""
        if self.mismatch is None and self.fate is None:
            return False
        self._refusals += 1
        if self._refusals <= _REFUSALS:
            return False
        if not self.given_up.done():
            self.given_up.set_result(None)
        return True

    def _refuse_if_sealed(self) -> None:
        if self.mismatch is not None:
            raise self.mismatch
        if self.fate is not None:
            raise self.fate

    def _derived(self, purpose: str) -> bytes:
        self._refuse_if_sealed()
        return hashlib.sha256(f"{self.instance_id}\0{self._branch().derive(purpose)}".encode()).digest()
