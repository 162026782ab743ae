"""Questions and requests about instances: what every front door offers, as plain functions on a database.

Nothing here needs an engine in this process. The asyncio front door calls these off its loop, the Flask one in
the caller's thread. Connections are held for one query, never while waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, NoReturn, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import DBAPIError

from edda_engine import criteria
from edda_engine.core.codec import is_storable, is_storable_id, parse
from edda_engine.core.events import HistoryEvent
from edda_engine.core.ports import ChannelMode, NewInstance, OutboxEvent, OutgoingMessage
from edda_engine.core.status import Status
from edda_engine.errors import ChannelModeConflictError, DatabaseUnavailableError, InstanceNotFoundError, UsageError
from edda_engine.outcomes import Ended, last_run, outcome_of_row
from edda_engine.runtime.probes import Probe, no_probe
from edda_engine.settings import EngineSettings
from edda_engine.storage import channels, history, instances, outbox, serial, workers
from edda_engine.storage.database import Database, is_outage
from edda_engine.storage.messages import insert_if_known, insert_messages
from edda_engine.storage.starts import insert_instance
from edda_engine.workflow import DeclaredWorkflow, StartOptions

T = TypeVar("T")

_LONGEST_REASON = 2000


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of a workflow, as the database shows it. Instants are aware and in UTC.

    ``error`` is the failure of a failed instance. On one that has not ended it says what keeps it from going on
    (see :attr:`is_blocked`).
    """

    instance_id: str
    workflow_name: str
    service: str
    status: Status
    input: Any = field(hash=False)
    output: Any = field(hash=False)
    error: dict[str, Any] | None = field(hash=False)
    source_hash: str
    priority: int
    wake_at: datetime | None
    locked_by: str | None
    lock_expires_at: datetime | None
    lock_epoch: int
    lock_timeout_seconds: float
    parent_instance_id: str | None
    continued_from: str | None
    mailbox: str
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    completed_at: datetime | None
    is_runnable: bool = True
    """False when no registered worker of the service knows the workflow; it waits for one that does."""

    @property
    def is_blocked(self) -> bool:
        """True when it has not ended and nobody will take it up before an operator acts."""
        return not self.status.is_finished and self.wake_at is None and self.error is not None

    @property
    def error_summary(self) -> str | None:
        """``"Type: message"`` of the error, or ``None``."""
        return None if self.error is None else f"{self.error.get('error_type')}: {self.error.get('message')}"


@dataclass(frozen=True, slots=True)
class Page:
    """Some instances, newest first; ``next_page_token`` is ``None`` on the last page."""

    instances: tuple[Instance, ...]
    next_page_token: str | None = None


