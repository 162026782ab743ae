"""The endpoint for CloudEvents over HTTP: a blueprint, mounted only when ``EVENTS["URL_PREFIX"]`` is set.

How it thinks. A sender needs to know one thing: may it forget the event? 202 says yes, and is given only after the
commit. 400, 401, 403, 411, 413 and 415 say that the same request would be refused again (``"retryable": false``). 500 and
503 say that nothing was kept and that it should come again. So every way out of a request ends in one of these, as
JSON, and what was not foreseen is retryable: an event delivered twice does nothing twice.

Nothing is read before it is asked for: first the declared length, then who is asking, then the body, up to a limit.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import ClientDisconnected, HTTPException, LengthRequired, RequestEntityTooLarge
from werkzeug.routing import BaseConverter

from edda_engine.core.codec import is_storable_id
from edda_engine.errors import ConfigurationError, DatabaseUnavailableError, InstanceNotFoundError
from edda_engine.runtime.probes import Probe
from edda_engine.storage.database import is_outage
from edda_wsgi.application import Application
from edda_wsgi.event_settings import EventSettings
from edda_wsgi.intake import EventHandlers, HandlerFailedError, Intake, UnacceptableError
from edda_wsgi.loading import load_check

_log = logging.getLogger(__name__)

BLUEPRINT = "edda_events"

_NAMES = {401: "UnauthorizedError", 403: "ForbiddenError", 413: "PayloadTooLargeError"}
_RETRY_AFTER_SECONDS = "1"
_TOO_LARGE = "The body is larger than EVENTS['MAX_BYTES'] allows. Send fewer events at once, or refer to large data."
_INCOMPLETE = "The body of the request could not be read to its end. Send it again as a whole."
_NO_LENGTH = "The server in front of this endpoint does not read bodies that come in chunks. Send Content-Length."


def reader_for(settings: EventSettings) -> ModuleType | None:
    """What reads requests, if there is to be an endpoint at all.

    :raises ConfigurationError: the package that it needs is not installed.
    """
    if settings.url_prefix is None:
        return None
    try:
        return importlib.import_module("edda_wsgi.incoming")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "cloudevents":
            raise
        raise ConfigurationError(
            f"EVENTS sets URL_PREFIX, which needs the package cloudevents, version 2 ({error})."
            " Install edda-wsgi[cloudevents]."
        ) from error


def mount(app: Flask, application: Application, reader: Any, handlers: EventHandlers, *, probe: Probe) -> None:
    """Add the endpoint to an application."""
    settings = application.settings.events
    endpoint = Endpoint(application, settings, reader, Intake(app, application, handlers, probe=probe))
    blueprint = Blueprint(BLUEPRINT, __name__, url_prefix=settings.url_prefix)
    blueprint.add_url_rule("", "receive", endpoint.receive, methods=["POST"], strict_slashes=False)
    app.url_map.converters[_AnyId.name] = _AnyId
    # Two slashes merged into one would be the id of another instance.
    rule = f"/cancel/<{_AnyId.name}:instance_id>"
    blueprint.add_url_rule(rule, "cancel", endpoint.cancel, methods=["POST"], merge_slashes=False)
    app.register_blueprint(blueprint)


class _AnyId(BaseConverter):
    """The rest of a path as it is: an id may hold slashes, and begin with one."""

    name = "edda_instance_id"
    regex = "(?s:.+)"
    part_isolating = False
    weight = 200


class Endpoint:
    """The views."""

    def __init__(self, application: Application, settings: EventSettings, reader: Any, intake: Intake) -> None:
        self._application, self._settings = application, settings
        self._reader, self._intake = reader, intake
        self._check: Callable[[Any], object] | None = None

    def receive(self) -> Response:
        """``POST {prefix}``: one event, or a batch."""

        def accept() -> Response:
            most = self._settings.max_batch
            events = self._reader.read_events(dict(request.headers), _body(), most=most)
            self._intake.accept(events)
            return _answer(202, {"status": "accepted"})

        return self._answered(accept)

    def cancel(self, instance_id: str) -> Response:
        """``POST {prefix}/cancel/{instance_id}``, with a JSON object ``{"reason": ...}`` or without a body."""

        def accept() -> Response:
            reason = self._reader.read_object(_body()).get("reason")
            if reason is not None and not _is_text(reason):
                raise UnacceptableError(400, "InvalidRequestError", "reason must be a text without control characters.")
            if not is_storable_id(instance_id):
                raise InstanceNotFoundError(instance_id)
            done = self._application.cancel(instance_id, reason, None)
            return _answer(202, {"status": "accepted"}) if done else _answer(200, {"status": "ended already"})

        return self._answered(accept)

    def _answered(self, accept: Callable[[], Response]) -> Response:
        try:
            _cap_body(self._settings.max_bytes)
            self._admit()
            self._application.tables.ensure()
            return accept()
        except UnacceptableError as error:
            answer = _refusal(error.status, error.error_type, str(error))
            if error.status == 401:
                answer.headers["WWW-Authenticate"] = getattr(self._check, "challenge", "Custom")
            return answer
        except InstanceNotFoundError as error:
            return _refusal(404, type(error).__name__, str(error))
        except HTTPException as error:
            return self._refused_by(error)
        except Exception as error:  # whatever happened, the sender is to be told to come again
            return _failure(error)

    def _admit(self) -> None:
        """Refuse who may not deliver.

        :raises HTTPException: the check said no, or raised it.
        """
        if self._settings.auth is None:
            return
        if self._check is None:
            self._check = load_check(self._settings.auth)
        answer = self._check(request)
        if answer is True:
            return
        if answer is False or answer is None:
            raise UnacceptableError(401, _NAMES[401], "The request does not say who sends it, or not rightly.")
        raise ConfigurationError(
            f"EVENTS['AUTH'] answered with a {type(answer).__name__}; it must return True or False. Nobody is let in."
        )

    def _refused_by(self, error: HTTPException) -> Response:
        status = error.get_response().status_code
        if status < 400:
            status = 401  # a redirect to a page where one logs in is no answer for a machine
        if status >= 500:
            return _failure(error, status=status)
        return _refusal(status, _NAMES.get(status, "InvalidRequestError"), error.description or error.name)


class _CappedBody(io.RawIOBase):
    """The body of a request, of which no more is read than may be kept in memory."""

    def __init__(self, stream: Any, *, limit: int, declared: int | None) -> None:
        self._stream, self._limit, self._declared = stream, limit, declared
        self._count = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some.

        :raises RequestEntityTooLarge: there is more than the limit.
        :raises ClientDisconnected: it ended in the middle, or its chunks are garbled.
        """
        try:
            piece = self._stream.read(len(buffer))
        except Exception as error:  # each server has classes of its own for both
            raise ClientDisconnected(_INCOMPLETE) from error
        self._count += len(piece)
        if self._count > self._limit:
            raise RequestEntityTooLarge(_TOO_LARGE)
        # Servers only end the stream; half of a body that is not JSON would look like a whole one.
        if not piece and self._declared is not None and self._count < self._declared:
            raise ClientDisconnected(_INCOMPLETE)
        buffer[: len(piece)] = piece
        return len(piece)


