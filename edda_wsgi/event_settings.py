"""The setting ``EVENTS``: whether and how CloudEvents are taken over HTTP.

The endpoint is closed until somebody has said how it is guarded, so AUTH has no default: a missing one is an error,
and ``None`` says that the endpoint is open on purpose. Secrets never appear in an error, a log or ``flask edda check``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from edda_engine.errors import ConfigurationError
from edda_engine.settings import check_name
from edda_wsgi.loading import load_check

_READY_MADE = ("edda_wsgi.auth.check_signature", "edda_wsgi.auth.check_bearer_token")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_HOW_TO_GUARD = (
    f"Name a callable that is given the request and returns True or False; {_READY_MADE[0]!r} and {_READY_MADE[1]!r} are"
    " ready made and take their secrets from SECRET. None leaves the endpoint open to everybody who can reach it."
)

Check = Callable[[Any], bool]


class EventSettings(BaseModel):
    """The keys of ``EVENTS``, in lower case."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    url_prefix: str | None = Field(
        None, description="Where the endpoint is mounted, such as '/events'. None: there is no endpoint."
    )
    auth: str | Check | None = Field(
        None, description="Who may deliver: the dotted path of a callable, a callable, or None for everybody."
    )
    secret: tuple[SecretStr, ...] = Field(
        (), description="For the ready-made checks: a secret, or several while one is exchanged for another."
    )
    tolerance_seconds: float = Field(
        300.0, gt=0, description="How far the time of a signature may be from the time of this host."
    )
    max_bytes: int = Field(4_194_304, ge=1, description="The largest body of a request; a larger one is not read.")
    max_batch: int = Field(
        1000, ge=1, le=100_000, description="The most events of one request; they are one transaction."
    )
    deduplication_days: float = Field(
        7.0, gt=0, le=36_500, description="How long an event is remembered, so that a redelivery does nothing."
    )

    @field_validator("url_prefix")
    @classmethod
    def _is_a_fixed_path(cls, value: str | None) -> str | None:
        if value is not None and not _PREFIX.fullmatch(value):
            raise ValueError("it must be a path such as '/events', without a slash at its end")
        return value

    @field_validator("auth")
    @classmethod
    def _can_be_called(cls, value: Any) -> Any:
        if isinstance(value, str) and not _DOTTED_PATH.fullmatch(value):
            raise ValueError("it must be the dotted path of a callable, such as 'shop.auth.may_deliver'")
        if value is not None and not isinstance(value, str):
            load_check(value)
        return value

    @field_validator("secret", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        given = [value] if isinstance(value, (str, SecretStr)) else value
        if not isinstance(given, (list, tuple)) or not all(isinstance(each, (str, SecretStr)) for each in given):
            raise ValueError("it must be a text, or a list of texts")
        texts = [each if isinstance(each, str) else each.get_secret_value() for each in given]
        if not all(text.strip() for text in texts):
            raise ValueError("it must not be empty")
        return tuple(texts)

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """The secrets of the ready-made checks."""
        return tuple(secret.get_secret_value().encode() for secret in self.secret)

    def __str__(self) -> str:
        shown = {name.upper(): getattr(self, name) for name in type(self).model_fields}
        shown["SECRET"] = f"<{len(self.secret)} of them>" if self.secret else ()
        return str(shown if self.url_prefix is not None else {"URL_PREFIX": None})


def event_settings(given: object) -> EventSettings:
    """Check the setting ``EVENTS``.

    :raises ConfigurationError: an unknown key, a wrong value, or nothing said of who may deliver.
    """
    if isinstance(given, EventSettings):
        return given
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"The setting EVENTS must be a dict such as {{'URL_PREFIX': '/events'}}, not a {type(given).__name__}. If it"
            " comes from the environment, it must be JSON."  # and is not shown: it may hold the secret
        )
    known = [name.upper() for name in EventSettings.model_fields]
    for name in given:
        check_name(str(name), known, source="EVENTS")
    try:
        settings = EventSettings(**{name.lower(): value for name, value in given.items()})
    except ValidationError as error:
        raise ConfigurationError(_described(error)) from None  # the cause would hold what was given, secrets too
    if settings.url_prefix is not None and "AUTH" not in given:
        raise ConfigurationError(
            f"EVENTS sets URL_PREFIX and says nothing of who may deliver. Set AUTH. {_HOW_TO_GUARD}"
        )
    needs_secret = settings.auth in _READY_MADE or getattr(settings.auth, "needs_secret", False)
    if needs_secret and not settings.secret:
        raise ConfigurationError(
            f"EVENTS sets AUTH to {settings.auth!r}, which needs a secret. Set SECRET, from an environment variable for"
            " example; while one secret is exchanged for another, a list of both."
        )
    # A signature is good for as long after its time as before, so the same request may come this much later.
    is_signed = settings.auth == _READY_MADE[0] or getattr(settings.auth, "has_time", False)
    if is_signed and settings.deduplication_days * 86_400 < 2 * settings.tolerance_seconds:
        raise ConfigurationError(
            f"EVENTS forgets events after DEDUPLICATION_DAYS = {settings.deduplication_days:g}, while a signature can be"
            f" used for {2 * settings.tolerance_seconds:g} s (twice TOLERANCE_SECONDS): what was overheard could be sent"
            " again and act twice. Raise the one, or lower the other."
        )
    return settings


def _described(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]).upper()
    value = "" if name == "SECRET" else f" = {first['input']!r}"
    said = first["msg"].removeprefix("Value error, ")
    return f"The setting EVENTS[{name!r}]{value} is wrong: {said}."
