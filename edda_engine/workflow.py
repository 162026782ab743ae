"""``@workflow``: a function whose progress is durable.

A workflow is declared here and started elsewhere: ``start()`` checks and encodes its arguments, and asks the
application to write one row. It never runs in the caller.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from edda_engine.context import SyncWorkflowContext, WorkflowContext
from edda_engine.core.codec import MAX_ID_LENGTH, check_size, is_name
from edda_engine.core.ports import NewInstance, current_place
from edda_engine.declarations import Declaration, Registry, source_of
from edda_engine.errors import ConfigurationError, InvalidInputError, PayloadError, UsageError
from edda_engine.settings import LONGEST_LOCK_SECONDS
from edda_engine.timers import LAST_YEAR

P = ParamSpec("P")
R = TypeVar("R")


class Unset:
    """The type of :data:`UNSET`."""

    def __repr__(self) -> str:
        return "<unset>"


UNSET = Unset()
"""Says that ``session=`` was not given: the application's own rule applies."""


@dataclass(frozen=True, slots=True)
class StartOptions:
    """Everything about a start that is not an argument of the workflow."""

    instance_id: str | None = None
    delay: float | timedelta | None = None
    start_at: datetime | None = None
    priority: int = 0
    lock_timeout_seconds: float | None = None
    session: Any = UNSET