class Client:
    """The questions and requests of one application."""

    def __init__(self, database: Database, settings: EngineSettings, *, probe: Probe = no_probe) -> None:
        self._database, self._settings, self._probe = database, settings, probe

    def prepare(
        self, workflow: DeclaredWorkflow[..., Any], options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> NewInstance:
        """Check and encode a start; nothing is written."""
        return workflow.prepare(
            options,
            args,
            kwargs,
            service=self._settings.service_name,
            default_lock_timeout=self._settings.lock_timeout_seconds,
            max_payload_bytes=self._settings.max_payload_bytes,
        )

    def write_start(self, new: NewInstance) -> None:
        """Write a start in a transaction of its own."""
        self.write("request.start", lambda conn: insert_instance(conn, new))

    def clear(self, error: BaseException) -> BaseException:
        """What to say of an error of the database."""
        return _clear(error) if isinstance(error, DBAPIError) else error

    def write_message(self, message: OutgoingMessage) -> None:
        """Send in a transaction of its own.

        :raises InstanceNotFoundError: it is for an instance that does not exist.
        """
        self.write("request.send", lambda conn: send_with(conn, message))

    def write_outbox_event(self, event: OutboxEvent) -> None:
        """Write an event for other services in a transaction of its own."""
        self.write("request.event", lambda conn: outbox.insert_events(conn, [(None, None, event)]))

    def get(self, instance_id: str) -> Instance:
        """One instance.

        :raises InstanceNotFoundError: there is none of that id.
        """

        _refuse_impossible(instance_id)

        def look(conn: Connection) -> Instance:
            row = instances.find(conn, instance_id)
            if row is None:
                raise InstanceNotFoundError(instance_id)
            return _instance(row, workers.live_workflows(conn))

        return self._read(look, without_tables=partial(_refuse_unknown, instance_id))

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
        """Instances of this service that match everything given, newest first.

        :param status: One status or several.
        :param input_filters: ``{"order_id": 7, "customer.country": "SE"}``: equal values at dotted paths of the input.
        :param started_after: ``start()`` was called at or after this aware instant; likewise *started_before*.
        :param limit: At most 1000.
        :param page_token: The ``next_page_token`` of the page before.
        :raises UsageError: it cannot be asked, such as an unknown status, a naive time, or a token that is none.
        """
        asked = criteria.checked(
            status=status,
            workflow_name=workflow_name,
            instance_id=instance_id,
            input_filters=input_filters,
            started_after=started_after,
            started_before=started_before,
            limit=limit,
            page_token=page_token,
        )

        def look(conn: Connection) -> Page:
            rows = instances.listed(
                conn,
                service=self._settings.service_name,
                statuses=asked.statuses,
                workflow_name=asked.workflow_name,
                instance_id=asked.instance_id,
                input_filters=asked.input_filters,
                started_after=asked.started_after,
                started_before=asked.started_before,
                after=asked.after,
                limit=asked.limit + 1,
            )
            known = workers.live_workflows(conn)
            found = tuple(_instance(row, known) for row in rows[: asked.limit])
            last = found[-1] if len(rows) > asked.limit else None
            return Page(found, None if last is None else criteria.token_of(last.created_at, last.instance_id))

        return self._read(look, without_tables=lambda: Page(()))

    def history(self, instance_id: str) -> list[HistoryEvent]:
        """The recorded steps of an instance, in order.

        :raises InstanceNotFoundError: there is none of that id.
        """

        _refuse_impossible(instance_id)

        def look(conn: Connection) -> list[HistoryEvent]:
            if not instances.is_known(conn, instance_id):
                raise InstanceNotFoundError(instance_id)
            return history.timeline(conn, instance_id)

        return self._read(look, without_tables=partial(_refuse_unknown, instance_id))

    def cancel(self, instance_id: str, reason: str | None = None) -> bool:
        """Cancel an instance in a transaction of its own (see :func:`cancel_with`)."""
        return self.write("request.cancel", lambda conn: cancel_with(conn, instance_id, reason))

    def retry(self, instance_id: str) -> bool:
        """Take up a failed or blocked instance again in a transaction of its own (see :func:`retry_with`)."""
        return self.write("request.retry", lambda conn: retry_with(conn, instance_id))

    def outcome(self, instance_id: str) -> Ended | str:
        """The result if the instance has completed, else a word about where it stands.

        Of an instance that has recurred, its last successor counts.

        :raises InstanceNotFoundError: there is none of that id.
        :raises WorkflowFailedError: it failed.
        :raises WorkflowCancelledError: it was cancelled.
        """
        _refuse_impossible(instance_id)
        row = self._read(lambda conn: last_run(conn, instance_id), without_tables=lambda: None)
        if row is None:
            raise InstanceNotFoundError(instance_id)
        return outcome_of_row(instance_id, row)

    def _read(self, work: Callable[[Connection], T], *, without_tables: Callable[[], T]) -> T:
        try:
            try:
                return self._look(work)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                return self._look(work)  # it was dead in the pool, since the server restarted; a new one may do
        except DBAPIError as error:
            if _says_no_tables(error) and self._settings.auto_migrate:
                return without_tables()  # they are made with the first start; until then there is nothing
            raise _clear(error) from error

    def _look(self, work: Callable[[Connection], T]) -> T:
        with self._database.read() as conn:
            return work(conn)

    def write(self, name: str, work: Callable[[Connection], T]) -> T:
        """Do *work* in a transaction of its own; *name* is that of the points before and after its commit.

        :raises DatabaseUnavailableError: the database did not answer.
        """
        is_being_saved = False
        try:
            with self._database.write(service=False) as conn:
                found = work(conn)
                self._probe(f"{name}.before_commit")
                is_being_saved = True
            self._probe(f"{name}.after_commit")
            return found
        except DBAPIError as error:
            raise _clear(error, is_being_saved=is_being_saved) from error


def cancel_with(conn: Connection, instance_id: str, reason: str | None) -> bool:
    """Cancel an instance as part of a transaction.

    One that nobody works on is cancelled by it; a running one is asked to stop, and does so at its next step.

    :returns: False if it has ended already.
    :raises InstanceNotFoundError: there is none of that id.
    :raises UsageError: *reason* cannot be stored.
    """
    _refuse_impossible(instance_id)
    if reason is not None and (not is_storable(reason) or len(reason) > _LONGEST_REASON):
        raise UsageError(
            f"cancel(reason={reason!r:.80}): a text of at most {_LONGEST_REASON} characters is needed, without NUL or"
            " surrogates."
        )
    serial.become_writer(conn)
    while True:
        run = instances.current_run(conn, instance_id)
        done = instances.request_cancel(conn, run, reason)
        row = instances.outcome(conn, run) if done is False else None
        if row is None or row["status"] != Status.RECURRED:
            break  # otherwise it has recurred between the two looks: its successor is meant
    if done is None:
        raise InstanceNotFoundError(instance_id)
    return done


def retry_with(conn: Connection, instance_id: str) -> bool:
    """Take up a failed or blocked instance again as part of a transaction; a final failed step is tried anew.

    Its subscriptions ended with its failure; those of this run begin again, from now on.

    :returns: False if the instance needs no such help: it is under way, or has ended otherwise.
    :raises InstanceNotFoundError: there is none of that id.
    :raises ChannelModeConflictError: it had subscribed to a channel that others use in another mode by now. Nothing is
        changed.
    """
    _refuse_impossible(instance_id)
    serial.become_writer(conn)
    row = instances.find(conn, instance_id)
    if row is None:
        raise InstanceNotFoundError(instance_id)
    has_failed = row["status"] == Status.FAILED
    wanted = history.subscriptions(conn, instance_id) if has_failed else {}
    for channel, mode in wanted.items():  # before anything is changed: whoever catches the error may commit
        found = channels.conflict(conn, channel=channel, mode=ChannelMode(mode))
        if found is not None:
            raise ChannelModeConflictError(channel, found.recorded, mode)
    if not instances.take_up_again(conn, instance_id):
        return False
    if has_failed:
        history.forget_last_failure(conn, instance_id)
        for channel, mode in wanted.items():
            channels.subscribe(conn, mailbox=row["mailbox"], channel=channel, mode=ChannelMode(mode))
    return True


def send_with(conn: Connection, message: OutgoingMessage) -> None:
    """Send as part of a transaction.

    :raises InstanceNotFoundError: it is for an instance that does not exist.
    """
    if message.addressee is None:
        insert_messages(conn, [message])
    elif not insert_if_known(conn, message):
        raise InstanceNotFoundError(message.addressee)


def _refuse_unknown(instance_id: str) -> NoReturn:
    raise InstanceNotFoundError(instance_id)


def _refuse_impossible(instance_id: str) -> None:
    """What no instance can be called is not asked for: the drivers have errors of their own for it.

    :raises InstanceNotFoundError: it is such an id.
    """
    if not is_storable_id(instance_id):
        raise InstanceNotFoundError(instance_id)


def _says_no_tables(error: DBAPIError) -> bool:
    return "no such table: edda_" in str(error.orig) or type(error.orig).__name__ == "UndefinedTable"


def _clear(error: DBAPIError, *, is_being_saved: bool = False) -> Exception:
    first_line = str(error.orig).splitlines()[0] if str(error.orig) else type(error.orig).__name__
    if is_outage(error) and is_being_saved:
        return DatabaseUnavailableError(
            f"The database did not answer ({first_line}) when the change was saved, so it may have been saved or not. Look"
            " before you try again; a start with an instance_id can simply be tried again."
        )
    if is_outage(error):
        return DatabaseUnavailableError(f"The database did not answer ({first_line}). Nothing was changed; try again.")
    if _says_no_tables(error):
        return DatabaseUnavailableError(
            f"The edda_ tables are not there ({first_line}). They are made when a worker starts, or by `flask edda upgrade`."
        )
    return error


def _instance(row: RowMapping, known: Mapping[str, set[str]]) -> Instance:
    values = dict(row)
    for name in ("input", "output", "error"):
        if values[name] is not None:
            values[name] = parse(values[name])
    values["status"] = status = Status(values["status"])
    of_service = known.get(values["service"])
    # Without any registered worker nothing can be said about one workflow in particular.
    is_runnable = status.is_finished or of_service is None or values["workflow_name"] in of_service
    return Instance(**values, is_runnable=is_runnable)
