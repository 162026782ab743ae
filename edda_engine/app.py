"""``EddaApp``: the asyncio front door."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from edda_engine.channels import channel_message, direct_message
from edda_engine.client import Client, Instance, Page, cancel_with, retry_with, send_with
from edda_engine.core.events import HistoryEvent
from edda_engine.core.ports import DIRECT_CHANNEL, NewInstance, OutgoingMessage, current_place
from edda_engine.core.retrying import RetryPolicy
from edda_engine.core.status import Status
from edda_engine.errors import ConfigurationError, DatabaseUnavailableError
from edda_engine.events import event_message
from edda_engine.hooks import WorkflowHooks
from edda_engine.joins import write_in
from edda_engine.outbox.transactional import outbox_event
from edda_engine.results import ResultWait
from edda_engine.runtime.attempts import Attempt
from edda_engine.runtime.conditions import Conditions
from edda_engine.runtime.engine import Engine
from edda_engine.runtime.handing import resolve, tell
from edda_engine.runtime.notifier import Notifier
from edda_engine.runtime.probes import Probe, no_probe
from edda_engine.settings import engine_settings, outbox_to
from edda_engine.storage.database import Database
from edda_engine.storage.outbox import insert_events
from edda_engine.storage.starts import Started, insert_instance
from edda_engine.workflow import UNSET, DeclaredWorkflow, StartOptions, check_is_workflow, refuse_in_body, running_apps

_log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


class EddaApp:
    """Durable workflows in an asyncio application.

    ::

        async with EddaApp(service_name="users", db_url="sqlite:///users.db") as app:
            instance_id = await register.start(user_id=1)
            print(await app.result(instance_id))

    :param service_name: Only workers of the same service run its instances.
    :param db_url: ``sqlite:///file.db`` or ``postgresql://...``.
    :param default_retry_policy: For activities without one of their own.
    :param outbox_enabled: Publish the events of the outbox to *broker_url*.
    :param broker_url: Where to post them as CloudEvents. For another publisher give the option ``outbox`` instead.
    :param hooks: Told what happens; see :class:`~edda_engine.hooks.HooksBase`.
    :param options: Any other setting of :class:`~edda_engine.settings.EngineSettings`.
    """

    def __init__(
        self,
        service_name: str = "edda",
        db_url: str = "sqlite:///edda.db",
        default_retry_policy: RetryPolicy | None = None,
        *,
        outbox_enabled: bool = False,
        broker_url: str | None = None,
        hooks: WorkflowHooks | None = None,
        probe: Probe = no_probe,
        **options: Any,
    ) -> None:
        if outbox_enabled:
            options["outbox"] = outbox_to(options.get("outbox"), broker_url)
        self.settings = engine_settings(service_name=service_name, default_retry_policy=default_retry_policy, **options)
        self._database = Database.from_url(db_url)
        self._client = Client(self._database, self.settings, probe=probe)
        self._notifier = Notifier(lambda: self._database)
        self.conditions = Conditions(probe=probe)
        """What the engine runs under; how its loop is made does not matter here."""
        self._hooks = hooks
        self._engine: Engine | None = None

    async def initialize(self, *, timeout: float = 30.0) -> None:
        """Upgrade the tables and begin to work; interrupted instances go on by themselves.

        :param timeout: Seconds to wait for a database that does not answer yet.
        :raises DatabaseUnavailableError: it did not answer in time.
        """
        if self._engine is not None:
            return
        engine = Engine(
            self._database,
            self.settings,
            hooks=self._hooks,
            application=self,
            probe=self.conditions.probe,
            now=self.conditions.now,
            notifier=self._notifier,
        )
        try:
            async with asyncio.timeout(timeout):
                await engine.start()
        except TimeoutError as error:
            await engine.stop(0)
            raise DatabaseUnavailableError(
                f"The database did not answer within {timeout:g} s. Check db_url and the server, then initialize() again."
            ) from error
        except BaseException:
            await engine.stop(0)
            raise
        self._engine = engine
        running_apps.append(self)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let running activities finish, hand everything else back, close all connections.

        :param timeout: Seconds for running activities; the setting ``shutdown_seconds`` if not given.
        """
        engine, self._engine = self._engine, None
        if self in running_apps:
            running_apps.remove(self)
        if engine is not None:
            await engine.stop(timeout)
        else:
            await asyncio.to_thread(self._notifier.close)

    async def __aenter__(self) -> EddaApp:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown()

    @property
    def worker_id(self) -> str:
        """The id of this process as a worker."""
        return self._running().worker_id

    @overload
    async def start(self, workflow: DeclaredWorkflow[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> str: ...
    @overload
    async def start(
        self, workflow: DeclaredWorkflow[..., Any], /, *args: Any, lock_timeout_seconds: float | None, **kwargs: Any
    ) -> str: ...
    async def start(self, workflow: DeclaredWorkflow[..., Any], /, *args: Any, **kwargs: Any) -> str:
        """Enqueue a run of *workflow* and return its instance id; the same as ``await workflow.start(...)``."""
        return await self.start_with(workflow, StartOptions(), args, kwargs)

    async def start_with(
        self, workflow: DeclaredWorkflow[..., Any], options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        """Enqueue a run with options.

        Inside an activity the start is part of its step; ``session=`` gives another transaction to join.
        """
        check_is_workflow(workflow)
        new = self._client.prepare(workflow, options, args, kwargs)
        place = current_place.get()
        if options.session is UNSET and isinstance(place, Attempt):
            place.start(new)
            place.register_post_commit(partial(self._wake, for_start=True))
        elif options.session is UNSET or options.session is None:
            await self._start_alone(new, has_made_id=options.instance_id is None)
        else:
            await write_in(
                options.session, lambda conn: insert_instance(conn, new), partial(self._wake, for_start=True)
            )
        return new.instance_id

    async def _start_alone(self, new: NewInstance, *, has_made_id: bool) -> None:
        loop = asyncio.get_running_loop()
        written: asyncio.Future[Started] = loop.create_future()
        told = partial(tell, loop, partial(resolve, written))
        if self._engine is None or not has_made_id or not self._engine.write_start(new, told):
            await self._in_thread(lambda: self._client.write_start(new))
            self._wake(for_start=True)
            return
        try:
            await written
        except DBAPIError as error:
            raise self._client.clear(error) from error

    async def send_event(
        self, event_type: str, source: str, data: Any, *, instance_id: str | None = None, session: Any = UNSET
    ) -> str:
        """Send an event to the workflows that wait for it (see :func:`edda_engine.events.send_event`).

        :returns: The id of what was sent.
        """
        limit = self.settings.max_payload_bytes
        message = event_message(event_type, source, data, instance_id=instance_id, max_payload_bytes=limit)
        return await self._send("send_event()", message, session)

    async def send_event_transactional(
        self,
        event_type: str,
        source: str,
        data: Any,
        content_type: str = "application/json",
        *,
        subject: str | None = None,
        ordering_key: str | None = None,
        session: Any = UNSET,
    ) -> str:
        """Send an event to other services, by the outbox: at once, in an activity with its step, or with *session*.

        :param session: An ``AsyncSession`` or ``AsyncConnection`` whose transaction the event belongs to.
        :returns: The event's id.
        """
        refuse_in_body("send_event_transactional()")
        made = outbox_event(
            event_type, source, data, content_type, subject=subject, ordering_key=ordering_key,
            owner=f"event {event_type!r}", max_payload_bytes=self.settings.max_payload_bytes,
        )  # fmt: skip
        place = current_place.get()
        if session is UNSET and isinstance(place, Attempt):
            place.buffer_outbox(made)
        elif session is UNSET or session is None:
            await self._in_thread(lambda: self._client.write_outbox_event(made))
            self._wake_relay()
        else:
            await write_in(session, lambda conn: insert_events(conn, [(None, None, made)]), self._wake_relay)
        return made.event_id

    async def publish(
        self, channel: str, data: Any, metadata: Mapping[str, Any] | None = None, *, session: Any = UNSET
    ) -> str:
        """Send a message to a channel's subscribers; returns its id."""
        limit = self.settings.max_payload_bytes
        message = channel_message(channel, data, metadata, max_payload_bytes=limit)
        return await self._send("publish()", message, session)

    async def send_to(
        self,
        instance_id: str,
        data: Any,
        channel: str = DIRECT_CHANNEL,
        metadata: Mapping[str, Any] | None = None,
        *,
        session: Any = UNSET,
    ) -> str:
        """Send a message to one instance, even if it asks only later; returns its id.

        :raises InstanceNotFoundError: there is no such instance.
        """
        limit = self.settings.max_payload_bytes
        message = direct_message(instance_id, data, channel, metadata, max_payload_bytes=limit)
        return await self._send("send_to()", message, session)

    async def _send(self, call: str, message: OutgoingMessage, session: Any) -> str:
        refuse_in_body(call)
        place = current_place.get()
        if session is UNSET and isinstance(place, Attempt):
            place.buffer_message(message)
        elif session is UNSET or session is None:
            await self._in_thread(lambda: self._client.write_message(message))
            self._wake_everybody()
        else:
            await write_in(session, lambda conn: send_with(conn, message), self._wake_everybody)
        return message.message_id

    async def result(self, instance_id: str, timeout: float | None = None) -> Any:
        """Wait for a workflow to end and return what it returned.

        :param timeout: Seconds to wait; ``None`` waits for ever, ``0`` only looks.
        :raises ResultTimeoutError: the instance has not ended in time; it goes on running.
        :raises WorkflowFailedError: it failed; ``__cause__`` is the original exception.
        :raises WorkflowCancelledError: it was cancelled.
        :raises InstanceNotFoundError: there is no such instance.
        """
        refuse_in_body("result()")
        ended = asyncio.Event()
        engine = self._running()
        wait = ResultWait(
            self._client, instance_id, timeout=timeout, is_running_here=engine.is_running_here, wake=ended.set
        )
        with engine.completions.watching(instance_id, wait.has_ended):
            while True:
                found = await self._in_thread(wait.look) if wait.needs_database else wait.look()
                if found is not None:
                    return found.value
                pause = wait.seconds()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await ended.wait()
                ended.clear()

    async def get(self, instance_id: str) -> Instance:
        """One instance, as the database shows it."""
        return await self._in_thread(lambda: self._client.get(instance_id))

    async def find_instances(
        self,
        *,
        status: Status | str | Collection[Status | str] | None = None,
        workflow_name: str | None = None,
        instance_id: str | None = None,
        input_filters: Mapping[str, Any] | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        limit: int = 50,
        page_token: str | None = None,
    ) -> Page:
        """Committed instances of this service that match everything given, newest first.

        What can be asked is told at :meth:`edda_engine.client.Client.find_instances`.
        """
        return await self._in_thread(
            lambda: self._client.find_instances(
                status=status, workflow_name=workflow_name, instance_id=instance_id, input_filters=input_filters,
                started_after=started_after, started_before=started_before, limit=limit, page_token=page_token,
            )
        )  # fmt: skip

    async def history(self, instance_id: str) -> list[HistoryEvent]:
        """The recorded steps of an instance, in order."""
        return await self._in_thread(lambda: self._client.history(instance_id))

    async def cancel(self, instance_id: str, reason: str | None = None, *, session: Any = UNSET) -> bool:
        """Cancel an instance: a waiting one at once, a running one at its next step; in an activity with its step.

        :param session: An ``AsyncSession`` or ``AsyncConnection`` whose transaction it belongs to.
        :returns: False if it has ended already.
        :raises InstanceNotFoundError: there is none of that id.
        """
        return await self._request(
            "cancel()",
            lambda conn: cancel_with(conn, instance_id, reason),
            alone=lambda: self._client.cancel(instance_id, reason),
            session=session,
            then=lambda: self._was_cancelled(instance_id),
        )

    async def retry(self, instance_id: str, *, session: Any = UNSET) -> bool:
        """Take up a failed or blocked instance again; False if it needs no such help. It joins as :meth:`cancel` does."""
        return await self._request(
            "retry()",
            lambda conn: retry_with(conn, instance_id),
            alone=lambda: self._client.retry(instance_id),
            session=session,
            then=self._wake,
        )

    async def _request(
        self,
        call: str,
        joined: Callable[[Connection], bool],
        *,
        alone: Callable[[], bool],
        session: Any,
        then: Callable[[], None],
    ) -> bool:
        refuse_in_body(call)
        place = current_place.get()
        if session is UNSET and isinstance(place, Attempt):
            place.register_post_commit(then)
            if not place.is_async:
                return joined(place.transaction.connection())
            return await (await place.session.connection()).run_sync(joined)  # type: ignore[no-any-return]
        if session is not UNSET and session is not None:
            return await write_in(session, joined, then)
        done = await self._in_thread(alone)
        then()
        return done

    def _was_cancelled(self, instance_id: str) -> None:
        if self._engine is not None:
            self._engine.ask_to_stop(instance_id)
            self._engine.completions.announce(instance_id)

    def _running(self) -> Engine:
        if self._engine is None:
            raise ConfigurationError(
                "This EddaApp is not running. Call `await app.initialize()` first, or use `async with`."
            )
        return self._engine

    def _wake(self, *, for_start: bool = False) -> None:
        """Look for work here, or else in other processes of this service."""
        if self._engine is None or not self._engine.wake(for_start=for_start):
            self._notifier.notify(self.settings.service_name)

    def _wake_everybody(self) -> None:
        """The same, or in processes of any service: nobody knows yet for whom a message is."""
        if self._engine is None or not self._engine.wake():
            self._notifier.notify("")

    def _wake_relay(self) -> None:
        if self._engine is None or not self._engine.wake_relay():
            self._notifier.notify_relays()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)
