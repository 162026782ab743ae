"""One Flask application's share of edda: its settings, its database, and the engine of this process.

Nothing starts before it is needed: making one opens no connection and starts no thread. What was made before a
fork is left alone after it.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from flask import Flask, has_app_context
from sqlalchemy import Connection

from edda_engine.client import Client, Ended, cancel_with
from edda_engine.core.ports import current_place
from edda_engine.errors import ConfigurationError, ResultTimeoutError, StartNotCommittedError, UsageError
from edda_engine.hooks import HooksBase
from edda_engine.runtime.attempts import Attempt
from edda_engine.runtime.completions import Completions
from edda_engine.runtime.engine import Engine
from edda_engine.runtime.probes import Probe
from edda_engine.storage import migrate
from edda_engine.storage.database import Database, normalized_url
from edda_engine.storage.instances import insert_instance
from edda_engine.workflow import UNSET, DeclaredWorkflow, StartOptions, check_is_workflow, refuse_in_body
from edda_wsgi import starts
from edda_wsgi.environment import FlaskEnvironment
from edda_wsgi.loop_thread import LoopThread
from edda_wsgi.session import SessionSource
from edda_wsgi.settings import Effective

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 1.0

everywhere: weakref.WeakSet[Application] = weakref.WeakSet()
"""Every application of this process that has edda."""


class Application:
    """What ``app.extensions["edda"]`` is."""

    def __init__(self, app: Flask, effective: Effective, source: SessionSource | None, *, probe: Probe) -> None:
        self.settings, self.sources = effective.settings, effective.sources
        self._app = app
        self._source = source
        self._probe = probe
        self._lock = threading.Lock()
        self._pid = self._made_by_pid = os.getpid()
        self._database: Database | None = None
        self._shares_session = False
        self._has_tables = False
        self._loop_thread: LoopThread | None = None
        self._engine: Engine | None = None
        self._starting: Future[None] | None = None
        self.completions = Completions()
        everywhere.add(self)

    # The database.

    @property
    def database(self) -> Database:
        """The database of this application, as this process uses it."""
        self._after_fork()
        if self._database is None:
            with self._lock:
                if self._database is None:
                    self._database = self._find_database()
        return self._database

    @property
    def client(self) -> Client:
        """Questions and requests about instances."""
        return Client(self.database, self.settings)

    def ensure_tables(self) -> None:
        """Create or upgrade the tables, once in each process, unless AUTO_MIGRATE forbids it."""
        if not self.settings.auto_migrate:
            return
        database = self.database
        with self._lock:
            if self._has_tables:
                return
            migrate.upgrade(database)
            self._has_tables = True
            if self._starting is None:
                database.close_service()  # a process that only starts and asks needs no second pool

    def _ensure_tables_for(self, conn: Connection) -> None:
        """The same for a session that may have written already: on SQLite it is the one writer."""
        if self._has_tables or not self.settings.auto_migrate:
            return
        if not self.database.is_sqlite or migrate.check(self.database) is None:
            self.ensure_tables()
        else:
            migrate.upgrade_within(conn)

    def _find_database(self) -> Database:
        if self._source is None:
            return Database.from_url(self.settings.database_url or self._default_url())
        if has_app_context():
            engine = self._source.engine()
            self._source.install()
        else:
            with self._app.app_context():
                engine = self._source.engine()
                self._source.install()
        url = self.settings.database_url
        if url is not None and normalized_url(url).render_as_string(False) != engine.url.render_as_string(False):
            _log.info(
                "DATABASE_URL is not the application's database: starts and activities cannot share its transactions"
            )
            return Database.from_url(url)
        self._shares_session = True
        if os.getpid() != self._made_by_pid:
            engine.dispose(close=False)  # whatever the application opened before the fork is the parent's
        return Database(engine)

    def _default_url(self) -> str:
        folder = Path(self._app.instance_path)
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'edda.db'}"

    # Starting and cancelling.

    def start(
        self, workflow: DeclaredWorkflow[..., Any], options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        """Write a start where it belongs: an activity's transaction, the request's session, or one of its own."""
        check_is_workflow(workflow)
        new = self.client.prepare(workflow, options, args, kwargs)
        place = current_place.get()
        if options.session is UNSET and isinstance(place, Attempt):
            place.start(new)
            place.register_post_commit(self.wake)
            return new.instance_id
        session = self._session_for(options.session)
        if session is None:
            self._refuse_own_transaction(place, f"{workflow.name}.options(session=None).start()")
            self.ensure_tables()
            self.client.write_start(new)
            self.wake()
        else:
            conn = starts.connection_of(session, self.database.engine)
            self._ensure_tables_for(conn)
            insert_instance(conn, new)
            starts.after_commit(session, self.wake, instance_id=new.instance_id)
        return new.instance_id

    def cancel(self, instance_id: str, reason: str | None, session: Any) -> bool:
        """Cancel an instance where the request belongs; see :meth:`edda_wsgi.EddaFlask.cancel`."""
        refuse_in_body("cancel()")
        place = current_place.get()
        if session is UNSET and isinstance(place, Attempt) and not place.is_async:
            done = cancel_with(place.transaction.connection(), instance_id, reason)
            place.register_post_commit(lambda: self._was_cancelled(instance_id))
            return done
        joined = self._session_for(session)
        if joined is None:
            self._refuse_own_transaction(place, "cancel(session=None)")
            done = self.client.cancel(instance_id, reason)
            self._was_cancelled(instance_id)
        else:
            done = cancel_with(starts.connection_of(joined, self.database.engine), instance_id, reason)
            if done:
                starts.after_commit(joined, lambda: self._was_cancelled(instance_id))
        return done

    def _was_cancelled(self, instance_id: str) -> None:
        if self._engine is not None:
            self._engine.ask_to_stop(instance_id)
        self.completions.announce(instance_id)

    def _session_for(self, given: Any) -> Any:
        """The session that a change joins, or ``None`` for a transaction of its own."""
        if given is not UNSET:
            return given
        if self._source is None or not has_app_context() or current_place.get() is not None:
            return None
        self.database  # noqa: B018  finding it tells whether the session is shared
        return self._source.current() if self._shares_session else None

    def _refuse_own_transaction(self, place: Any, call: str) -> None:
        if isinstance(place, Attempt) and place.transaction.is_begun and self.database.is_sqlite:
            raise UsageError(
                f"{call} in activity {place.activity_id!r} needs a second transaction while the activity's own one is open,"
                " and SQLite admits one writer. Leave session= out: the change is then part of the activity's step."
            )

    # Results.

    def result(self, instance_id: str, timeout: float | None) -> Any:
        """Wait for an instance to end; see :meth:`edda_wsgi.EddaFlask.result`."""
        place = current_place.get()
        if place is not None and (place.is_body or place.is_async or timeout is None):
            raise UsageError(
                "result() would wait here for work that may need this very thread. In a workflow run the other one inline,"
                " with `await other_workflow(ctx, ...)`; in a plain def activity at most look, with a timeout."
            )
        if starts.is_unsaved(instance_id):
            raise StartNotCommittedError(instance_id)
        client = self.client
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = threading.Event()
        pause = _FIRST_PAUSE_SECONDS
        with self.completions.watching(instance_id, ended.set):
            while True:
                found = client.outcome(instance_id)
                if isinstance(found, Ended):
                    return found.value
                if self._engine is not None and self._engine.is_running_here(instance_id):
                    pause = _LONGEST_PAUSE_SECONDS  # its end is announced; looking is only the safety net
                left = pause if deadline is None else min(pause, deadline - time.monotonic())
                if left <= 0:
                    raise ResultTimeoutError(instance_id, timeout or 0.0, found)
                if not ended.wait(left):
                    pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
                ended.clear()

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

    def start_engine(self) -> Future[None]:
        """Start the engine on its loop thread, once in each process; the future is done when it claims."""
        self._after_fork()
        with self._lock:
            if self._starting is not None and self._loop_thread is not None and self._loop_thread.is_alive:
                return self._starting
            if self._starting is not None:
                _log.error("The engine's loop thread has ended unexpectedly; a new one is started")
                self._loop_thread = self._engine = self._starting = None
            _refuse_gevent()
            import_modules(self.settings.workflows)
            hooks = load_hooks(self.settings.hooks)
        database = self.database
        with self._lock:
            if self._starting is None:
                self._loop_thread = LoopThread()
                self._starting = self._loop_thread.submit(self._run_engine(database, hooks))
                self._starting.add_done_callback(_report)
            return self._starting

    async def _run_engine(self, database: Database, hooks: Any) -> None:
        self._engine = Engine(
            database,
            self.settings.engine_settings(),
            environment=FlaskEnvironment(self._app, self._source if self._shares_session else None),
            hooks=hooks,
            application=self,
            probe=self._probe,
            completions=self.completions,
        )
        await self._engine.start()

    def wake(self) -> None:
        """Let the engine of this process, if there is one, look for work now."""
        if self.is_running and self._engine is not None:
            self._engine.wake()

    def stop_engine(self, timeout: float | None) -> None:
        """Drain and stop the engine of this process; does nothing if there is none."""
        if self._pid != os.getpid():
            return
        if self._loop_thread is not None:
            self._loop_thread.refuse_own_thread()
        with self._lock:
            loop_thread, engine, starting = self._loop_thread, self._engine, self._starting
            self._loop_thread = self._engine = self._starting = None
        if loop_thread is None:
            if self._database is not None:
                self._database.close()
            return
        if starting is not None and not starting.done():
            starting.cancel()
        if engine is not None:
            loop_thread.run(engine.stop(timeout))
        loop_thread.stop()

    def _after_fork(self) -> None:
        if self._pid == os.getpid():
            return
        # A child of fork(): threads did not survive it, connections must not be shared.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._loop_thread = self._engine = self._starting = None
        self.completions = Completions()
        if self._database is not None:
            self._database.after_fork()


def import_modules(module_names: Iterable[str]) -> None:
    """Import the modules that declare workflows.

    :raises ConfigurationError: one of them cannot be imported.
    """
    for name in module_names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            raise ConfigurationError(
                f"WORKFLOWS names {name!r}, and there is no module {error.name!r}. Check the spelling and the path."
            ) from error


def load_hooks(paths: Iterable[str]) -> Any:
    """Make the hooks objects; several are called one after the other.

    :raises ConfigurationError: a path leads nowhere.
    """
    made = []
    for path in paths:
        module_name, _, name = path.rpartition(".")
        try:
            made.append(getattr(importlib.import_module(module_name), name)())
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(f"HOOKS names {path!r}, which cannot be loaded: {error}") from error
    if len(made) <= 1:
        return made[0] if made else HooksBase()
    return _Several(made)


class _Several:
    """Passes every call on to all hooks; one that raises does not keep it from the others."""

    def __init__(self, hooks: list[Any]) -> None:
        self._hooks = hooks

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> None:
            errors = []
            for hook in self._hooks:
                try:
                    getattr(hook, name)(*args)
                except Exception as error:  # the edge of user code
                    errors.append(error)
            if errors:
                raise errors[0]

        return call


def _refuse_gevent() -> None:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ConfigurationError(
            "gevent has replaced threads in this process, and the engine needs real ones. Set EDDA['ROLE'] = 'client' here"
            " and run the workflows with `flask edda worker` beside the web server."
        )


def _report(starting: Future[None]) -> None:
    if starting.cancelled():
        return
    error = starting.exception()
    if error is not None:
        _log.error("The engine could not start, so this process runs no workflows: %s", error, exc_info=error)
