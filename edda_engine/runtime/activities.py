"""Activities: run a step until its outcome is recorded, with its retries.

Sync functions run on a thread pool, async ones on the loop. A step whose session was not used goes to the
committer, which writes it together with others; one that used it has been committed by its own thread already.
Between attempts nothing is held; how long to wait, and whether in memory, is the run's business.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError

from edda_engine.activity import Activity
from edda_engine.core.codec import check_size
from edda_engine.core.events import EventType, Recorded, StepKey, event_json
from edda_engine.core.failures import as_replayed, describe, encode_error
from edda_engine.core.retrying import GiveUp, RetryPolicy, decide
from edda_engine.errors import (
    Cancelled,
    LeaseLostError,
    PayloadError,
    RetryExhaustedError,
)
from edda_engine.hooks import WorkflowHooks
from edda_engine.runtime import attempts
from edda_engine.runtime.deadlines import within_time
from edda_engine.runtime.environment import Environment
from edda_engine.runtime.handing import Answer, run_on, tell
from edda_engine.runtime.owner import Owner
from edda_engine.runtime.probes import Probe
from edda_engine.runtime.transactions import AttemptTransaction, outage_in_words, refused_by_database
from edda_engine.storage.async_engine import AsyncEngines
from edda_engine.storage.database import Database, is_outage
from edda_engine.storage.retries import RetryState
from edda_engine.storage.units import AlreadyRecorded, HeldUnit, Holder, LeaseLost, Outcome, Step
from edda_engine.storage.units import Attempt as AttemptUnit
from edda_engine.threads import DaemonThreads

_log = logging.getLogger(__name__)

OUTAGE_PAUSES_SECONDS = (0.5, 1.0, 2.0, 5.0)
"""Between attempts that could not be committed: a database may answer and still write nothing, for want of room."""
MAX_RECORDED_ERRORS = 50
_NOT_TRIED = RetryState()


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every activity of a worker shares."""

    database: Database
    async_engines: AsyncEngines
    environment: Environment
    threads: DaemonThreads
    hooks: WorkflowHooks
    probe: Probe
    now: Callable[[], datetime]
    default_policy: RetryPolicy
    max_payload_bytes: int
    application: Any
    has_sent: Callable[[], None]
    """Called after a commit with messages or outbox rows: somebody may wait for them."""


class RunOfStep(Protocol):
    """What the work on a step needs of the run that the step belongs to."""

    instance_id: str
    workflow_name: str
    worker_id: str
    holder: Holder
    retry_states: dict[str, RetryState]
    had_retries: bool
    owner: Owner

    def next_seq(self) -> int:
        """The number of the next recorded step."""
        ...

    async def commit(self, unit: HeldUnit) -> Outcome:
        """Write one unit."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt."""
        ...

    def answer(self, activity: Activity[..., Any], recorded: Recorded) -> Any:
        """The value, or the exception, that a recorded step stands for."""
        ...

    def ask_to_stop(self) -> None:
        """The instance is cancelled."""
        ...

    def hook(self, name: str, *details: Any) -> None:
        """Tell the hooks."""
        ...


