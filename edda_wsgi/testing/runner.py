"""A Flask application on the bench of :mod:`edda_engine.testing`."""

from __future__ import annotations

from typing import Any

from flask import Flask, current_app, has_app_context

from edda_engine.client import Client
from edda_engine.errors import ConfigurationError
from edda_engine.runtime.conditions import Conditions
from edda_engine.runtime.engine import Engine
from edda_engine.runtime.environment import Environment
from edda_engine.storage import migrate
from edda_engine.storage.database import Database
from edda_engine.testing.errors import StuckError
from edda_engine.testing.runner import TIMEOUT_SECONDS, Runner
from edda_wsgi.application import Application
from edda_wsgi.environment import FlaskEnvironment


class WorkflowRunner(Runner):
    """Runs the workflows of a Flask application in the process of a test.

    ::

        with WorkflowRunner(app) as runner:
            assert runner.run(fulfil, order_id=1) == {"status": "shipped"}
            assert runner.steps() == ["reserve:1", "sleep:1", "ship:1"]

    :param app: An application with ``TESTING``, on a database that no other test uses: a SQLite file or PostgreSQL.
    :param timeout: Seconds, by the real clock, that one call may take.
    :raises ConfigurationError: the application has no edda; or, on entering the block, it is not ``TESTING``.
    """

    def __init__(self, app: Flask, *, timeout: float = TIMEOUT_SECONDS) -> None:
        super().__init__(FlaskBench(app), timeout=timeout)


class FlaskBench:
    """See ``edda_engine.testing.worker.Bench``."""

    def __init__(self, app: Flask) -> None:
        found = app.extensions.get("edda")
        if not isinstance(found, Application):
            raise ConfigurationError(
                f"The application {app.name!r} has no edda. Call edda.init_app(app, db=db) in its factory."
            )
        self._app, self._application = app, found

    def refuse_unless_under_test(self) -> None:
        """Only an application with TESTING.

        :raises ConfigurationError: it has not.
        """
        if not self._app.testing:
            raise ConfigurationError(
                f"The application {self._app.name!r} is not under test: set TESTING in its configuration, so that it runs"
                " no workflows by itself, and make sure that its database is one for tests: it is changed at will."
            )

    @property
    def conditions(self) -> Conditions:
        """What its next engine runs under."""
        return self._application.conditions

    @conditions.setter
    def conditions(self, value: Conditions) -> None:
        self._application.conditions = value

    @property
    def database(self) -> Database:
        """Where its tables are."""
        return self._application.database

    @property
    def client(self) -> Client:
        """Questions and requests."""
        return self._application.client

    @property
    def service_name(self) -> str:
        """Whose instances its worker runs."""
        return self._application.settings.service_name

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload."""
        return self._application.settings.max_payload_bytes

    @property
    def engine(self) -> Engine | None:
        """Its engine, if it has one now."""
        return self._application._engine  # nobody else needs to know it

    @property
    def has_relay(self) -> bool:
        """Whether its worker publishes the events of the outbox."""
        return self._application.settings.outbox is not None

    def environment(self) -> Environment:
        """An app context around user code, and its sessions."""
        return FlaskEnvironment(self._app, self._application.session_source)

    def start_worker(self) -> None:
        """Run an engine on a loop thread of its own.

        :raises ConfigurationError: the tables are not there, and AUTO_MIGRATE forbids to make them.
        """
        problem = None if self._application.settings.auto_migrate else migrate.check(self.database)
        if problem is not None:
            raise ConfigurationError(problem)
        self._application.start_engine().result(TIMEOUT_SECONDS)

    def stop_worker(self, timeout: float) -> None:
        """Stop it.

        :raises StuckError: a body blocks its event loop.
        """
        if not self._application.stop_engine(timeout):
            raise StuckError(
                "A workflow's body still blocks the event loop after its worker was stopped. A real worker's process would"
                " end all the same; here the body goes on. Move what is slow in it into an @activity."
            )

    def save_session(self) -> None:
        """Commit ``db.session`` of the app context that the test is in."""
        session = self._session()
        if session is not None and session.in_transaction():
            session.commit()

    def let_go(self) -> None:
        """Close connections that nobody uses; the test's session, which may go on, lets go of its own first."""
        session = self._session()
        if session is not None and session.in_transaction():
            session.rollback()
        self.database.engine.dispose()

    def _session(self) -> Any:
        if not has_app_context() or current_app.extensions.get("edda") is not self._application:
            return None
        source = self._application.session_source
        return source.current() if source is not None else None

    def wake(self) -> None:
        """Something was sent."""
        self._application.wake_everybody()
