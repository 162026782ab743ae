"""One Flask application's share of edda: its settings, its database, and the engine of this process.

Nothing starts before it is needed: making one opens no connection and starts no thread. What was made before a
fork is left alone after it.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from flask import Flask, has_app_context
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from edda_engine.bells import Bell, Reply
from edda_engine.client import Client, cancel_with, retry_with
from edda_engine.core.ports import NewInstance, current_place
from edda_engine.errors import DatabaseUnavailableError
from edda_engine.results import ResultWait
from edda_engine.runtime.attempts import Attempt
from edda_engine.runtime.completions import Completions
from edda_engine.runtime.conditions import Conditions
from edda_engine.runtime.engine import Engine
from edda_engine.runtime.notifier import Notifier
from edda_engine.runtime.probes import Probe
from edda_engine.storage.database import Database
from edda_engine.storage.starts import Started, insert_instance
from edda_engine.workflow import UNSET, DeclaredWorkflow, StartOptions, check_is_workflow, refuse_in_body
from edda_wsgi import own_database, starts
from edda_wsgi.beginnings import bury, refuse_gevent, report
from edda_wsgi.environment import FlaskEnvironment, write_in_step
from edda_wsgi.joining import joining, refuse_to_wait_for_itself
from edda_wsgi.loading import import_modules, load_hooks
from edda_wsgi.loop_thread import LoopThread
from edda_wsgi.own_database import Found
from edda_wsgi.session import SessionSource
from edda_wsgi.settings import Effective
from edda_wsgi.tables import Tables

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0

everywhere: weakref.WeakSet[Application] = weakref.WeakSet()
"""Every application of this process that has edda."""


class Application:
    """What ``app.extensions["edda"]`` is."""

    def __init__(self, app: Flask, effective: Effective, source: SessionSource | None, *, probe: Probe) -> None:
        self.settings, self.sources = effective.settings, effective.sources
        self._app = app
        self._source = source
        self.conditions = Conditions(probe=probe)
        self._lock = threading.Lock()
        self._pid = self._made_by_pid = os.getpid()
        self._found: Found | None = None
        self._notifier = Notifier(lambda: self.database)
        self.tables = Tables(
            lambda: self.database, may_make=self.settings.auto_migrate, keeps_service=lambda: self._starting is not None
        )
        self._loop_thread: LoopThread | None = None
        self._engine: Engine | None = None
        self._starting: Future[None] | None = None
        self._stops = 0  # so often was it asked to stop
        self.completions = Completions()
        everywhere.add(self)

    # The database.

    @property
    def database(self) -> Database:
        """The database of this application, as this process uses it."""
        return self._find().database

    def _find(self) -> Found:
        self._after_fork()
        if self._found is None:
            with self._lock:
                if self._found is None:
                    url, is_forked = self.settings.database_url, os.getpid() != self._made_by_pid
                    self._found = own_database.find(self._app, self._source, url, is_forked=is_forked)
        return self._found

    @property
    def client(self) -> Client:
        """Questions and requests about instances."""
        return Client(self.database, self.settings, probe=self.conditions.probe)

    @property
    def session_source(self) -> SessionSource | None:
        """Where the application's sessions come from, if they are on this very database."""
        return self._source if self._find().is_shared else None

    @property
    def notes(self) -> list[str]:
        """What an operator should know about how this application is set up."""
        return [] if (note := self._find().note) is None else [note]

    # Starting and cancelling.

    def start(
        self, workflow: DeclaredWorkflow[..., Any], options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        """Write a start where it belongs: an activity's transaction, the request's session, or one of its own."""
        check_is_workflow(workflow)
        new = self.client.prepare(workflow, options, args, kwargs)
        place = current_place.get()
        if options.session is UNSET and isinstance(place, Attempt):
            write_in_step(place, lambda conn: insert_instance(conn, new))
            place.register_post_commit(partial(self.wake, for_start=True))
            return new.instance_id
        self.write(
            f"{workflow.name}.start()",
            lambda conn: insert_instance(conn, new),
            alone=lambda: self._start_alone(new, has_made_id=options.instance_id is None),
            session=options.session,
            starts_instance=new.instance_id,
        )
        return new.instance_id

    def _start_alone(self, new: NewInstance, *, has_made_id: bool) -> None:
        """Write a start in a transaction of its own, or with what the engine of this process writes anyway."""
        written: Reply[Started] = Reply()
        if not has_made_id or not self._engine_writes(new, written):
            self.client.write_start(new)
            self.wake(for_start=True)
            return
        while not written.wait(_LOOK_SECONDS):
            if not self.is_running:
                raise DatabaseUnavailableError(
                    f"The engine of this process ended before it could say whether instance {new.instance_id!r} was"
                    " started. Look for it with find_instances(), or start it again with an instance_id of your own."
                )
        try:
            written.value()
        except DBAPIError as error:
            raise self.client.clear(error) from error

    def _engine_writes(self, new: NewInstance, written: Reply[Started]) -> bool:
        engine, loop_thread = self._engine, self._loop_thread
        if engine is None or loop_thread is None or not self.is_running or loop_thread.is_current:
            return False
        return engine.write_start(new, written.say)

    def write(
        self,
        call: str,
        joined: Callable[[Connection], Any],
        *,
        alone: Callable[[], Any],
        session: Any,
        starts_instance: str | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Change something in the session that it joins, or in a transaction of its own; then look for work."""
        # A start is for this service; nobody knows yet for whom a message is.
        then = then or (partial(self.wake, for_start=True) if starts_instance else self.wake_everybody)
        session = self._session_for(session)
        conn = self._connection_of(session, call)
        if conn is None:
            alone()
            if starts_instance is None:
                then()
        else:
            joined(conn)
            starts.after_commit(session, then, instance_id=starts_instance)

    def cancel(self, instance_id: str, reason: str | None, session: Any) -> bool:
        """Cancel an instance where the request belongs; see :meth:`edda_wsgi.EddaFlask.cancel`."""
        return self._request(
            "cancel()",
            lambda conn: cancel_with(conn, instance_id, reason),
            alone=lambda: self.client.cancel(instance_id, reason),
            session=session,
            then=lambda: self._was_cancelled(instance_id),
        )

    def retry(self, instance_id: str, session: Any) -> bool:
        """Take up an instance again; see :meth:`edda_wsgi.EddaFlask.retry`."""
        return self._request(
            "retry()",
            lambda conn: retry_with(conn, instance_id),
            alone=lambda: self.client.retry(instance_id),
            session=session,
            then=self.wake,
        )

    def _request(
        self,
        call: str,
        joined: Callable[[Connection], bool],
        *,
        alone: Callable[[], bool],
        session: Any,
        then: Callable[[], None],
    ) -> bool:
        """Ask for something where it belongs; in an async activity the answer is not known before its end."""
        refuse_in_body(call)
        place = current_place.get()
        if session is UNSET and isinstance(place, Attempt):
            done = write_in_step(place, joined)
            if done is not False:
                place.register_post_commit(then)
            return done is not False
        session = self._session_for(session)
        conn = self._connection_of(session, call)
        if conn is None:
            done = alone()
            then()
        else:
            done = joined(conn)
            if done:
                starts.after_commit(session, then)
        return done

    def _was_cancelled(self, instance_id: str) -> None:
        if self._engine is not None:
            self._engine.ask_to_stop(instance_id)
        self.completions.announce(instance_id)

    def _session_for(self, given: Any) -> Session | None:
        """The session that a change joins, or ``None`` for a transaction of its own."""
        if given is not UNSET:
            return None if given is None else starts.session_given(given)
        if (joined := joining.get()) is not None:
            return starts.session_given(joined.session())
        if self._source is None or not has_app_context() or current_place.get() is not None:
            return None
        source = self.session_source
        current = source.current() if source is not None else None
        return None if current is None else starts.session_given(current)

    def _connection_of(self, session: Session | None, call: str) -> Connection | None:
        """The connection of the session that is joined; ``None`` for a transaction of its own, if there can be one."""
        found = self._find()
        conn = None if session is None else starts.connection_of(session, found.database.engine)
        refuse_to_wait_for_itself(call, found.writers, is_sqlite=found.database.is_sqlite, conn=conn)
        if conn is None:
            self.tables.ensure()
        else:
            self.tables.ensure_within(conn)
        return conn

    # Results.

    def result(self, instance_id: str, timeout: float | None) -> Any:
        """Wait for an instance to end; see :meth:`edda_wsgi.EddaFlask.result`."""
        starts.refuse_to_wait(instance_id, timeout)
        ended = Bell()
        is_here = self._is_running_here
        wait = ResultWait(self.client, instance_id, timeout=timeout, is_running_here=is_here, wake=ended.ring)
        with self.completions.watching(instance_id, wait.has_ended):
            while (found := wait.look()) is None:
                ended.wait(wait.seconds())
        return found.value

    def _is_running_here(self, instance_id: str) -> bool:
        return self._engine is not None and self._engine.is_running_here(instance_id)

    # The engine of this process.

    @property
    def is_running(self) -> bool:
        """Whether an engine was started in this very process."""
        alive = self._loop_thread is not None and self._loop_thread.is_alive
        return alive and self._engine is not None and self._pid == os.getpid()

    @property
    def worker_id(self) -> str | None:
        """The id of this process as a worker, or ``None``."""
        return self._engine.worker_id if self.is_running and self._engine is not None else None

    def worker_problems(self, timeout: float) -> list[str]:
        """What is wrong with the worker of this process, asked on its event loop.

        :raises TimeoutError: the loop does not answer.
        """
        if not self.is_running or self._engine is None or self._loop_thread is None:
            return ["It does not run in this process."]
        try:
            return self._loop_thread.run(self._engine.problems(), timeout)
        except (concurrent.futures.CancelledError, RuntimeError):  # that it is closed
            return ["Its event loop has died; a new one is begun in a moment."]

    def start_engine(self) -> Future[None]:
        """Start the engine on its loop thread, once in each process; the future is done when it claims."""
        self._after_fork()
        with self._lock:
            if self._starting is not None:
                return self._starting
            refuse_gevent()
            import_modules(self.settings.workflows)
            hooks = load_hooks(self.settings.hooks)
        database = self.database
        with self._lock:
            if self._starting is None:
                self._loop_thread = LoopThread(new_event_loop=self.conditions.new_event_loop, died=self._begin_again)
                self._starting = self._loop_thread.submit(self._run_engine(database, hooks))
                self._starting.add_done_callback(report)
            return self._starting

    async def _run_engine(self, database: Database, hooks: Any) -> None:
        self._engine = Engine(
            database,
            self.settings.engine_settings(),
            environment=FlaskEnvironment(self._app, self.session_source),
            hooks=hooks,
            application=self,
            probe=self.conditions.probe,
            now=self.conditions.now,
            completions=self.completions,
            notifier=self._notifier,
        )
        await self._engine.start()

    def _begin_again(self) -> None:
        """On the thread of a loop that has died: what was under way goes on in a new engine, under a new name."""
        with self._lock:
            dead, engine, stops = self._loop_thread, self._engine, self._stops
            if dead is None or not dead.is_current:
                return
            self._engine = self._starting = None
        bury(engine, is_wanted=lambda: self._loop_thread is dead)
        if self._loop_thread is dead:  # nobody has stopped it meanwhile, and no request has begun a new one
            self.start_engine()
            if self._stops != stops:  # somebody has, at this very moment, and waits for the end of this thread
                self.stop_engine(0.0)

    def wake(self, *, for_start: bool = False) -> None:
        """Let the engine of this process look for work now, or else those of other processes of this service."""
        if not self._has(lambda engine: engine.wake(for_start=for_start)):
            self._notifier.notify(self.settings.service_name)

    def wake_everybody(self) -> None:
        """Let the engine of this process look for work now, or else those of all services."""
        if not self._has(Engine.wake):
            self._notifier.notify("")

    def wake_relay(self) -> None:
        """Let the relay of this process look for events to publish now, or else those of other processes."""
        if not self._has(Engine.wake_relay):
            self._notifier.notify_relays()

    def _has(self, woken: Callable[[Engine], bool]) -> bool:
        engine = self._engine
        return self.is_running and engine is not None and woken(engine)

    def stop_claiming(self) -> None:
        """Take no more work into this process, which is to stop soon; may be called by a signal's handler."""
        if self._engine is not None:
            self._engine.stop_claiming()

    def stop_engine(self, timeout: float | None) -> bool:
        """Drain and stop the engine of this process, if there is one; False if its loop is blocked, and left behind."""
        if self._pid != os.getpid():
            return True
        if self._loop_thread is not None:
            self._loop_thread.refuse_own_thread()
        with self._lock:
            self._stops += 1
            loop_thread, engine, starting = self._loop_thread, self._engine, self._starting
            self._loop_thread = self._engine = self._starting = None
        if loop_thread is None:
            self._notifier.close()
            if self._found is not None:
                self._found.database.close()
            return True
        if starting is not None and not starting.done():
            starting.cancel()
        if engine is not None:
            seconds = self.settings.shutdown_seconds if timeout is None else timeout
            try:
                loop_thread.run_last(engine.stop(seconds), seconds=seconds)
            except (concurrent.futures.CancelledError, RuntimeError):  # the loop has died, or dies
                bury(engine, is_wanted=lambda: False)
        return loop_thread.stop()

    def _after_fork(self) -> None:
        if self._pid == os.getpid():
            return
        # A child of fork(): threads did not survive it, connections must not be shared.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._loop_thread = self._engine = self._starting = None
        self.completions = Completions()
        self.tables.after_fork()
        if self._found is not None:
            self._found.database.after_fork()