def _cap_body(limit: int) -> None:
    declared, is_terminated = request.content_length, request.environ.get("wsgi.input_terminated", False)
    if request.headers.get("Transfer-Encoding") and not is_terminated:
        raise LengthRequired(_NO_LENGTH)  # it would look like a request without a body
    if (declared or 0) > limit:
        raise RequestEntityTooLarge(_TOO_LARGE)
    # Before anybody reads it, and also for a body that does not say how long it is.
    request.environ["wsgi.input"] = _CappedBody(request.environ["wsgi.input"], limit=limit, declared=declared)


def _body() -> bytes:
    """The body of the request.

    :raises ConfigurationError: somebody has read it before, and left nothing: what it said would be lost.
    """
    body = request.get_data()
    if not body and request.content_length:
        raise ConfigurationError(
            "The body of a request to the event endpoint was read before the endpoint could, by a before_request function"
            " or by EVENTS['AUTH'] that asked for request.form or request.stream. Use request.get_data() there, or leave"
            f" out requests whose request.blueprint is {BLUEPRINT!r}."
        )
    return body


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 2000


def _failure(error: Exception, *, status: int = 500) -> Response:
    """Nothing was kept; the sender is to come again. What went wrong is for the log, not for the sender."""
    if isinstance(error, DatabaseUnavailableError) or is_outage(error):
        _log.warning("An event was not stored: the database does not answer (%s)", type(error).__name__)
        answer = _refusal(
            503, DatabaseUnavailableError.__name__, "The database does not answer. Deliver it again.", retryable=True
        )
        answer.headers["Retry-After"] = _RETRY_AFTER_SECONDS
        return answer
    _log.error("An event was not stored: %s", type(error).__name__, exc_info=error)
    cause = error.__cause__ if isinstance(error, HandlerFailedError) and error.__cause__ is not None else error
    said = "Something failed here, and nothing was kept. Deliver it again."
    return _refusal(status, type(cause).__name__, said, retryable=True)


def _refusal(status: int, error_type: str, message: str, *, retryable: bool = False) -> Response:
    if not retryable:
        _log.info("Refused a request to the event endpoint: %s %s", status, error_type)
    return _answer(status, {"error": message, "error_type": error_type, "retryable": retryable})


def _answer(status: int, content: dict[str, Any]) -> Response:
    return Response(json.dumps(content) + "\n", status, mimetype="application/json")
