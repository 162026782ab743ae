"""One attempt of an activity: run the function, encode its result, commit what it wrote with its history row.

Everything here happens where the activity runs: on a pool thread for a plain function, on the loop for a
coroutine function. The result is encoded before anything is committed.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

from sqlalchemy.util.concurrency import greenlet_spawn

from edda_engine.activity import Activity
from edda_engine.context import ActivityContext
from edda_engine.core.codec import check_size
from edda_engine.core.ports import NewInstance, OutboxEvent, OutgoingMessage, current_place
from edda_engine.errors import LeaseLostError, UsageError
from edda_engine.runtime.environment import Environment, Sessions
from edda_engine.runtime.probes import Probe
from edda_engine.runtime.transactions import AttemptTransaction
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.units import Outcome, Step

_log = logging.getLogger(__name__)

T = TypeVar("T")

PostCommit = Callable[[], Any]
MakeStep = Callable[["Attempt", str], Step]
"""Makes what is recorded of an attempt that has returned, with its result as JSON."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The activity returned and used no session: its step is still to be written."""

    result_json: str
    value: Any


@dataclass(frozen=True, slots=True)
class Written:
    """The activity returned, and its step went into its own transaction; *outcome* says what became of it."""

    outcome: Outcome
    value: Any


@dataclass(frozen=True, slots=True)
class Unsaved:
    """The activity returned and used no session, and the database refuses its step."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Raised:
    """The attempt failed; what it wrote is rolled back. *is_outage*: the database's fault, not the activity's."""

    error: BaseException
    is_outage: bool = False


Ending = Returned | Written | Unsaved | Raised


class Attempt:
    """What an activity can ask for while it runs (see ``core.ports.ActivityExecution``)."""

    is_body: Literal[False] = False

    def __init__(
        self,
        activity: Activity[..., Any],
        *,
        instance_id: str,
        workflow_name: str,
        worker_id: str,
        activity_id: str,
        number: int,
        transaction: AttemptTransaction,
        max_payload_bytes: int,
        application: Any,
        probe: Probe,
        now: Callable[[], datetime],
    ) -> None:
        self.activity = activity
        self.instance_id, self.workflow_name, self.worker_id = instance_id, workflow_name, worker_id
        self.activity_id, self.attempt = activity_id, number
        self.is_async = activity.is_async
        self.transaction = transaction
        self.application = application
        self.outbox: Sequence[OutboxEvent] = ()
        self.messages: Sequence[OutgoingMessage] = ()
        self.post_commit: Sequence[PostCommit] = ()
        self._starts: Sequence[NewInstance] = ()
        self.max_payload_bytes = max_payload_bytes
        self._sessions: Sessions | None = None
        self._probe, self._now = probe, now

    @property
    def session(self) -> Any:
        """The session of this attempt's transaction."""
        if self._sessions is None:
            raise UsageError(f"ctx.session of activity {self.activity_id!r} was used after the activity had ended.")
        return self._sessions.session()

    def savepoint(self) -> AbstractContextManager[Any] | AbstractAsyncContextManager[Any]:
        """A savepoint of the session."""
        return self.session.begin_nested()  # type: ignore[no-any-return]

    def register_post_commit(self, callback: PostCommit) -> None:
        """Keep the callback until the step is durable."""
        if not callable(callback):
            raise UsageError(f"register_post_commit() takes a function to call, not {callback!r}.")
        self.post_commit = _with(callback, self.post_commit)

    def buffer_outbox(self, event: OutboxEvent) -> None:
        """Keep the event until the step is written."""
        owner = f"event {event.type!r} sent by activity {self.activity_id!r}"
        check_size(event.data_json or event.data_binary or b"", self.max_payload_bytes, owner=owner)
        self.outbox = _with(event, self.outbox)

    def buffer_message(self, message: OutgoingMessage) -> None:
        """Keep the message until the step is written."""
        self.messages = _with(message, self.messages)

    def start(self, new: NewInstance) -> None:
        """Start an instance as part of this step.

        :raises InstanceConflictError: in a sync activity at once; in an async one when the step is written.
        """
        if self.is_async:
            self._starts = _with(new, self._starts)
        else:
            insert_instance(self.transaction.connection(), new)

    def now(self) -> datetime:
        """The time of this host."""
        return self._now()

    def uuid4(self) -> uuid.UUID:
        """A random id."""
        return uuid.uuid4()

    def random(self) -> float:
        """A random number."""
        return random.random()

    def run(
        self, environment: Environment, args: tuple[Any, ...], kwargs: dict[str, Any], make_step: MakeStep
    ) -> Ending:
        """Run a plain function, on this thread."""
        ending: Ending | None = None
        try:
            with environment.around_activity(self.transaction) as sessions:
                self._enter(sessions)
                try:
                    self._probe("activity.started")
                    value = self.activity.function(ActivityContext(self), *args, **kwargs)
                    self._probe("activity.returned")
                    ending = self._conclude(sessions, value, make_step)
                except BaseException as error:  # the edge of user code; what it is decides the retry policy
                    ending = self._fail(sessions, error)
                finally:
                    self._leave()
        except Exception as error:  # the application's own context could not be set up or torn down
            return self._after_teardown(ending, error)
        assert ending is not None
        return ending

    async def run_async(
        self, environment: Environment, args: tuple[Any, ...], kwargs: dict[str, Any], make_step: MakeStep
    ) -> Ending:
        """Run a coroutine function, on the loop; SQL waits without blocking it."""
        ending: Ending | None = None
        try:
            async with environment.around_async_activity(self.transaction) as sessions:
                self._enter(sessions)
                try:
                    self._probe("activity.started")
                    value = await self.activity.function(ActivityContext(self), *args, **kwargs)
                    self._probe("activity.returned")
                    ending = await greenlet_spawn(self._conclude, sessions, value, make_step)
                except BaseException as error:  # the edge of user code; a cancelled attempt rolls back too
                    ending = await greenlet_spawn(self._fail, sessions, error)
                finally:
                    self._leave()
        except Exception as error:  # the application's own context could not be set up or torn down
            return self._after_teardown(ending, error)
        assert ending is not None
        return ending

    def _enter(self, sessions: Sessions) -> None:
        self._sessions = sessions
        current_place.set(self)

    def _leave(self) -> None:
        # What the application does when its context ends is no part of the step any more.
        self._sessions = None
        current_place.set(None)

    def _after_teardown(self, ending: Ending | None, error: Exception) -> Ending:
        """Once a step has ended, an error of the application's teardown must not make it run again."""
        if ending is None:
            return Raised(error)
        _log.error("The application's context of activity %s could not be torn down", self.activity_id, exc_info=error)
        return ending

    def _conclude(self, sessions: Sessions, value: Any, make_step: MakeStep) -> Ending:
        owner = f"activity {self.activity.name!r} ({self.activity_id})"
        result_json, restored = self.activity.parameters.result.round_trip(value, owner=owner)
        check_size(result_json, self.max_payload_bytes, owner=owner)
        sessions.settle()
        for new in self._starts:
            insert_instance(self.transaction.connection(), new)
        if not self.transaction.is_begun:
            return Returned(result_json, restored)
        return Written(self.transaction.commit(make_step(self, result_json)), restored)

    def _fail(self, sessions: Sessions, error: BaseException) -> Raised:
        if self.transaction.is_refused:
            # Its connection first: a session that ended its savepoint there would be refused once more.
            self.transaction.abandon()
        try:
            sessions.discard()
        except (Exception, LeaseLostError) as second:  # a broken connection may fail again while it is put away
            error.add_note(f"While discarding its session: {second!r}")
        self.transaction.abandon()
        return Raised(error, is_outage=self.transaction.saw_outage)


def _with(one: T, others: Sequence[T]) -> list[T]:
    """Most attempts have nothing of the kind, and need no list."""
    found = others if isinstance(others, list) else []
    found.append(one)
    return found
