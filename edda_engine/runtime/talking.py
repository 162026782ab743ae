"""What a body does beside calling activities: wait, send, subscribe, race, recur.

Each is a call like that of an activity: numbered when it is made, answered from history on replay. A wait asks the
database, in one transaction, for what has come; if nothing has, it is registered there and the body pauses, until its
time is up or somebody says that something is there. Then it asks again, unless what has come is recorded already: a claim
may have done so (:mod:`edda_engine.storage.receiving`).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, Protocol, assert_never

from edda_engine.core.codec import MAX_ID_LENGTH, is_storable_id
from edda_engine.core.events import EventType, Recorded, StepKey, event_json
from edda_engine.core.failures import decode_error, encode_error
from edda_engine.core.ports import OutgoingMessage, SubscriptionChange, WaitKind, WaitRequest
from edda_engine.core.replay import Replay
from edda_engine.core.status import Status
from edda_engine.errors import Cancelled, LeaseLostError, UsageError
from edda_engine.runtime.branches import Line, PastOnly, current_line, line_here
from edda_engine.runtime.greenlets import is_in_greenlet, run_in_greenlet
from edda_engine.runtime.later import MakeUnit, putting_back
from edda_engine.runtime.tasks import to_the_end
from edda_engine.storage.units import (
    AlreadyRecorded,
    HeldUnit,
    Holder,
    LeaseLost,
    Open,
    Outcome,
    Refused,
    Saved,
    Step,
    Subscribe,
    Take,
)

_STATUSES = {
    WaitKind.TIMER: Status.WAITING_FOR_TIMER,
    WaitKind.EVENT: Status.WAITING_FOR_EVENT,
    WaitKind.MESSAGE: Status.WAITING_FOR_MESSAGE,
}


_REPEAT_SECONDS = 0.001
_REPEAT_AT_MOST_SECONDS = 10.0
_CYCLES = 10
"""So many turns of the loop a branch is given to act on its last recorded answer."""


class TalkingRun(Protocol):
    """What talking needs of the run it belongs to."""

    holder: Holder
    mailbox: str
    fate: type[BaseException] | None

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
        """Number a call now and hand out what comes of it."""
        ...

    def next_seq(self) -> int:
        """The number of the next recorded step."""
        ...

    def commit(self, unit: HeldUnit) -> Coroutine[Any, Any, Outcome]:
        """Write one unit."""
        ...

    async def hold(self, seconds: float | None, *, kind: WaitKind, status: Status, activity_id: str) -> Recorded | None:
        """Pause; the lease may be given back meanwhile. What has come, if that is recorded already."""
        ...

    def ask_to_stop(self) -> None:
        """The instance is cancelled."""
        ...

    def write_later(self, make_unit: MakeUnit) -> None:
        """Write this before anything happens that may depend on it."""
        ...

    replay: Replay

    def has_sent(self) -> None:
        """Messages are committed: somebody may wait for them."""
        ...

    def probe(self, name: str) -> None:
        """Say where the run is."""
        ...


class Talking:
    """The calls of one run that wait and talk."""

    def __init__(self, run: TalkingRun) -> None:
        self._run = run

    def wait(
        self, function_name: str, request: WaitRequest, decode: Callable[[Recorded], Any], activity_id: str | None
    ) -> Any:
        """A wait: what *decode* makes of its recorded end."""
        run, about = self._run, _about(function_name, request.name)
        if activity_id is not None and not is_storable_id(activity_id):
            raise UsageError(
                f"{function_name}(): the id of a step must be a text of 1 to {MAX_ID_LENGTH} characters without NUL or"
                f" surrogates, not {activity_id!r:.80}. Leave it out to have the step numbered."
            )

        def answer(recorded: Recorded) -> Any:
            if recorded.event_type == EventType.ACTIVITY_FAILED:
                raise decode_error(recorded.event_data["error"])
            if "taken" in recorded.event_data:
                line_here().last_taken = recorded.key
            return decode(recorded)

        async def work(key: StepKey) -> Any:
            return answer(await self._until_over(about, request, key))

        def withdrawn(key: StepKey) -> MakeUnit:
            return self._withdrawal(key, about)

        return run.call(function_name, work, answer, about=about, activity_id=activity_id, withdrawn=withdrawn)

    def send(self, function_name: str, message: OutgoingMessage) -> Any:
        """Send as a step: written with its history row, once."""
        run, about = self._run, _about(function_name, message.name)

        async def work(key: StepKey) -> Any:
            event = event_json(about, result_json=json.dumps(message.message_id))
            step = Step(run.holder, key, run.next_seq(), EventType.MESSAGE_SENT, event, messages=(message,))
            run.probe("send.before_commit")
            outcome = await run.commit(step)
            run.probe("send.after_commit")
            run.has_sent()
            recorded = self._checked(outcome)
            return message.message_id if recorded is None else _result(recorded)

        return run.call(function_name, work, _result, about=about)

    def subscribe(self, function_name: str, change: SubscriptionChange) -> Any:
        """Change a subscription as a step."""
        run, about = self._run, _about(function_name, change.channel)
        kind = EventType.UNSUBSCRIBED if change.mode is None else EventType.SUBSCRIBED
        mode_json = json.dumps({"channel": change.channel, "mode": change.mode})

        def answer(recorded: Recorded) -> None:
            if recorded.event_type == EventType.ACTIVITY_FAILED:
                raise decode_error(recorded.event_data["error"])

        async def work(key: StepKey) -> None:
            step = Step(run.holder, key, run.next_seq(), kind, event_json(about, input_json=mode_json))
            run.probe("subscribe.before_commit")
            outcome = await run.commit(Subscribe(step, run.mailbox, change))
            run.probe("subscribe.after_commit")
            if isinstance(outcome, Refused):
                await self._refuse(outcome, about, key)
            recorded = self._checked(outcome)
            if recorded is not None:
                answer(recorded)
            run.has_sent()  # what an ended subscription had taken from a queue goes to others

        return run.call(function_name, work, answer, about=about)

    def first_of(self, branches: tuple[Any, ...]) -> Any:
        """A race: the index and the value of the branch that ends first; the others are withdrawn."""
        run, name = self._run, "ctx.first_of"
        if not branches:
            raise UsageError("ctx.first_of() needs at least one branch to wait for.")
        lines = [current_line().fork() for _ in branches]
        coroutines = [_as_coroutine(branch) for branch in branches]

        async def work(key: StepKey) -> tuple[int, Any]:
            tasks = [line.create_task(coroutine) for line, coroutine in zip(lines, coroutines, strict=True)]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                winner = next((index for index, task in enumerate(tasks) if task.done()), None)
                losers = [task for index, task in enumerate(tasks) if index != winner]
                await _withdraw(losers)
            assert winner is not None
            if run.fate is None:
                for line, task in zip(lines, tasks, strict=True):
                    if task in losers and not task.cancelled() and line.last_taken is not None:
                        run.write_later(self._withdrawal(line.last_taken, name))
                event = event_json(name, result_json=str(winner))
                seq = run.next_seq()
                run.write_later(lambda holder: Step(holder, key, seq, EventType.VALUE_RECORDED, event))
            return winner, tasks[winner].result()

        async def repeat(recorded: Recorded) -> tuple[int, Any]:
            winner = int(recorded.event_data["result"])
            for index, line in enumerate(lines):
                line.past = PastOnly() if index != winner else None
            tasks = [line.create_task(coroutine) for line, coroutine in zip(lines, coroutines, strict=True)]
            losers = [index for index in range(len(tasks)) if index != winner]
            try:
                await asyncio.wait({tasks[winner]})
                await self._until_repeated([(lines[index], tasks[index]) for index in losers])
            finally:
                await _withdraw([tasks[index] for index in losers])
            for index in losers:
                run.replay.skip(lines[index].branch.path)
            return winner, tasks[winner].result()

        try:
            handed = run.call(name, work, repeat, is_race=True)
        except BaseException:
            _close(coroutines)
            raise
        return _closing(handed, coroutines) if inspect.iscoroutine(handed) else handed

    # Inside.

    async def _until_repeated(self, losers: list[tuple[Line, asyncio.Task[Any]]]) -> None:
        """Let the losers of a race get as far as they had got: what they have told the body must be the same.

        What they recorded while they were withdrawn they ask for only then.
        """
        loop = asyncio.get_running_loop()
        idle, before, give_up_at = 0, -1, loop.time() + _REPEAT_AT_MOST_SECONDS
        while idle < _CYCLES and self._run.fate is None and loop.time() < give_up_at:
            unasked = [
                (line, len(self._run.replay.unasked(line.branch.path))) for line, task in losers if not task.done()
            ]
            is_under_way = any(count and not (line.past and line.past.has_ended) for line, count in unasked)
            left = sum(count for _, count in unasked)
            idle = 0 if is_under_way or left != before else idle + 1
            before = left
            await asyncio.sleep(_REPEAT_SECONDS if is_under_way else 0)

    async def _until_over(self, about: str, request: WaitRequest, key: StepKey) -> Recorded:
        run, seq = self._run, self._run.next_seq()
        is_asked_again = False
        while True:
            run.probe("take.before_commit")
            take = Take(run.holder, key, seq, about, run.mailbox, request, is_asked_again)
            outcome = await to_the_end(run.commit(take))  # what was taken must be known before it is given up
            is_asked_again = True
            run.probe("take.after_commit")
            match outcome:
                case Open(due_in_seconds, is_cancelled):
                    if is_cancelled:
                        run.ask_to_stop()
                        raise Cancelled
                    received = await run.hold(
                        due_in_seconds,
                        kind=request.kind,
                        status=_STATUSES[request.kind],
                        activity_id=key.activity_id,
                    )
                    if received is not None:
                        return received
                case Refused():
                    await self._refuse(outcome, about, key)
                case _:
                    recorded = self._checked(outcome)
                    assert recorded is not None
                    return recorded

    def _checked(self, outcome: Outcome) -> Recorded | None:
        """What is recorded of the call, if it was there before."""
        match outcome:
            case LeaseLost():
                raise LeaseLostError("Another worker owns this instance now.")
            case AlreadyRecorded(event, is_cancelled):
                if is_cancelled:
                    self._run.ask_to_stop()
                return event
            case Saved(is_cancelled):
                if is_cancelled:
                    self._run.ask_to_stop()
                return None
            case Open() | Refused():
                raise AssertionError(outcome)
            case _:
                assert_never(outcome)

    async def _refuse(self, refused: Refused, about: str, key: StepKey) -> NoReturn:
        """Record that the call failed, so that a replay fails in the same place."""
        event = event_json(about, error_json=encode_error(refused.error))
        step = Step(self._run.holder, key, self._run.next_seq(), EventType.ACTIVITY_FAILED, event)
        self._checked(await self._run.commit(step))
        raise refused.error

    def _withdrawal(self, key: StepKey, about: str) -> MakeUnit:
        return putting_back(key, about, self._run.next_seq(), self._run.mailbox)


async def _closing(handed: Coroutine[Any, Any, Any], coroutines: list[Coroutine[Any, Any, Any]]) -> Any:
    """Branches that were not begun, because the run must not go on, are nobody's any more."""
    try:
        return await handed
    finally:
        _close(coroutines)


def _close(coroutines: list[Coroutine[Any, Any, Any]]) -> None:
    for coroutine in coroutines:
        coroutine.close()


async def _withdraw(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at: a loser's error is nobody's business


def _as_coroutine(branch: Any) -> Coroutine[Any, Any, Any]:
    if is_in_greenlet():
        if not callable(branch):
            raise UsageError(
                f"ctx.first_of() in a plain def workflow takes functions to call, such as lambda: ..., not {branch!r}."
            )
        return run_in_greenlet(branch)
    if inspect.iscoroutine(branch):
        return branch
    if not inspect.isawaitable(branch):
        raise UsageError(f"ctx.first_of() takes calls and other awaitables, not {branch!r}.")

    async def waiting() -> Any:
        return await branch

    return waiting()


def _about(function_name: str, name: str) -> str:
    """How history names a call: another event type or channel at its place is another call."""
    return f"{function_name}({name})" if name else function_name


def _result(recorded: Recorded) -> Any:
    return recorded.event_data["result"]


def successor_id(instance_id: str) -> str:
    """The id of the run that follows this one; the same however often it is asked for."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"edda:successor:{instance_id}").hex
