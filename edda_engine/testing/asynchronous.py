"""An :class:`~edda_engine.app.EddaApp` on the bench, on an event loop of its own beside the test's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from edda_engine.app import EddaApp
from edda_engine.client import Client
from edda_engine.runtime.conditions import Conditions
from edda_engine.runtime.engine import Engine
from edda_engine.runtime.environment import Environment, PlainEnvironment
from edda_engine.storage.database import Database
from edda_engine.testing.runner import TIMEOUT_SECONDS, Runner

T = TypeVar("T")


class WorkflowRunner(Runner):
    """Runs the workflows of an ``EddaApp`` in the process of a test; its calls are plain ones, not coroutines.

    ::

        with WorkflowRunner(EddaApp("users", "sqlite:///test.db")) as runner:
            assert runner.run(register, user_id=1) == "registered"

    :param app: An application that is not initialized, on a database that no other test uses.
    :param timeout: Seconds, by the real clock, that one call may take.
    """

    def __init__(self, app: EddaApp, *, timeout: float = TIMEOUT_SECONDS) -> None:
        super().__init__(AppBench(app), timeout=timeout)


class AppBench:
    """See ``edda_engine.testing.worker.Bench``."""

    def __init__(self, app: EddaApp) -> None:
        self._app = app
        self._thread: _LoopThread | None = None

    @property
    def conditions(self) -> Conditions:
        """What its next engine runs under."""
        return self._app.conditions

    @conditions.setter
    def conditions(self, value: Conditions) -> None:
        self._app.conditions = value

    @property
    def database(self) -> Database:
        """Where its tables are."""
        return self._app._database

    @property
    def client(self) -> Client:
        """Questions and requests."""
        return self._app._client

    @property
    def service_name(self) -> str:
        """Whose instances its worker runs."""
        return self._app.settings.service_name

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload."""
        return self._app.settings.max_payload_bytes

    @property
    def engine(self) -> Engine | None:
        """Its engine, if it has one now."""
        return self._app._engine

    @property
    def has_relay(self) -> bool:
        """Whether its worker publishes the events of the outbox."""
        return self._app.settings.outbox is not None

    def refuse_unless_under_test(self) -> None:
        """Nothing tells."""

    def environment(self) -> Environment:
        """Nothing surrounds user code."""
        return PlainEnvironment()

    def start_worker(self) -> None:
        """Initialize the application, on a loop thread of its own."""
        self._thread = _LoopThread(self._app.conditions.new_event_loop)
        self._thread.run(self._app.initialize())

    def stop_worker(self, timeout: float) -> None:
        """Shut it down."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.run(self._app.shutdown(timeout))
            thread.stop()

    def save_session(self) -> None:
        """A test of such an application has no session that it could know of."""

    def wake(self) -> None:
        """Something was sent."""
        self._app._wake_everybody()

    def let_go(self) -> None:
        """Close connections that nobody uses."""
        self.database.close()


class _LoopThread:
    def __init__(self, new_event_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._work, name="edda-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT_SECONDS)

    def stop(self) -> None:
        """End the loop and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _work(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        # What they raise concerns nobody: whatever was under way goes on with another worker.
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
