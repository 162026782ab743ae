"""``ctx``: what a workflow body or an activity can ask for.

One class for each place: :class:`WorkflowContext` in an ``async def`` body, :class:`SyncWorkflowContext` in a
plain ``def`` body, :class:`ActivityContext` in an activity (annotate it as ``WorkflowContext``, which it is).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from edda_engine.core.ports import ActivityExecution, BodyExecution
from edda_engine.errors import UsageError

T = TypeVar("T")

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class _WorkflowLogger(_Adapter):
    """Adds the ids to each record, and says nothing while the body only repeats its past."""

    def __init__(self, logger: logging.Logger, ids: dict[str, Any], silent: Callable[[], bool]) -> None:
        super().__init__(logger, ids)
        self._silent = silent

    def isEnabledFor(self, level: int) -> bool:
        return not self._silent() and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class _Context:
    """What both kinds of body share."""

    _execution: Any

    def __init__(self, execution: BodyExecution) -> None:
        self._execution = execution

    @property
    def instance_id(self) -> str:
        """The id that ``start()`` returned."""
        return str(self._execution.instance_id)

    @property
    def workflow_name(self) -> str:
        """The name under which the running workflow is declared."""
        return str(self._execution.workflow_name)

    @property
    def worker_id(self) -> str:
        """The process that runs this now; differs after a crash."""
        return str(self._execution.worker_id)

    @property
    def is_replaying(self) -> bool:
        """True only while answers come from history, so that a message is not logged twice."""
        return bool(self._execution.is_replaying)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger named after the workflow, with the ids in ``extra``; silent while replaying."""
        logger = logging.getLogger(f"edda.workflow.{self.workflow_name}")
        ids = {"instance_id": self.instance_id, "workflow_name": self.workflow_name, "worker_id": self.worker_id}
        return _WorkflowLogger(logger, ids, lambda: self.is_replaying)

    def now(self) -> datetime:
        """The current time, aware, in UTC; in a body it is recorded, so a replay sees the same."""
        moment: datetime = self._execution.now()
        return moment

    def uuid4(self) -> uuid.UUID:
        """A UUID; in a body it is derived from the instance and the place of the call, the same on replay.

        Not a secret: whoever knows the instance id can compute it.
        """
        value: uuid.UUID = self._execution.uuid4()
        return value

    def random(self) -> float:
        """A number, at least 0 and less than 1; in a body it is derived, the same on replay.

        Not a secret: whoever knows the instance id can compute it. Make tokens in an activity, with ``secrets``.
        """
        return float(self._execution.random())

    def recur(self, **arguments: Any) -> NoReturn:
        """End this run and start its successor with new arguments: ``ctx.recur(cursor=cursor)``.

        For workflows that go on for ever: the successor begins with an empty history. It starts in the transaction
        that ends this run, and keeps the subscriptions and what is unread. Nothing after this call is executed.

        :param arguments: The arguments of the successor, checked as ``start()`` checks them.
        :raises InvalidInputError: they do not fit the signature; this run goes on.
        """
        self._execution.recur(arguments)
        raise AssertionError("unreachable")

    @property
    def session(self) -> Any:
        """The session of the activity's transaction; refused in a workflow body."""
        self._refuse("session")

    def transaction(self) -> Any:
        """A savepoint inside the activity's transaction; refused in a workflow body."""
        self._refuse("transaction()")

    def in_transaction(self) -> bool:
        """True in an activity, whose writes are saved with its history row; False in a workflow body."""
        return False

    def register_post_commit(self, callback: Callable[[], Any]) -> None:
        """Call back once the activity is durable; refused in a workflow body."""
        self._refuse("register_post_commit()")

    @property
    def attempt(self) -> int:
        """Which try of the activity this is, from 1; refused in a workflow body."""
        self._refuse("attempt")

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of one step; refused in a workflow body."""
        self._refuse("idempotency_key")

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(
            f"ctx.{what} has no meaning in the body of workflow {self.workflow_name!r}: the body is replayed and has no"
            " transaction. Move this into an @activity, where it is part of the step's transaction."
        )


class WorkflowContext(_Context):
    """The context of an ``async def`` workflow; calls of activities return awaitables."""

    def first_of(self, *branches: Awaitable[Any]) -> Awaitable[tuple[int, Any]]:
        """Wait for the branch that ends first: its index and value; the others are withdrawn.

        ``index, value = await ctx.first_of(wait_event(ctx, "paid"), sleep(ctx, 3600))``

        Which one was first is recorded, so a replay goes the same way. A message that a withdrawn wait has taken
        goes back to where it lay. If the first one failed, its error is raised.

        :param branches: Calls, or coroutines of several calls each.
        """
        found: Awaitable[tuple[int, Any]] = self._execution.first_of(branches)
        return found

    if not TYPE_CHECKING:  # a type checker knows that it is not there

        def gather(self, *branches: Any, **options: Any) -> NoReturn:
            """Refused: ``asyncio.gather`` does it here."""
            raise UsageError(
                "ctx.gather() is for plain `def` workflows. In `async def` code use `await asyncio.gather(...)` with the calls"
                " themselves, without lambda."
            )


class SyncWorkflowContext(_Context):
    """The context of a plain ``def`` workflow; calls of activities return their values."""

    def gather(self, *branches: Callable[[], T], return_exceptions: bool = False) -> list[T]:
        """Run branches side by side and return their values in order, as ``asyncio.gather`` does.

        ``ctx.gather(lambda: reserve(ctx, 1), lambda: charge(ctx, 1))``

        :param return_exceptions: Put errors into the list instead of raising the first.
        """
        return list(self._execution.gather(branches, return_exceptions=return_exceptions))

    def first_of(self, *branches: Callable[[], Any]) -> tuple[int, Any]:
        """Wait for the branch that ends first: its index and value; the others are withdrawn.

        ``index, value = ctx.first_of(lambda: wait_event(ctx, "paid"), lambda: sleep(ctx, 3600))``

        :param branches: Functions without arguments, each run side by side with the others.
        """
        index, value = self._execution.first_of(branches)
        return index, value


class ActivityContext(WorkflowContext):
    """The context inside an activity: one attempt of one step."""

    _execution: ActivityExecution

    def __init__(self, execution: ActivityExecution) -> None:
        self._execution = execution

    @property
    def activity_id(self) -> str:
        """The id of this step in history."""
        return self._execution.activity_id

    def recur(self, **arguments: Any) -> NoReturn:
        """Refused: only a workflow body can end its run."""
        raise UsageError("ctx.recur() ends the run of a workflow; call it in the workflow's body, not in an activity.")

    def first_of(self, *branches: Awaitable[Any]) -> Awaitable[tuple[int, Any]]:
        """Refused: an activity is one step."""
        raise UsageError("ctx.first_of() is for the workflow's body; in an activity use asyncio.wait().")

    @property
    def is_replaying(self) -> bool:
        """Always False: an activity that is recorded is not run again."""
        return False

    @property
    def session(self) -> Any:
        """The session of this activity's transaction: what it writes is saved with the history row.

        The application's own ``db.session`` in a sync activity, an ``AsyncSession`` in an async one.
        """
        return self._execution.session

    def transaction(self) -> Any:
        """A savepoint: ``with ctx.transaction():``, in an async activity ``async with``."""
        return self._execution.savepoint()

    def in_transaction(self) -> bool:
        """True: what this activity writes through its session is saved with its history row, or not at all."""
        return True

    def register_post_commit(self, callback: Callable[[], Any]) -> None:
        """Call *callback* once this step is durable.

        It runs at most once: a crash right after the commit loses it. An error in it is logged and changes
        nothing. A step answered from history calls nothing.
        """
        self._execution.register_post_commit(callback)

    @property
    def attempt(self) -> int:
        """Which try of this activity this is, from 1; counts across crashes."""
        return self._execution.attempt

    @property
    def idempotency_key(self) -> str:
        """``"{instance_id}:{activity_id}"``: the same for every attempt, for services that take such a key."""
        return f"{self.instance_id}:{self.activity_id}"


def body_of(ctx: Any, call: str, instead: str) -> BodyExecution:
    """The running body that *ctx* belongs to.

    :param instead: What to do in an activity.
    :raises UsageError: *ctx* is an activity's, or no context at all.
    """
    if isinstance(ctx, ActivityContext):
        raise UsageError(
            f"{call} was called in activity {ctx.activity_id!r}. An activity holds a thread and is run again after a"
            f" crash, so waiting belongs into the workflow's body: call it there, with the workflow's ctx. {instead}"
        )
    if not isinstance(ctx, (WorkflowContext, SyncWorkflowContext)):
        raise UsageError(f"{call} takes the workflow's ctx as its first argument, not {ctx!r}.")
    execution: BodyExecution = ctx._execution
    return execution


def place_of(ctx: Any, call: str) -> BodyExecution | ActivityExecution:
    """The running body or activity that *ctx* belongs to.

    :raises UsageError: *ctx* is no context.
    """
    if not isinstance(ctx, (WorkflowContext, SyncWorkflowContext)):
        raise UsageError(f"{call} takes a ctx, or the application, as its first argument, not {ctx!r}.")
    execution: BodyExecution | ActivityExecution = ctx._execution
    return execution