class StepWork:
    """One step of one run, from its first attempt on this worker to its recorded outcome."""

    def __init__(
        self,
        workplace: Workplace,
        run: RunOfStep,
        key: StepKey,
        activity: Activity[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._place, self._run, self._key, self._activity = workplace, run, key, activity
        self._policy = activity.retry_policy or workplace.default_policy
        owner = f"activity {activity.name!r} ({key.activity_id})"
        self._args, self._kwargs = activity.parameters.as_called(args, kwargs, owner=owner)
        arguments = activity.parameters.bind(self._args, self._kwargs)
        self._input_json = activity.parameters.encode(arguments, owner=owner)
        check_size(self._input_json, workplace.max_payload_bytes, owner=f"the arguments of {owner}")
        self._state = run.retry_states.pop(key.activity_id, _NOT_TRIED)
        self._clock = asyncio.get_running_loop()  # asked on the activity's thread as well
        self._began = self._clock.time() - self._state.elapsed_seconds

    async def outcome(self) -> Any:
        """The value, or the error raised, once it is recorded.

        :raises LeaseLostError: another worker owns the instance.
        :raises Cancelled: the step is recorded, and the instance was asked to stop.
        """
        if self._state.due_in_seconds > 0:
            await self._run.pause(self._state.due_in_seconds)
        outages = 0
        while True:
            number = self._state.attempts + 1
            self._run.hook("on_activity_start", self._key.activity_id, self._activity.name, number)
            attempt, ending = await self._try_once(number)
            match ending:
                case attempts.Written():
                    return await self._conclude(attempt, ending.outcome, ending.value)
                case attempts.Returned():
                    step = self._completed(attempt, ending.result_json)
                    try:
                        saved = await self._commit(step)
                    except Exception as refused:
                        return await self._give_up_unsaved(refused, number)
                    return await self._conclude(attempt, saved, ending.value)
                case attempts.Unsaved():
                    return await self._give_up_unsaved(ending.error, number)
                case attempts.Raised(error=error, is_outage=True):
                    _log.warning(
                        "Activity %s of %s lost the database and is run again when it answers: %s",
                        self._key.activity_id, self._run.instance_id, outage_in_words(error),
                    )  # fmt: skip
                    await asyncio.sleep(OUTAGE_PAUSES_SECONDS[min(outages, len(OUTAGE_PAUSES_SECONDS) - 1)])
                    outages += 1
                    recorded = await self._run.owner.find_recorded(self._run.instance_id, self._key.activity_id)
                    if recorded is not None:  # the commit had succeeded, only its answer was lost
                        return self._run.answer(self._activity, recorded)
                case attempts.Raised(error=error):
                    if isinstance(error, LeaseLostError):
                        raise error
                    following = decide(
                        self._policy, error, attempt=number, elapsed_seconds=self._elapsed(), random=random.random()
                    )
                    if isinstance(following, GiveUp):
                        return await self._give_up(error, following)
                    await self._record_attempt(error, following.delay_seconds)
                    await self._run.pause(following.delay_seconds)

    async def _try_once(self, number: int) -> tuple[attempts.Attempt, attempts.Ending]:
        place, is_async = self._place, self._activity.is_async
        find_engine = place.async_engines.sync_face if is_async else place.database.shared_engine
        transaction = AttemptTransaction(
            place.database,
            find_engine,
            probe=place.probe,
            takes_turn=not is_async,
            may_be_late=self._activity.timeout_seconds is not None,
        )
        attempt = attempts.Attempt(
            self._activity,
            instance_id=self._run.instance_id,
            workflow_name=self._run.workflow_name,
            worker_id=self._run.worker_id,
            activity_id=self._key.activity_id,
            number=number,
            transaction=transaction,
            max_payload_bytes=place.max_payload_bytes,
            application=place.application,
            probe=place.probe,
            now=place.now,
        )

        loop = asyncio.get_running_loop()
        ending: Answer[attempts.Ending] = Answer()
        if is_async:
            running = attempt.run_async(place.environment, self._args, self._kwargs, self._completed)
            task = loop.create_task(running, context=_nothing_inherited())
            task.add_done_callback(ending.say_as)
            return attempt, await within_time(self._activity, ending, transaction, cancel=task.cancel)
        begun: Answer[None] | None = None if self._activity.timeout_seconds is None else Answer()
        place.threads.put(partial(self._run_on_thread, attempt, ending, begun, loop))
        return attempt, await within_time(self._activity, ending, transaction, begun=begun)

    def _run_on_thread(
        self,
        attempt: attempts.Attempt,
        ending: Answer[attempts.Ending],
        begun: Answer[None] | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        if attempt.transaction.is_refused:
            return  # given up while it waited for a thread: it is not even begun
        if begun is not None:
            tell(loop, begun.say, None)
        try:
            run = _nothing_inherited().run
            found = run(attempt.run, self._place.environment, self._args, self._kwargs, self._completed)
            if not isinstance(found, attempts.Returned):
                tell(loop, ending.say, found)
            elif attempt.transaction.hand_over():  # otherwise it was refused, and nobody waits for it
                # Straight to the committer, without a turn of the loop between.
                step = self._completed(attempt, found.result_json)
                self._place.probe("step.before_commit")
                self._run.owner.put(step, partial(self._written, ending, found))
        except BaseException as error:  # an error of ours, or of a probe: the body meets it
            tell(loop, ending.say, error)

    def _written(
        self, ending: Answer[attempts.Ending], returned: attempts.Returned, outcome: Outcome | BaseException
    ) -> None:
        if isinstance(outcome, BaseException):
            ending.say(attempts.Unsaved(outcome))
            return
        self._place.probe("step.after_commit")
        ending.say(attempts.Written(outcome, returned.value))

    async def _conclude(self, attempt: attempts.Attempt, outcome: Outcome, value: Any) -> Any:
        if isinstance(outcome, LeaseLost):
            raise LeaseLostError("Another worker owns this instance now.")
        if outcome.is_cancelled:
            self._run.ask_to_stop()
        if isinstance(outcome, AlreadyRecorded):
            return self._run.answer(self._activity, outcome.event)
        if attempt.messages or attempt.outbox:
            self._place.has_sent()
        if attempt.post_commit:
            await self._call_back(attempt)
        self._run.hook("on_activity_complete", self._key.activity_id, self._activity.name)
        return value

    async def _give_up(self, error: BaseException, decision: GiveUp) -> Any:
        error = as_replayed(error)
        errors = self._errors_with(decision.attempts, error)
        metadata = None
        if decision.attempts > 1 or decision.exhausted:
            metadata = self._metadata(decision.attempts, errors, exhausted=decision.exhausted)
        event = event_json(
            self._activity.name, input_json=self._input_json, error_json=encode_error(error), retry_metadata=metadata
        )
        outcome = await self._commit(self._step(EventType.ACTIVITY_FAILED, event, had_retries=decision.attempts > 1))
        if isinstance(outcome, LeaseLost):
            raise LeaseLostError("Another worker owns this instance now.")
        if outcome.is_cancelled:
            self._run.ask_to_stop()
        self._run.hook("on_activity_failed", self._key.activity_id, self._activity.name, error)
        if isinstance(outcome, AlreadyRecorded):
            return self._run.answer(self._activity, outcome.event)
        if not decision.exhausted:
            raise error
        assert metadata is not None
        raise exhausted_error(self._activity.name, metadata) from error

    async def _give_up_unsaved(self, error: BaseException, number: int) -> Any:
        """The activity has returned, and its step cannot be written."""
        if is_outage(error):  # only when the worker stops while the database is away
            raise LeaseLostError("The worker stopped before this step could be saved.") from error
        if not isinstance(error, (SQLAlchemyError, ValueError)):  # ValueError: the driver cannot even send it
            raise error
        return await self._give_up(self._unstorable(error), GiveUp(number, exhausted=False))

    async def _record_attempt(self, error: BaseException, delay: float) -> None:
        number = self._state.attempts + 1
        errors = self._errors_with(number, error)
        self._state = RetryState(number, self._elapsed(), delay, errors)
        outcome = await self._commit(AttemptUnit(self._run.holder, self._key.activity_id, self._state))
        if isinstance(outcome, LeaseLost):
            raise LeaseLostError("Another worker owns this instance now.")
        self._run.had_retries = True
        self._run.hook("on_activity_retry", self._key.activity_id, self._activity.name, error, delay)
        _log.info(
            "Activity %s of %s failed (attempt %s, %s); next attempt in %.1f s",
            self._key.activity_id, self._run.instance_id, number, type(error).__name__, delay,
        )  # fmt: skip
        if outcome.is_cancelled:
            self._run.ask_to_stop()
            raise Cancelled

    async def _commit(self, unit: Step | AttemptUnit) -> Outcome:
        self._place.probe("step.before_commit" if isinstance(unit, Step) else "attempt.before_commit")
        try:
            outcome = await self._run.commit(unit)
        except Exception as error:
            if is_outage(error):  # only when the worker stops while the database is away
                raise LeaseLostError("The worker stopped before this step could be saved.") from error
            raise
        self._place.probe("step.after_commit" if isinstance(unit, Step) else "attempt.after_commit")
        return outcome

    def _completed(self, attempt: attempts.Attempt, result_json: str) -> Step:
        metadata = None
        if self._state.attempts:
            metadata = self._metadata(self._state.attempts + 1, self._state.errors, exhausted=False)
        event = event_json(
            self._activity.name, input_json=self._input_json, result_json=result_json, retry_metadata=metadata
        )
        return self._step(
            EventType.ACTIVITY_COMPLETED, event, had_retries=self._state.attempts > 0,
            outbox=tuple(attempt.outbox), messages=tuple(attempt.messages),
        )  # fmt: skip

    def _step(self, event_type: EventType, event: str, **more: Any) -> Step:
        return Step(self._run.holder, self._key, self._run.next_seq(), event_type, event, **more)

    def _metadata(self, total: int, errors: tuple[dict[str, Any], ...], *, exhausted: bool) -> dict[str, Any]:
        last = errors[-1] if errors else {"error_type": "", "message": ""}
        return {
            "total_attempts": total,
            "total_duration_ms": round(self._elapsed() * 1000),
            "exhausted": exhausted,
            "last_error": {"error_type": last["error_type"], "message": last["message"]},
            "errors": list(errors),
        }

    def _errors_with(self, number: int, error: BaseException) -> tuple[dict[str, Any], ...]:
        error_type, message = describe(error)
        entry = {
            "attempt": number,
            "error_type": error_type,
            "message": message,
            "elapsed_ms": round(self._elapsed() * 1000),
        }
        # An infinite retry must not grow its row for ever: the first ones and the latest ones tell the story.
        errors = (*self._state.errors, entry)
        return errors if len(errors) <= MAX_RECORDED_ERRORS else (*errors[:10], *errors[-(MAX_RECORDED_ERRORS - 10) :])

    def _unstorable(self, refused: Exception) -> PayloadError:
        return refused_by_database(f"activity {self._activity.name!r} ({self._key.activity_id})", refused)

    def _elapsed(self) -> float:
        return self._clock.time() - self._began

    async def _call_back(self, attempt: attempts.Attempt) -> None:
        for callback in attempt.post_commit:
            try:
                if attempt.is_async:
                    called = callback()
                    if inspect.isawaitable(called):
                        await called
                else:
                    await run_on(self._place.threads, partial(self._call_in_application, callback))
            except (Exception, SystemExit, KeyboardInterrupt):  # the edge of user code: the step stays durable
                _log.exception(
                    "A post-commit callback of %s of %s failed", self._key.activity_id, self._run.instance_id
                )

    def _call_in_application(self, callback: Callable[[], Any]) -> None:
        def call() -> None:
            with self._place.environment.around_callback():
                callback()

        _nothing_inherited().run(call)


def _nothing_inherited() -> contextvars.Context:
    """A fresh context: nothing of the body, and nothing of a request."""
    return contextvars.Context()


def exhausted_error(activity_name: str, metadata: dict[str, Any]) -> RetryExhaustedError:
    """The error a workflow sees after the last attempt, made from what history keeps."""
    return RetryExhaustedError(
        activity_name,
        attempts=metadata["total_attempts"],
        duration_seconds=metadata["total_duration_ms"] / 1000,
        errors=[f"{entry['error_type']}: {entry['message']}" for entry in metadata["errors"]],
        numbers=[entry["attempt"] for entry in metadata["errors"]],
    )
