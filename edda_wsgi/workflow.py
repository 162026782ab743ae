"""``@workflow`` for Flask: the same declaration, and a ``start()`` that is synchronous."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from flask import current_app, has_app_context

from edda_engine.core.ports import current_place
from edda_engine.errors import ConfigurationError
from edda_engine.runtime.attempts import Attempt
from edda_engine.workflow import UNSET, DeclaredWorkflow, StartOptions, workflows
from edda_wsgi.application import Application, everywhere

P = ParamSpec("P")
R = TypeVar("R")


class Workflow(DeclaredWorkflow[P, R]):
    """A declared workflow of a Flask application."""

    @overload
    def start(self, /, *args: P.args, **kwargs: P.kwargs) -> str: ...
    @overload
    def start(self, /, *args: Any, lock_timeout_seconds: float | None, **kwargs: Any) -> str: ...
    def start(self, /, *args: Any, **kwargs: Any) -> str:
        """Enqueue a run and return its instance id; the workflow never runs in the caller.

        In a view this is like ``db.session.add(...)``: saved by the view's own commit, gone with its rollback. In a
        sync activity it is part of the step. Without a session to join it is committed at once.

        :param lock_timeout_seconds: Wins over the decorator's and the application's.
        :raises InvalidInputError: the arguments do not fit the signature; nothing was started.
        """
        return current_application().start(self, StartOptions(), args, kwargs)

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
        """Say more about a start: ``wf.options(instance_id=..., delay=60).start(...)``.

        :param instance_id: The same id with the same workflow and input starts nothing twice.
        :param delay: Seconds (or a timedelta) until it is due.
        :param start_at: An aware datetime at which it is due.
        :param priority: Among due instances the higher one is claimed first.
        :param session: The session whose transaction the start joins; ``None`` commits at once.
        """
        return Starting(self, StartOptions(instance_id, delay, start_at, priority, lock_timeout_seconds, session))


@dataclass(frozen=True, slots=True)
class Starting(Generic[P]):
    """A workflow with options, ready to be started."""

    workflow: DeclaredWorkflow[P, Any]
    chosen: StartOptions

    def start(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Enqueue a run with these options and return its instance id."""
        return current_application().start(self.workflow, self.chosen, args, kwargs)


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


def current_application() -> Application:
    """The application that the caller is in.

    :raises ConfigurationError: there is none, or it cannot be told which.
    """
    place = current_place.get()
    if isinstance(place, Attempt) and isinstance(place.application, Application):
        return place.application
    if has_app_context():
        found = current_app.extensions.get("edda")
        if isinstance(found, Application):
            return found
        raise ConfigurationError(
            f"The application {current_app.name!r} has no edda. Call edda.init_app(app, db=db) in its factory."
        )
    known = list(everywhere)
    if len(known) == 1:
        return known[0]
    if not known:
        raise ConfigurationError(
            "No application has edda yet. Make one with EddaFlask(app), or call edda.init_app(app)."
        )
    raise ConfigurationError(
        f"{len(known)} applications have edda; say which one is meant with `with app.app_context():`."
    )
