"""What a running body asks through its ``ctx`` (see ``core.ports.BodyExecution``).

Here a call gets its name and its meaning; the run numbers it, answers it from history or has it done.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, Protocol

from edda_engine.activity import Activity
from edda_engine.context import SyncWorkflowContext, WorkflowContext
from edda_engine.core.codec import codec_for
from edda_engine.core.events import EventType, Recorded, StepKey, event_json
from edda_engine.core.ports import ChannelMode, OutgoingMessage, SubscriptionChange, WaitKind, WaitRequest
from edda_engine.runtime.branches import current_line
from edda_engine.runtime.greenlets import hand_out, is_in_greenlet, run_in_greenlet, wait_in_greenlet
from edda_engine.runtime.talking import Talking, TalkingRun, successor_id
from edda_engine.runtime.unawaited import named
from edda_engine.storage.units import Step, Successor
from edda_engine.workflow import DeclaredWorkflow

_DATETIME = codec_for(datetime)


class BodyRun(TalkingRun, Protocol):
    """What the calls of a body need of its run."""

    instance_id: str
    workflow_name: str
    worker_id: str
    workflow: DeclaredWorkflow[..., Any]
    had_waits: bool
    had_mail: bool
    had_queues: bool

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload."""
        ...

    def refuse_if_sealed(self) -> None:
        """Answer a body that must not go on."""
        ...

    def ask(self, key: StepKey, name: str, arguments: Callable[[], Any] | None = None) -> Recorded | None:
        """What history has for a call."""
        ...

    def perform(
        self, activity: Activity[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], key: StepKey
    ) -> Coroutine[Any, Any, Any]:
        """The work of a step, until its outcome is recorded."""
        ...

    def answer(self, activity: Activity[..., Any], recorded: Recorded) -> Any:
        """The value, or the exception, that a recorded step stands for."""
        ...

    def recur_as(self, successor: Successor) -> NoReturn:
        """End the run."""
        ...


class _ActivityCall:
    """One call of an activity."""

    __slots__ = ("_activity", "_args", "_kwargs", "_run")

    def __init__(
        self, run: BodyRun, activity: Activity[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._run, self._activity, self._args, self._kwargs = run, activity, args, kwargs

    def work(self, key: StepKey) -> Coroutine[Any, Any, Any]:
        return self._run.perform(self._activity, self._args, self._kwargs, key)

    def answer(self, recorded: Recorded) -> Any:
        return self._run.answer(self._activity, recorded)

    def arguments(self) -> Any:
        return self._activity.parameters.as_recorded(self._args, self._kwargs)


class Body:
    """The calls of one body."""

    is_body: Literal[True] = True

    def __init__(self, run: BodyRun, *, now: Callable[[], datetime]) -> None:
        self._run, self._now = run, now
        self.instance_id, self.workflow_name, self.worker_id = run.instance_id, run.workflow_name, run.worker_id

    @property
    def is_replaying(self) -> bool:
        """True while history has answers that were not asked for yet."""
        return self._run.replay.is_replaying

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload."""
        return self._run.max_payload_bytes

    # Doing.

    async def invoke(self, workflow: DeclaredWorkflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a workflow's function with this body's ``ctx``."""
        if workflow.is_async:
            return await workflow.function(WorkflowContext(self), *args, **kwargs)
        return await run_in_greenlet(workflow.function, SyncWorkflowContext(self), *args, **kwargs)

    def call_activity(
        self, activity: Activity[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, activity_id: str | None
    ) -> Any:
        """Take the step's id now; return its value, or an awaitable of it."""
        call = _ActivityCall(self._run, activity, args, kwargs)
        return self._run.call(activity.name, call.work, call.answer, activity_id=activity_id, arguments=call.arguments)

    def call_inline(self, workflow: DeclaredWorkflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run another workflow's function as part of this body."""
        self._run.refuse_if_sealed()
        if is_in_greenlet() and not workflow.is_async:
            return workflow.function(SyncWorkflowContext(self), *args, **kwargs)
        return hand_out(named(self.invoke(workflow, args, kwargs), workflow.__name__))

    def gather(self, branches: tuple[Callable[[], Any], ...], *, return_exceptions: bool) -> list[Any]:
        """Run branches of a plain ``def`` body side by side, each in a greenlet and a task of its own."""
        self._run.refuse_if_sealed()
        line = current_line()
        tasks = [line.fork().create_task(run_in_greenlet(branch)) for branch in branches]
        found: list[Any] = wait_in_greenlet(asyncio.gather(*tasks, return_exceptions=return_exceptions))
        return found

    def recur(self, arguments: dict[str, Any]) -> NoReturn:
        """End this run; its successor starts in the transaction that says so."""
        run = self._run
        run.refuse_if_sealed()
        input_json = run.workflow.encode_input((), arguments, max_payload_bytes=run.max_payload_bytes)
        run.recur_as(Successor(successor_id(run.instance_id), input_json, run.workflow.source_hash))

    # Waiting and talking.

    @property
    def _talking(self) -> Talking:
        return Talking(self._run)

    def wait(
        self, function_name: str, request: WaitRequest, decode: Callable[[Recorded], Any], *, activity_id: str | None
    ) -> Any:
        """Number the wait now; return what *decode* makes of its recorded end, or an awaitable of it."""
        self._run.had_waits = True
        self._run.had_mail = self._run.had_mail or request.kind is not WaitKind.TIMER
        return self._talking.wait(function_name, request, decode, activity_id)

    def send(self, function_name: str, message: OutgoingMessage) -> Any:
        """Send as a recorded step."""
        return self._talking.send(function_name, message)

    def subscribe(self, function_name: str, change: SubscriptionChange) -> Any:
        """Change what this instance gets, as a recorded step."""
        self._run.had_mail = True
        self._run.had_queues = self._run.had_queues or change.mode == ChannelMode.COMPETING
        return self._talking.subscribe(function_name, change)

    def first_of(self, branches: tuple[Any, ...]) -> Any:
        """Run branches side by side until one ends."""
        return self._talking.first_of(branches)

    # Values that are the same on replay.

    def now(self) -> datetime:
        """The recorded time of this call, or now."""
        run, name = self._run, "ctx.now"
        run.refuse_if_sealed()
        key = current_line().branch.take(name)
        recorded = run.ask(key, name)
        if recorded is not None:
            moment: datetime = _DATETIME.decode_parsed(recorded.event_data["result"], owner=name)
            return moment.astimezone(UTC)
        moment = self._now()
        event = event_json(name, result_json=_DATETIME.encode(moment, owner=name))
        seq = run.next_seq()
        run.write_later(lambda holder: Step(holder, key, seq, EventType.VALUE_RECORDED, event))
        return moment

    def uuid4(self) -> uuid.UUID:
        """Derived from the instance and the place of the call."""
        return uuid.UUID(bytes=self._derived("uuid4")[:16], version=4)

    def random(self) -> float:
        """Derived from the instance and the place of the call."""
        return (int.from_bytes(self._derived("random")[:8], "big") >> 11) / (1 << 53)

    def _derived(self, purpose: str) -> bytes:
        self._run.refuse_if_sealed()
        return hashlib.sha256(f"{self.instance_id}\0{current_line().branch.derive(purpose)}".encode()).digest()
