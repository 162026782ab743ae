"""The ready-made publishers, and how one is found by its dotted path.

A publisher of one's own is a class with the two methods of :class:`Publisher`; the options of the setting
``OUTBOX`` are the keyword arguments of its constructor, in lower case.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from edda_engine.errors import ConfigurationError, PublishLaterError
from edda_engine.outbox.outgoing import OutgoingEvent, Publisher
from edda_engine.settings import OutboxSettings
from edda_engine.threads import DaemonThreads

if TYPE_CHECKING:
    from edda_engine.outbox.http_publisher import HttpPublisher as HttpPublisher

__all__ = ["CallablePublisher", "HttpPublisher", "OutgoingEvent", "Publisher", "load_publisher"]

_THREADS = 16


def __getattr__(name: str) -> Any:
    """``HttpPublisher`` is imported by those who ask for it: it needs an extra, and takes a while to import."""
    if name != "HttpPublisher":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module("edda_engine.outbox.http_publisher").HttpPublisher
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] not in ("httpx", "cloudevents"):
            raise
        return partial(_refuse, missing.name)


def _refuse(missing: str, *_: Any, **__: Any) -> NoReturn:
    raise ConfigurationError(
        f"Publishing over HTTP needs {missing!r}, which is not installed. Install edda-wsgi[cloudevents]."
    )


class CallablePublisher:
    """Give each event to a Python function, plain or ``async``.

    A plain function is called on a thread, in a Flask application inside an app context. One that does not return
    in time may still do its work: its event is given to it again later.

    :param function: The function, or its dotted path. It takes one :class:`OutgoingEvent`.
    :param timeout_seconds: How long one call may take.
    """

    def __init__(self, function: Callable[[OutgoingEvent], Any] | str, *, timeout_seconds: float = 30.0) -> None:
        found = _load(function, "FUNCTION") if isinstance(function, str) else function
        if not callable(found):
            raise ConfigurationError(f"FUNCTION of CallablePublisher is a function or its dotted path, not {found!r}.")
        self._function, self._timeout_seconds = found, timeout_seconds
        self._is_async = inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(
            getattr(found, "__call__", None)  # noqa: B004  an object whose call is a coroutine function
        )
        self._pool: DaemonThreads | None = None
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Entered around each call of a plain function, on its thread."""

    async def publish(self, event: OutgoingEvent) -> None:
        """Call the function.

        :raises PublishLaterError: it did not return in time.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await (self._function(event) if self._is_async else self._call_on_thread(event))
        except TimeoutError as error:
            raise PublishLaterError(f"{_name_of(self._function)} did not return in time: {error}") from error

    async def close(self) -> None:
        """End the threads that have nothing to do."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    async def _call_on_thread(self, event: OutgoingEvent) -> None:
        if self._pool is None:
            self._pool = DaemonThreads(_THREADS, name="edda-publisher")
        await asyncio.get_running_loop().run_in_executor(self._pool, contextvars.Context().run, self._call, event)

    def _call(self, event: OutgoingEvent) -> None:
        with self.around():
            self._function(event)


def load_publisher(
    settings: OutboxSettings, *, around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Publisher:
    """Make the publisher that the setting ``OUTBOX`` names.

    :param around: Entered around plain functions of a :class:`CallablePublisher`.
    :raises ConfigurationError: it cannot be found, or does not take these options.
    """
    backend = _load(settings.backend, "OUTBOX['BACKEND']")
    try:
        publisher = backend(**settings.options)
    except TypeError as error:
        options = ", ".join(name.upper() for name in settings.options) or "none"
        raise ConfigurationError(
            f"OUTBOX names {settings.backend!r}, which cannot be made with the options given ({options}): {error}."
        ) from error
    for method in ("publish", "close"):
        if not inspect.iscoroutinefunction(getattr(publisher, method, None)):
            raise ConfigurationError(
                f"OUTBOX names {settings.backend!r}, which has no `async def {method}()`: it is no publisher."
                " See edda_engine.outbox.publishers.Publisher; for a plain function use CallablePublisher."
            )
    if isinstance(publisher, CallablePublisher):
        publisher.around = around
    made: Publisher = publisher
    return made


def _load(path: str, owner: str) -> Any:
    module_name, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{owner} is {path!r}, which cannot be loaded: {error}") from error


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
