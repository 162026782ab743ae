"""``@activity``: a function with effects, run at least once, recorded once.

Calling one inside a workflow numbers the call at once and hands it to the execution that the context
carries; what happens then (answer from history, or run it) is not decided here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from edda_engine.context import ActivityContext, SyncWorkflowContext, WorkflowContext
from edda_engine.core.codec import is_name
from edda_engine.core.retrying import RetryPolicy, is_number
from edda_engine.declarations import Declaration, Registry
from edda_engine.errors import ConfigurationError, UsageError

P = ParamSpec("P")
R = TypeVar("R")


class Activity(Declaration, Generic[P, R]):
    """A declared activity; call it with the workflow's context as the first argument."""

    kind = "activity"

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        retry_policy: RetryPolicy | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        super().__init__(function, name=name, reserved="activity_id")
        if timeout_seconds is not None and not is_number(timeout_seconds, above=0):
            raise ConfigurationError(
                f"Activity {self.name!r}: timeout_seconds must be a number of seconds, more than 0, not {timeout_seconds!r:.80};"
                " leave it out for no limit."
            )
        if retry_policy is not None and not isinstance(retry_policy, RetryPolicy):
            raise ConfigurationError(
                f"Activity {self.name!r}: retry_policy must be a RetryPolicy, such as RetryPolicy(max_attempts=3), not"
                f" {retry_policy!r:.80}."
            )
        self.retry_policy = retry_policy
        self.timeout_seconds = timeout_seconds

    @overload
    def __call__(self, ctx: SyncWorkflowContext, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, ctx: SyncWorkflowContext, /, *args: Any, activity_id: str, **kwargs: Any) -> R: ...
    @overload
    def __call__(self, ctx: WorkflowContext, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, R]: ...
    @overload
    def __call__(
        self, ctx: WorkflowContext, /, *args: Any, activity_id: str, **kwargs: Any
    ) -> Coroutine[None, None, R]: ...
    def __call__(self, ctx: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Do this step once, or take its recorded outcome.

        The step's id is taken now, not when the result is awaited.

        :param activity_id: An id of your own instead of ``"{function}:{n}"``.
        :returns: The value in a plain ``def`` workflow, an awaitable of it in an ``async def`` one.
        :raises RetryExhaustedError: the last attempt failed; ``__cause__`` is its error.
        :raises TerminalError: the activity raised it; likewise other errors that are not retried.
        :raises PayloadError: an argument or the result has no JSON form.
        """
        if isinstance(ctx, ActivityContext):
            raise UsageError(
                f"Activity {self.name!r} was called inside activity {ctx.activity_id!r}: a step cannot contain another one."
                f" Call it from the workflow, or call its plain function: {self.__name__}.function(ctx, ...)."
            )
        if not isinstance(ctx, (WorkflowContext, SyncWorkflowContext)):
            raise UsageError(
                f"Activity {self.name!r} needs the workflow's context as its first argument, not {ctx!r}."
                f" To call the plain function (in a test, say) use {self.__name__}.function(...)."
            )
        activity_id = kwargs.pop("activity_id", None)
        if activity_id is not None and not is_name(activity_id):
            raise UsageError(
                f"activity_id must be a text of 1 to 255 characters, without control characters, not {activity_id!r:.80}."
            )
        return ctx._execution.call_activity(self, args, kwargs, activity_id=activity_id)


activities: Registry[Activity[..., Any]] = Registry("activity")


@overload
def activity(function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Activity[P, R]: ...
@overload
def activity(function: Callable[Concatenate[Any, P], R], /) -> Activity[P, R]: ...
@overload
def activity(
    *, name: str | None = None, retry_policy: RetryPolicy | None = None, timeout_seconds: float | None = None
) -> _Decorator: ...
def activity(function: Any = None, /, **options: Any) -> Any:
    """Declare an activity: ``@activity``, or ``@activity(retry_policy=..., timeout_seconds=..., name=...)``.

    :param retry_policy: Wins over the application's default policy.
    :param timeout_seconds: Bounds one attempt; a late one can never commit.
    :param name: The name in history, instead of the function's.
    :raises DuplicateNameError: another function has this name.
    """

    def declare(target: Callable[..., Any]) -> Activity[..., Any]:
        declared: Activity[..., Any] = Activity(target, **options)
        activities.add(declared)
        return declared

    return declare if function is None else declare(function)


class _Decorator:
    """The type of ``activity(...)`` with options, for type checkers only."""

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Activity[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Activity[P, R]: ...
    def __call__(self, function: Any, /) -> Any: ...
