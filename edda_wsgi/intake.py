"""From events to rows: who an event is for, and one transaction for all that a request holds.

How it thinks. First everything is checked and encoded, without the database: a request is accepted whole or not at
all. Then, in one transaction: the rows by which redeliveries are known, and for each event that is new what it
causes. An event for one instance goes to that instance. One that has the name of a workflow declared with
``event_handler=True`` starts it, and is used up by that. Any other goes to the instances that wait for its type. The
application's own handlers of its type are called as well, whoever else gets it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from flask import Flask
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError

from edda_engine.core.codec import MAX_ID_LENGTH, codec_for
from edda_engine.core.ports import NewInstance, OutgoingMessage
from edda_engine.core.status import Status
from edda_engine.errors import (
    ConfigurationError,
    EddaError,
    InstanceNotFoundError,
    InvalidInputError,
    PayloadError,
    TerminalError,
    UsageError,
)
from edda_engine.events import ReceivedEvent, check_text, event_message
from edda_engine.runtime.probes import Probe
from edda_engine.storage import received
from edda_engine.storage.database import is_outage, may_be_repeated
from edda_engine.storage.instances import outcome
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.workers import live_workflows
from edda_engine.workflow import DeclaredWorkflow, StartOptions, workflows
from edda_wsgi.application import Application
from edda_wsgi.joining import Joining, OwnSessions, guarded, joined_by
from edda_wsgi.loading import import_modules

ADDRESSEE = "eddainstanceid"
"""The extension attribute that names the one instance an event is for."""

_RESERVED = "lock_timeout_seconds"
_TRIES = 3
_LONGEST_MESSAGE = 1000

Handler = Callable[[ReceivedEvent[Any]], Any]
H = TypeVar("H", bound=Handler)


class UnacceptableError(EddaError):
    """A request that will not be accepted however often it comes; *status* is the answer's."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 1] + "…")
        self.status, self.error_type = status, error_type


class HandlerFailedError(EddaError):
    """A handler of the application raised; ``__cause__`` says what. Nothing of the request is kept."""


