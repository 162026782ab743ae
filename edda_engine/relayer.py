"""``OutboxRelayer``: publishes the events of the outbox, without Flask and without workflows.

For a process beside the application that does nothing else, for a job that publishes what is there and ends, and
for tests. Engines whose settings name an outbox have a relay of their own; all of them share the rows.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any

from edda_engine.errors import ConfigurationError, DatabaseUnavailableError, UsageError
from edda_engine.hooks import HooksBase, WorkflowHooks
from edda_engine.outbox import publishers
from edda_engine.outbox.outgoing import OutgoingEvent, Publisher
from edda_engine.outbox.publishers import CallablePublisher
from edda_engine.runtime.probes import Probe, no_probe
from edda_engine.runtime.relay import LOCK_SECONDS, Relay
from edda_engine.storage import migrate
from edda_engine.storage.database import Database, is_outage

_PAUSE_SECONDS = 0.5


class OutboxRelayer:
    """Publish the events of a database's outbox.

    ::

        async with OutboxRelayer("postgresql://...", broker_url="https://broker.example/events") as relayer:
            await relayer.run()

    :param db_url: The database of the application.
    :param publisher: Who takes the events: a :class:`~edda_engine.outbox.publishers.Publisher`, or a function.
    :param broker_url: Instead of a publisher: where to post them as CloudEvents.
    :param hooks: Its ``on_event_sent`` is told of each published event.
    :param poll_interval_seconds: How often it looks for due events.
    :param concurrency: So many publications at a time.
    :param retention_days: How long published events are kept.
    :param lock_seconds: After so many seconds without a sign of life another relay takes its events over.
    :param auto_migrate: Create and upgrade the ``edda_`` tables.
    """

    def __init__(
        self,
        db_url: str,
        publisher: Publisher | Callable[[OutgoingEvent], Any] | None = None,
        *,
        broker_url: str | None = None,
        hooks: WorkflowHooks | None = None,
        poll_interval_seconds: float = 1.0,
        concurrency: int = 16,
        retention_days: float = 7.0,
        lock_seconds: float = LOCK_SECONDS,
        auto_migrate: bool = True,
        probe: Probe = no_probe,
    ) -> None:
        for name, value in (("poll_interval_seconds", poll_interval_seconds), ("lock_seconds", lock_seconds)):
            if not 0 < value < float("inf"):
                raise ConfigurationError(f"OutboxRelayer({name}={value!r}): a number of seconds above 0 is needed.")
        if concurrency < 1 or retention_days < 0:
            raise ConfigurationError(
                f"OutboxRelayer(concurrency={concurrency!r}, retention_days={retention_days!r}): the first is at least 1,"
                " the second at least 0."
            )
        self._publisher = _publisher(publisher, broker_url)
        self._database = Database.from_url(db_url)
        self._hooks = hooks or HooksBase()
        self._poll_interval, self._concurrency = poll_interval_seconds, concurrency
        self._retention_days, self._lock_seconds = retention_days, lock_seconds
        self._auto_migrate, self._probe = auto_migrate, probe
        self._relay: Relay | None = None
        self._stopping = asyncio.Event()

    async def open(self, *, timeout: float = 30.0) -> None:
        """Make or upgrade the tables and be ready; ``async with`` does it.

        :param timeout: Seconds to wait for a database that does not answer yet.
        :raises DatabaseUnavailableError: it did not answer in time.
        """
        if self._relay is not None:
            return
        if self._auto_migrate:
            await self._migrate(timeout)
        self._stopping.clear()
        self._relay = Relay(
            relay_id=f"relayer-{uuid.uuid4().hex}",
            database=self._database,
            publisher=self._publisher,
            hooks=self._hooks,
            poll_interval=lambda: self._poll_interval,
            concurrency=self._concurrency,
            retention_days=self._retention_days,
            lock_seconds=self._lock_seconds,
            probe=self._probe,
        )
        self._relay.open()

    async def run(self) -> None:
        """Publish events, and delete what was published long ago, until :meth:`stop` is called or this is cancelled."""
        relay = self._opened()
        relay.start()
        try:
            await self._stopping.wait()
        finally:
            await relay.rest()

    async def publish_due(self) -> int:
        """Publish what is due now, and return how many events were taken. Failed ones are due again later.

        :raises DatabaseUnavailableError: the database does not answer.
        """
        try:
            return await self._opened().publish_due()
        except Exception as error:
            if not is_outage(error):
                raise
            raise DatabaseUnavailableError(
                f"The database did not answer ({str(error).splitlines()[0]}). Try again when it does."
            ) from error

    async def prune(self) -> None:
        """Delete now what was published longer ago than the retention; :meth:`run` does it by itself."""
        await self._opened().prune()

    def stop(self) -> None:
        """Let :meth:`run` return; call it on the loop, from a signal handler for example."""
        self._stopping.set()

    async def close(self, *, timeout: float = 20.0) -> None:
        """Let publications under way end, hand the rest back, close all connections; ``async with`` does it.

        :param timeout: Seconds for publications under way.
        """
        relay, self._relay = self._relay, None
        self._stopping.set()
        if relay is not None:
            await relay.stop(timeout)
        self._database.close()

    async def __aenter__(self) -> OutboxRelayer:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _opened(self) -> Relay:
        if self._relay is None:
            raise UsageError("This OutboxRelayer is not open. Use `async with`, or call `await relayer.open()` first.")
        return self._relay

    async def _migrate(self, timeout: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            try:
                await asyncio.to_thread(migrate.upgrade, self._database)
                return
            except Exception as error:
                if not is_outage(error):
                    raise
                if asyncio.get_running_loop().time() + _PAUSE_SECONDS > deadline:
                    raise DatabaseUnavailableError(
                        f"The database did not answer within {timeout:g} s. Check db_url and the server, then try again."
                    ) from error
            await asyncio.sleep(_PAUSE_SECONDS)


def _publisher(given: Publisher | Callable[[OutgoingEvent], Any] | None, broker_url: str | None) -> Publisher:
    if (given is None) == (broker_url is None):
        raise ConfigurationError("OutboxRelayer takes a publisher or a broker_url; exactly one of them is needed.")
    if broker_url is not None:
        return publishers.HttpPublisher(broker_url)
    if not hasattr(given, "publish"):
        return CallablePublisher(given)  # type: ignore[arg-type]
    publisher: Publisher = given  # type: ignore[assignment]
    return publisher