class DeclaredWorkflow(Declaration, Generic[P, R]):
    """What every front door's ``Workflow`` is: a name, a function and its options."""

    kind = "workflow"

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        lock_timeout_seconds: float | None = None,
        event_handler: bool = False,
    ) -> None:
        super().__init__(function, name=name, reserved="lock_timeout_seconds")
        check_lock_timeout(lock_timeout_seconds, f"@workflow {self.name!r}")
        self.lock_timeout_seconds = lock_timeout_seconds
        self.event_handler = event_handler
        self.source, self.source_hash = source_of(function)

    @overload
    def __call__(self, ctx: SyncWorkflowContext, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, ctx: WorkflowContext, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, R]: ...
    def __call__(self, ctx: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run this workflow inline, as part of the one that *ctx* belongs to."""
        place = current_place.get()
        if not isinstance(ctx, (WorkflowContext, SyncWorkflowContext)) or place is None or not place.is_body:
            raise UsageError(
                f"Workflow {self.name!r} was called like a function outside a workflow body. To run it durably use"
                f" {self.__name__}.start(...); inside another workflow pass that workflow's ctx as the first argument."
            )
        return place.call_inline(self, args, kwargs)

    def prepare(
        self,
        options: StartOptions,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        service: str,
        default_lock_timeout: float,
        max_payload_bytes: int,
    ) -> NewInstance:
        """Check and encode a start; nothing is written yet.

        :raises InvalidInputError: the arguments do not fit the signature.
        :raises UsageError: called in a workflow body.
        """
        self.refuse_start_in_body()
        lock_timeout = kwargs.pop("lock_timeout_seconds", None) if "lock_timeout_seconds" in kwargs else None
        lock_timeout = lock_timeout if lock_timeout is not None else options.lock_timeout_seconds
        check_lock_timeout(lock_timeout, f"{self.name}.start()")
        input_json = self.encode_input(args, kwargs, max_payload_bytes=max_payload_bytes)
        return NewInstance(
            instance_id=_checked_id(options.instance_id) if options.instance_id is not None else uuid.uuid4().hex,
            workflow_name=self.name,
            service=service,
            input_json=input_json,
            source_hash=self.source_hash,
            # A driver may write a number of a class of its own, such as numpy's, in that class's words.
            lock_timeout_seconds=float(lock_timeout or self.lock_timeout_seconds or default_lock_timeout),
            priority=_checked_priority(options.priority),
            delay_seconds=_delay_seconds(options, self.name),
            start_at=options.start_at,
        )

    def refuse_start_in_body(self) -> None:
        """A body is replayed, and must not start anything.

        :raises UsageError: the caller is a workflow body.
        """
        place = current_place.get()
        if place is not None and place.is_body:
            raise UsageError(
                f"{self.name}.start() was called in the body of workflow {place.workflow_name!r}, which is replayed: it would"
                f" start again each time. Call it in an @activity, or run it inline: await {self.__name__}(ctx, ...)."
            )

    def encode_input(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, max_payload_bytes: int) -> str:
        """Check arguments against the signature and encode them.

        :raises InvalidInputError: they do not fit.
        """
        try:
            owner = f"workflow {self.name!r}"
            arguments = self.parameters.bind(*self.parameters.as_called(args, kwargs, owner=owner))
            input_json = self.parameters.round_trip(arguments, owner=owner)
            check_size(input_json, max_payload_bytes, owner=owner)
        except TypeError as error:
            raise InvalidInputError(self.name, str(error), signature=str(self.parameters.signature)) from error
        except PayloadError as error:
            problem = (
                f"its input {error.problem}" if error.path == "$" else f"the argument at {error.path} {error.problem}"
            )
            raise InvalidInputError(self.name, problem, signature=str(self.parameters.signature)) from error
        return input_json


class RunningApp(Protocol):
    """The asyncio application, as far as ``start()`` and ``send_event()`` need it."""

    async def start_with(
        self, workflow: DeclaredWorkflow[..., Any], options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        """Write the start."""
        ...

    async def send_event(
        self, event_type: str, source: str, data: Any, *, instance_id: str | None = None, session: Any = UNSET
    ) -> str:
        """Send an event."""
        ...


running_apps: list[RunningApp] = []
"""The asyncio applications that are initialized in this process."""


def the_app(call: str) -> RunningApp:
    """The one running asyncio application.

    :raises ConfigurationError: there is none, or it cannot be told which.
    """
    if len(running_apps) == 1:
        return running_apps[0]
    if not running_apps:
        raise ConfigurationError(
            f"{call} needs a running EddaApp in this process, and there is none."
            " Call `await app.initialize()` first; in Flask import from edda_wsgi."
        )
    raise ConfigurationError(
        f"{call} cannot tell which of the {len(running_apps)} running EddaApps is meant; use the method of that name of"
        " one of them, such as `await app.start(workflow, ...)`."
    )


def _started(
    workflow: DeclaredWorkflow[..., Any], options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Coroutine[Any, Any, str]:
    """What is awaited, if there can be somebody to await it; a forgotten one would start nothing, without a word."""
    workflow.refuse_start_in_body()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        if not running_apps or current_place.get() is not None:
            raise UsageError(
                f"{workflow.name}.start() was called where nothing can be awaited, so it would start nothing. In Flask import"
                " `workflow` from edda_wsgi, whose start() needs no await; in asyncio code write"
                f" `await {workflow.__name__}.start(...)`, in an activity of an `async def` one."
            ) from None

    async def start() -> str:
        return await the_app("start()").start_with(workflow, options, args, kwargs)

    coroutine: Any = start()
    coroutine.__qualname__ = f"{workflow.__qualname__}.start"  # by which Python names one that nobody awaits
    return coroutine  # type: ignore[no-any-return]


class Workflow(DeclaredWorkflow[P, R]):
    """A declared workflow of the asyncio front door."""

    @overload
    def start(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, str]: ...
    @overload
    def start(self, /, *args: Any, lock_timeout_seconds: float | None, **kwargs: Any) -> Coroutine[Any, Any, str]: ...
    def start(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, str]:
        """Enqueue a run and return its instance id; the workflow never runs in the caller.

        :param lock_timeout_seconds: Wins over the decorator's and the application's.
        :raises InvalidInputError: the arguments do not fit the signature; nothing was started.
        :raises UsageError: at once, where nothing can be awaited.
        """
        return _started(self, StartOptions(), args, kwargs)

    def options(
        self,
        *,
        instance_id: str | None = None,
        delay: float | timedelta | None = None,
        start_at: datetime | None = None,
        priority: int = 0,
        lock_timeout_seconds: float | None = None,
        session: Any = UNSET,
    ) -> Starting[P]:
        """Say more about a start: ``await wf.options(instance_id=..., delay=60).start(...)``.

        :param instance_id: The same id with the same workflow and input starts nothing twice.
        :param delay: Seconds (or a timedelta) until it is due.
        :param start_at: An aware datetime at which it is due.
        :param priority: Among due instances the higher one is claimed first.
        :param session: An ``AsyncSession`` whose transaction the start joins; ``None`` commits at once.
        """
        return Starting(self, StartOptions(instance_id, delay, start_at, priority, lock_timeout_seconds, session))


@dataclass(frozen=True, slots=True)
class Starting(Generic[P]):
    """A workflow with options, ready to be started."""

    workflow: DeclaredWorkflow[P, Any]
    chosen: StartOptions

    def start(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, str]:
        """Enqueue a run with these options and return its instance id."""
        return _started(self.workflow, self.chosen, args, kwargs)


workflows: Registry[DeclaredWorkflow[..., Any]] = Registry("workflow")


@overload
def workflow(function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Workflow[P, R]: ...
@overload
def workflow(function: Callable[Concatenate[Any, P], R], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *, name: str | None = None, lock_timeout_seconds: float | None = None, event_handler: bool = False
) -> _Decorator: ...
def workflow(function: Any = None, /, **options: Any) -> Any:
    """Declare a workflow: ``@workflow``, or ``@workflow(lock_timeout_seconds=..., event_handler=..., name=...)``.

    :param lock_timeout_seconds: For all instances of this workflow; ``start()`` may override it.
    :param event_handler: In Flask, an event of this name that comes over HTTP starts it, with its data as arguments.
    :param name: The name in the database, instead of the function's.
    :raises DuplicateNameError: another function has this name.
    """

    def declare(target: Callable[..., Any]) -> Workflow[..., Any]:
        declared: Workflow[..., Any] = Workflow(target, **options)
        workflows.add(declared)
        return declared

    return declare if function is None else declare(function)


class _Decorator:
    """The type of ``workflow(...)`` with options, for type checkers only."""

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Awaitable[R]], /) -> Workflow[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Workflow[P, R]: ...
    def __call__(self, function: Any, /) -> Any: ...


def check_is_workflow(given: object) -> None:
    """What is started must have been declared.

    :raises UsageError: it is no workflow.
    """
    if not isinstance(given, DeclaredWorkflow):
        raise UsageError(
            f"start() takes a function declared with @workflow, not {given!r}; by name use `flask edda start`."
        )


def refuse_in_body(call: str) -> None:
    """Some requests have effects, and a body is replayed.

    :raises UsageError: called in a workflow body.
    """
    place = current_place.get()
    if place is not None and place.is_body:
        raise UsageError(
            f"{call} was called in the body of workflow {place.workflow_name!r}, which is replayed: it would act each time."
            " Call it in an @activity."
        )


def check_lock_timeout(seconds: float | None, owner: str) -> None:
    """A lock timeout is a positive number of seconds.

    :raises ConfigurationError: it is not.
    """
    if seconds is None:
        return
    # One that no timestamp can hold would make every claim fail, and with it all instances of the service.
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= LONGEST_LOCK_SECONDS:
        raise ConfigurationError(
            f"{owner}: lock_timeout_seconds must be a number of seconds above 0, at most a year"
            f" ({LONGEST_LOCK_SECONDS}), not {seconds!r:.80}."
        )


def _checked_id(instance_id: str) -> str:
    if not is_name(instance_id):
        raise UsageError(
            f"instance_id must be a text of 1 to {MAX_ID_LENGTH} characters, without control characters or surrogates,"
            f" not {instance_id!r:.80}."
        )
    return instance_id


def _checked_priority(priority: int) -> int:
    if isinstance(priority, bool) or not isinstance(priority, int) or not -32768 <= priority <= 32767:
        raise UsageError(
            f"priority must be an integer from -32768 to 32767, not {priority!r}; 0 is normal, higher goes first."
        )
    return priority


def _delay_seconds(options: StartOptions, name: str) -> float | None:
    if options.delay is not None and options.start_at is not None:
        raise UsageError(f"{name}.options(): give delay= or start_at=, not both.")
    if options.start_at is not None:
        if options.start_at.tzinfo is None:
            raise ValueError(
                f"{name}.options(start_at={options.start_at!r}): a time without a zone is ambiguous; use"
                " an aware one, such as datetime.now(timezone.utc) + timedelta(hours=1)."
            )
        if not 1 < options.start_at.year <= LAST_YEAR:
            raise UsageError(
                f"{name}.options(start_at={options.start_at!r}): a time up to the year {LAST_YEAR} is needed."
            )
        return None
    if options.delay is None:
        return None
    seconds = options.delay.total_seconds() if isinstance(options.delay, timedelta) else options.delay
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e10:
        raise UsageError(f"{name}.options(delay={options.delay!r:.80}): a delay is a number of seconds, 0 or more.")
    return float(seconds)