class EventHandlers:
    """The functions that an application wants called, by type of event."""

    def __init__(self) -> None:
        self._by_type: dict[str, tuple[Handler, ...]] = {}

    def register(self, event_type: str) -> Callable[[H], H]:
        """See :meth:`edda_wsgi.EddaFlask.on_event`."""
        check_text("on_event", "event_type", event_type, MAX_ID_LENGTH)

        def add(function: H) -> H:
            if not callable(function) or inspect.iscoroutinefunction(function):
                raise ConfigurationError(
                    f"@on_event({event_type!r}) decorates a plain function that takes the event, not {function!r}."
                    " What takes long or waits belongs into a workflow, which the function can start."
                )
            self._by_type[event_type] = (*self.of(event_type), function)
            return function

        return add

    def of(self, event_type: str) -> tuple[Handler, ...]:
        """In the order in which they were registered."""
        return self._by_type.get(event_type, ())


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An event, and what it causes: a start, or a message, and calls of handlers."""

    event: ReceivedEvent[Any]
    where: str
    """Which one of a batch it is, for those who read an error."""
    start: NewInstance | None
    message: OutgoingMessage | None
    handlers: tuple[Handler, ...]

    @property
    def key(self) -> tuple[str, str]:
        """How redeliveries of it are known."""
        return received.key(self.event.source, self.event.id)


class Intake:
    """Takes the events of one application."""

    def __init__(self, app: Flask, application: Application, handlers: EventHandlers, *, probe: Probe) -> None:
        self._app, self._application, self._handlers, self._probe = app, application, handlers, probe
        self._knows_workflows = False

    def accept(self, events: Sequence[ReceivedEvent[Any]]) -> None:
        """Store everything that *events* cause; when this returns, it is committed.

        :raises UnacceptableError: one of them cannot be accepted, and so none is.
        :raises HandlerFailedError: a handler raised.
        """
        if not self._knows_workflows:
            import_modules(self._application.settings.workflows)
            self._knows_workflows = True
        where = [f"In event {number} of the batch: " if len(events) > 1 else "" for number in range(len(events))]
        prepared = [self._prepared(event, place) for event, place in zip(events, where, strict=True)]
        for tries_left in reversed(range(_TRIES)):
            try:
                self._store(prepared)
                return
            except DBAPIError as error:
                if not tries_left or is_outage(error) or not may_be_repeated(error):
                    raise

    def _prepared(self, event: ReceivedEvent[Any], where: str) -> _Prepared:
        addressee = event.extensions.get(ADDRESSEE)
        workflow = workflows.get(event.type) if addressee is None else None
        start = message = None
        try:
            if workflow is not None and workflow.event_handler:
                start = self._start_of(workflow, event.data)
            else:
                message = self._message_of(event, addressee)
        except (InvalidInputError, PayloadError, UsageError) as error:
            is_too_large = "MAX_PAYLOAD_BYTES" in str(error)
            raise UnacceptableError(413 if is_too_large else 400, type(error).__name__, f"{where}{error}") from error
        return _Prepared(event, where, start, message, self._handlers.of(event.type))

    def _start_of(self, workflow: DeclaredWorkflow[..., Any], content: Any) -> NewInstance:
        """The data of an event are arguments and nothing else: no option of a start can be given by it."""
        parameters = workflow.parameters
        if parameters.takes_one_model and not isinstance(content, bytes):
            args, kwargs = _as_model(workflow, content)
        elif content is None or isinstance(content, dict):
            args, kwargs = (), {name: value for name, value in (content or {}).items() if name != _RESERVED}
        else:
            problem = f"the event's data must be a JSON object of arguments, not a {type(content).__name__}"
            raise InvalidInputError(workflow.name, problem, signature=str(parameters.signature))
        return self._application.client.prepare(workflow, StartOptions(), args, kwargs)

    def _message_of(self, event: ReceivedEvent[Any], addressee: str | None) -> OutgoingMessage:
        return event_message(
            event.type,
            event.source,
            event.data,
            instance_id=addressee,
            max_payload_bytes=self._application.settings.max_payload_bytes,
            event_id=event.id,
            time=event.time,
            subject=event.subject,
            datacontenttype=event.datacontenttype,
            extensions=event.extensions,
        )

    def _store(self, prepared: Sequence[_Prepared]) -> None:
        with self._application.database.write(service=False) as conn, guarded(conn) as joined:
            new = self._not_seen_before(conn, prepared)
            self._refuse_names_known_elsewhere(conn, new)
            for each in new:
                self._write(conn, each)
                for handler in each.handlers:
                    self._call(handler, each.event, joined)
            if new:  # each has added up to two rows: more are forgotten than come
                received.forget_expired(conn, at_most=max(received.FORGOTTEN_AT_ONCE, 4 * len(new)))
            self._probe("events.before_commit")
        self._probe("events.after_commit")
        self._application.wake_everybody()
        for callback in joined.after_commit:
            callback()

    def _not_seen_before(self, conn: Connection, prepared: Sequence[_Prepared]) -> list[_Prepared]:
        """What this service has not accepted before, without what another one has sent to waiting instances already."""
        mine = self._first_deliveries(conn, self._application.settings.service_name, prepared)
        new = [each for number, each in enumerate(prepared) if number in mine]
        for_all = [each for each in new if each.message is not None]
        not_sent = self._first_deliveries(conn, received.EVERY_SERVICE, for_all)
        sent = {id(each) for number, each in enumerate(for_all) if number not in not_sent}
        return [replace(each, message=None) if id(each) in sent else each for each in new]

    def _first_deliveries(self, conn: Connection, service: str, prepared: Sequence[_Prepared]) -> set[int]:
        """The numbers of those that are remembered for *service* only now."""
        keep_seconds = self._application.settings.events.deduplication_days * 86_400
        return {
            number
            for number in sorted(range(len(prepared)), key=lambda number: prepared[number].key)
            if received.is_first_delivery(
                conn,
                service=service,
                source=prepared[number].event.source,
                event_id=prepared[number].event.id,
                keep_seconds=keep_seconds,
            )
        }

    def _refuse_names_known_elsewhere(self, conn: Connection, new: Sequence[_Prepared]) -> None:
        """An event that would start a workflow, if only this process knew it, must not be lost.

        :raises ConfigurationError: workers run a workflow of that name, and here nobody has imported it.
        """
        service = self._application.settings.service_name
        types = {each.event.type for each in new if each.message is not None and each.message.addressee is None}
        unknown = {name for name in types if workflows.get(name) is None}
        elsewhere = unknown & live_workflows(conn).get(service, set()) if unknown else set()
        if elsewhere:
            raise ConfigurationError(
                f"Workers of service {service!r} run the workflow {min(elsewhere)!r}, which this process does not know, so"
                " it cannot tell whether an event of that name starts it. Name its module in the WORKFLOWS setting here."
            )

    def _write(self, conn: Connection, each: _Prepared) -> None:
        try:
            if each.start is not None:
                insert_instance(conn, each.start)
            elif each.message is not None and _is_awaited(conn, each.message.addressee):
                insert_messages(conn, [each.message])
        except InstanceNotFoundError as error:
            raise UnacceptableError(400, type(error).__name__, f"{each.where}{error}") from error
        except DataError as error:
            said = f"{each.where}The database refuses a value of the event."
            raise UnacceptableError(400, PayloadError.__name__, said) from error

    def _call(self, handler: Handler, event: ReceivedEvent[Any], joined: Joining) -> None:
        try:
            with self._app.app_context():
                source = self._application.session_source
                sessions = OwnSessions(joined) if source is None else source.sessions()
                with joined_by(joined, sessions):
                    handler(event)
        except TerminalError as error:
            raise UnacceptableError(400, type(error).__name__, str(error)) from error
        except DBAPIError:
            raise  # what kind it is decides whether it is tried again here
        except Exception as error:  # the edge of user code
            raise HandlerFailedError(f"A handler of event {event.type!r} raised {type(error).__name__}.") from error


def _as_model(workflow: DeclaredWorkflow[..., Any], content: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The whole data as the one model parameter; also, as in ``start()``, an object with its name as the only key."""
    (name,) = workflow.parameters.signature.parameters
    owner = f"workflow {workflow.name!r}"
    forms = [{name: {} if content is None else content}]
    if isinstance(content, dict) and set(content) == {name}:
        forms.append(content)
    for number, form in enumerate(forms, 1):
        try:
            codec_for(Any).encode(form, owner=owner)  # JSON has escapes for what no text may hold
            return workflow.parameters.decode(form, owner=owner)
        except PayloadError as error:
            if number == len(forms):
                problem = f"the argument at {error.path} {error.problem}"
                signature = str(workflow.parameters.signature)
                raise InvalidInputError(workflow.name, problem, signature=signature) from error
    raise AssertionError("unreachable")


def _is_awaited(conn: Connection, addressee: str | None) -> bool:
    """Whether anybody can ever receive what is addressed so.

    :raises InstanceNotFoundError: it is for an instance that does not exist.
    """
    if addressee is None:
        return True
    row = outcome(conn, addressee)
    if row is None:
        raise InstanceNotFoundError(addressee)
    status = Status(row["status"])
    return not status.is_finished or status is Status.RECURRED  # a run that has recurred has successors
