"""``EddaFlask``: the Flask extension."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, ParamSpec, overload

import click
from flask import Flask, Response, appcontext_tearing_down, current_app, has_app_context

from edda_engine.channels import channel_message, direct_message
from edda_engine.client import Instance, Page
from edda_engine.core.events import HistoryEvent
from edda_engine.core.ports import DIRECT_CHANNEL
from edda_engine.core.status import Status
from edda_engine.errors import ConfigurationError
from edda_engine.runtime.probes import Probe, no_probe
from edda_engine.workflow import UNSET, DeclaredWorkflow, StartOptions
from edda_wsgi import cloudevents, health, lifecycle, outgoing, settings, starts, talking
from edda_wsgi.application import Application
from edda_wsgi.cli import edda_commands
from edda_wsgi.intake import EventHandlers, H
from edda_wsgi.session import source_for

P = ParamSpec("P")


class EddaFlask:
    """Durable workflows in a Flask application.

    ::

        db = SQLAlchemy()
        edda = EddaFlask()

        def create_app():
            app = Flask(__name__)
            db.init_app(app)
            edda.init_app(app, db=db)
            return app

    :param app: The application; leave it out in a factory and call :meth:`init_app`.
    :param db: What makes the application's sessions: the ``SQLAlchemy`` object of Flask-SQLAlchemy or
        Flask-SQLAlchemy-Lite, a ``sessionmaker`` or a ``scoped_session``. Its sessions then share the
        transactions of activities, and ``start()`` joins them.
    :param options: Settings, in lower case; they win over all other sources.
    """

    def __init__(self, app: Flask | None = None, *, db: Any = None, probe: Probe = no_probe, **options: Any) -> None:
        self._db, self._options, self._probe = db, options, probe
        self._only: Application | None = None
        self._several = False
        self._handlers = EventHandlers()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, *, db: Any = None, **options: Any) -> None:
        """Set up an application. Opens no connection and starts no thread.

        :raises ConfigurationError: a setting is unknown or wrong.
        """
        if "edda" in app.extensions:
            raise ConfigurationError(
                f"The application {app.name!r} has edda already; call init_app() once for each application."
            )
        try:
            effective = settings.load(app, {**self._options, **options})
            source = source_for(db if db is not None else self._db)
            reader = cloudevents.reader_for(effective.settings.events)
        except ConfigurationError as error:
            if click.get_current_context(silent=True) is None:
                raise
            raise click.UsageError(str(error)) from error  # one line for whoever called a command, not a traceback
        application = Application(app, effective, source, probe=self._probe)
        self._several = self._only is not None
        self._only = application
        app.extensions["edda"] = application
        app.cli.add_command(edda_commands)
        # Not a teardown function: for those Flask asks each time whether they are coroutines, and each activity has a context.
        appcontext_tearing_down.connect(starts.warn_of_unsaved, app)
        lifecycle.attach(app, application)
        if reader is not None:
            cloudevents.mount(app, application, reader, self._handlers, probe=self._probe)

    def on_event(self, event_type: str) -> Callable[[H], H]:
        """Have a function called with each event of a type that comes to the endpoint, as a :class:`ReceivedEvent`.

        It runs in an app context of its own, before the event is acknowledged. What it writes through ``db.session``,
        starts and sends is committed together with the event, so a redelivery does not do it again; its own
        ``commit()`` and ``rollback()`` end savepoints. If it raises, nothing is kept and the sender delivers again;
        :class:`TerminalError` refuses the event for good. Whoever else gets the event still gets it.

        :raises ConfigurationError: it decorates an ``async def``.
        """
        return self._handlers.register(event_type)

    @overload
    def start(self, workflow: DeclaredWorkflow[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> str: ...
    @overload
    def start(
        self, workflow: DeclaredWorkflow[..., Any], /, *args: Any, lock_timeout_seconds: float | None, **kwargs: Any
    ) -> str: ...
    def start(self, workflow: DeclaredWorkflow[..., Any], /, *args: Any, **kwargs: Any) -> str:
        """Enqueue a run of *workflow* and return its instance id; the same as ``workflow.start(...)``."""
        return self._application().start(workflow, StartOptions(), args, kwargs)

    def result(self, instance_id: str, timeout: float | None = None) -> Any:
        """Wait for a workflow to end and return what it returned.

        Asks the database with growing pauses, and is woken at once when the instance ends in this
        process. Holds no connection while it waits.

        :param timeout: Seconds to wait; ``None`` waits for ever, ``0`` only looks.
        :returns: The result, of the type that the workflow's return annotation names.
        :raises ResultTimeoutError: the instance has not ended in time; it goes on running. Raised at once, as
            ``StartNotCommittedError``, if it was started in this context's session and that is not committed.
        :raises WorkflowFailedError: it failed; ``__cause__`` is the original exception if its class can be imported.
        :raises WorkflowCancelledError: it was cancelled.
        :raises InstanceNotFoundError: there is no such instance.
        """
        return self._application().result(instance_id, timeout)

    def get(self, instance_id: str) -> Instance:
        """One instance, as the database shows it.

        :raises InstanceNotFoundError: there is none of that id.
        """
        return self._application().client.get(instance_id)

    def find_instances(
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

        :param status: One status or several.
        :param input_filters: ``{"order_id": 7, "customer.country": "SE"}``: equal values at dotted paths of the input.
        :param started_after: ``start()`` was called at or after this aware instant; likewise *started_before*.
        :param limit: At most 1000.
        :param page_token: The ``next_page_token`` of the page before.
        """
        return self._application().client.find_instances(
            status=status,
            workflow_name=workflow_name,
            instance_id=instance_id,
            input_filters=input_filters,
            started_after=started_after,
            started_before=started_before,
            limit=limit,
            page_token=page_token,
        )

    def history(self, instance_id: str) -> list[HistoryEvent]:
        """The recorded steps of an instance, in the order in which they were recorded.

        :raises InstanceNotFoundError: there is none of that id.
        """
        return self._application().client.history(instance_id)

    def cancel(self, instance_id: str, reason: str | None = None, *, session: Any = UNSET) -> bool:
        """Cancel an instance: a waiting one with this transaction, a running one at its next step.

        In a view it joins ``db.session`` and takes effect with its commit, in an activity with its step;
        ``session=None`` commits at once.

        :returns: False if it has ended already. In an async activity always True: it is done when the activity ends.
        :raises InstanceNotFoundError: there is none of that id; in an async activity when that ends, as its failure.
        """
        return self._application().cancel(instance_id, reason, session)

    def send_event(
        self, event_type: str, source: str, data: Any, *, instance_id: str | None = None, session: Any = UNSET
    ) -> str:
        """Send an event to the workflows that wait for it.

        In a view it joins ``db.session`` and is sent by its commit; in an activity it is sent with the step;
        ``session=None`` commits at once.

        :param instance_id: The one instance it is for, even if that waits only later; otherwise it goes to every
            instance that waits for its type.
        :returns: The id of what was sent.
        :raises InstanceNotFoundError: there is no such instance.
        :raises PayloadError: the data has no JSON form, or is too large.
        """
        application = self._application()
        message = talking.event_of(application, event_type, source, data, instance_id)
        return talking.send(application, "send_event()", message, session)

    def send_event_transactional(
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
        """Send an event to other services, by the outbox.

        In a view it joins ``db.session``: the event is published after its commit, and never without it. In an
        activity it is written with the step; ``session=None`` commits at once.

        :param data: Any JSON value, pydantic model or dataclass; or ``bytes`` with a fitting *content_type*.
        :param ordering_key: Events of one key are published in the order in which they were written.
        :returns: The event's id.
        :raises PayloadError: the data has no JSON form, or is too large.
        """
        application = self._application()
        event = outgoing.event_of(
            application, event_type, source, data, content_type, subject=subject, ordering_key=ordering_key
        )
        return outgoing.send(application, event, session)

    def publish(
        self, channel: str, data: Any, metadata: Mapping[str, Any] | None = None, *, session: Any = UNSET
    ) -> str:
        """Send a message to a channel's subscribers; it joins transactions as :meth:`send_event` does.

        :returns: The message's id.
        :raises PayloadError: the data has no JSON form, or is too large.
        """
        application = self._application()
        limit = application.settings.max_payload_bytes
        message = channel_message(channel, data, metadata, max_payload_bytes=limit)
        return talking.send(application, "publish()", message, session)

    def send_to(
        self,
        instance_id: str,
        data: Any,
        channel: str = DIRECT_CHANNEL,
        metadata: Mapping[str, Any] | None = None,
        *,
        session: Any = UNSET,
    ) -> str:
        """Send a message to one instance, even if it asks only later; it joins transactions as :meth:`send_event` does.

        :returns: The message's id.
        :raises InstanceNotFoundError: there is no such instance.
        :raises PayloadError: the data has no JSON form, or is too large.
        """
        application = self._application()
        limit = application.settings.max_payload_bytes
        message = direct_message(instance_id, data, channel, metadata, max_payload_bytes=limit)
        return talking.send(application, "send_to()", message, session)

    def retry(self, instance_id: str, *, session: Any = UNSET) -> bool:
        """Take up a failed or blocked instance again; a final failed step is tried anew.

        It joins transactions as :meth:`cancel` does: in a view it takes effect with the commit of ``db.session``.

        :returns: False if the instance needs no such help. In an async activity always True.
        :raises InstanceNotFoundError: there is none of that id.
        """
        return self._application().retry(instance_id, session)

    def health(self) -> Response:
        """A view for health checks: ``app.get("/healthz")(edda.health)``.

        200 and ``{"status": "ok"}`` when the database answers, the tables are up to date and the worker of this process
        is at work and listens; else 503, with what is wrong. It says nothing about instances.
        """
        return health.view(self._application())

    def start_worker(self, *, timeout: float | None = 30.0) -> str:
        """Run workflows in this process from now on, in the background; returns this worker's id.

        Servers do this by themselves (see the page on deployment); call it in scripts and tests.

        :param timeout: Seconds to wait until it claims; ``None`` waits for ever.
        """
        application = self._application()
        application.start_engine().result(timeout)
        return application.worker_id or ""

    def run_worker(self) -> None:
        """Run workflows in this process until SIGTERM or SIGINT, then drain and return.

        Another SIGTERM changes nothing. Ctrl-C while it drains ends the process at once; what was under way goes on
        elsewhere.
        """
        lifecycle.run_until_signalled(self._application())

    def shutdown(self, timeout: float | None = None) -> None:
        """Let running activities finish, hand everything else back, stop the engine of this process.

        :param timeout: Seconds for running activities; the setting ``SHUTDOWN_SECONDS`` if not given.
        """
        self._application().stop_engine(timeout)

    def _application(self) -> Application:
        if has_app_context() and isinstance(found := current_app.extensions.get("edda"), Application):
            return found
        if self._only is None:
            raise ConfigurationError("This EddaFlask has no application yet. Call edda.init_app(app, db=db) first.")
        if self._several:
            raise ConfigurationError(
                "This EddaFlask serves several applications; say which with `with app.app_context():`."
            )
        return self._only
