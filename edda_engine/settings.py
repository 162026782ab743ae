"""What can be set about an engine, with defaults that suit most.

Lower-case here; a Flask application writes the same names in upper case (see ``edda_wsgi.settings``).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edda_engine.core.codec import is_name
from edda_engine.core.retrying import RetryPolicy
from edda_engine.errors import ConfigurationError


def check_name(name: str, known: Iterable[str], *, source: str) -> None:
    """Refuse a setting that does not exist, and suggest the nearest one that does.

    :raises ConfigurationError: *name* is not among *known*.
    """
    known = sorted(known)
    if name in known:
        return
    as_known = name.upper() if known and known[0].isupper() else name.lower()
    nearest = difflib.get_close_matches(as_known, known, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise ConfigurationError(f"Unknown setting {name!r} in {source}.{hint} Known settings: {', '.join(known)}.")


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """Where events of the outbox go: a publisher by its dotted path, and its options."""

    backend: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    retention_days: float = 7.0
    concurrency: int = 16

    def __str__(self) -> str:
        """As an operator may read it: options may be secret."""
        shown = [
            f"{name.upper()}={_without_password(value) if name == 'url' else '...'}"
            for name, value in self.options.items()
        ]
        return f"{self.backend}({', '.join(shown)}), RETENTION_DAYS={self.retention_days:g}, CONCURRENCY={self.concurrency}"

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> OutboxSettings:
        """Read a dict as it stands in a settings module.

        :raises ConfigurationError: a name or value is wrong; the message tells no option's value.
        """
        if wrong := [name for name in given if not isinstance(name, str) or not name.isupper()]:
            raise ConfigurationError(f"OUTBOX has the option {wrong[0]!r}; its options are in upper case, such as URL.")
        options = {name.lower(): value for name, value in given.items() if name not in _OF_THE_RELAY}
        backend = given.get("BACKEND", HTTP_PUBLISHER if "URL" in given else None)
        if not isinstance(backend, str) or "." not in backend:
            raise ConfigurationError(
                f"OUTBOX['BACKEND'] is the dotted path of a publisher, such as {HTTP_PUBLISHER!r}, not {backend!r}."
            )
        days, concurrency = given.get("RETENTION_DAYS", 7), given.get("CONCURRENCY", 16)
        if not isinstance(days, (int, float)) or isinstance(days, bool) or not math.isfinite(days) or days < 0:
            raise ConfigurationError(f"OUTBOX['RETENTION_DAYS'] is a number of days, at least 0, not {days!r}.")
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or not 1 <= concurrency <= 1000:
            raise ConfigurationError(f"OUTBOX['CONCURRENCY'] is a whole number from 1 to 1000, not {concurrency!r}.")
        return cls(backend, options, float(days), concurrency)


LONGEST_LOCK_SECONDS = 31_536_000

HTTP_PUBLISHER = "edda_engine.outbox.publishers.HttpPublisher"
_OF_THE_RELAY = ("BACKEND", "RETENTION_DAYS", "CONCURRENCY")


def _without_password(url: object) -> str:
    try:
        parsed = urlsplit(str(url))
        return parsed._replace(netloc=parsed.netloc.rpartition("@")[2], query="").geturl()
    except ValueError:
        return "..."


class EngineSettings(BaseModel):
    """The settings of one engine; validated once, then fixed."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    service_name: str = Field(
        "edda", min_length=1, max_length=100,
        description="Workers claim only instances of their own service; applications that share a database differ in it.",
    )  # fmt: skip
    default_retry_policy: RetryPolicy | None = Field(
        None,
        description="For activities without a retry_policy of their own; a RetryPolicy or a dict of its parameters.",
    )
    lock_timeout_seconds: float = Field(
        300.0,
        gt=0,
        le=LONGEST_LOCK_SECONDS,
        description="How long a lease holds without renewal. Renewed every third of it while the worker lives.",
    )
    threads: int = Field(16, ge=1, le=1000, description="Sync activities that run side by side in one process.")
    max_running: int = Field(256, ge=1, description="Instances that one process works on at the same time.")
    max_parked: int = Field(
        1000, ge=0,
        description="Waiting bodies kept suspended in memory, to go on without replay; the least recently used goes first.",
    )  # fmt: skip
    max_takeovers: int = Field(
        20, ge=1,
        description="So often in a row may workers die while they run an instance, with nothing recorded in between; then it"
        " is blocked, and waits for an operator's retry.",
    )  # fmt: skip
    shutdown_seconds: float = Field(
        20.0,
        ge=0,
        description="How long a stopping process lets running activities finish before it hands leases back.",
    )
    poll_interval_seconds: float = Field(
        1.0, gt=0, le=60,
        description="How often a worker looks for due work when nothing wakes it; five times as seldom while it listens.",
    )  # fmt: skip
    recovery_interval_seconds: float = Field(
        0.5, gt=0, le=60,
        description="How often a worker looks for siblings that died, to take over their instances.",
    )  # fmt: skip
    max_payload_bytes: int = Field(
        1_048_576,
        ge=1,
        description="The largest input, result, arguments of an activity, or event, as JSON; a larger one is refused with an error.",
    )
    message_retention_days: float = Field(
        7.0, gt=0,
        description="How long messages are kept that nobody has subscribed to yet, or whose instance has ended. What a live"
        " subscriber has yet to read is kept for ever.",
    )  # fmt: skip
    instance_retention_days: float | None = Field(
        None, gt=0,
        description="How long instances that have ended are kept, with their histories; workers delete older ones in small"
        " batches. None keeps them for ever; `flask edda prune` deletes on demand.",
    )  # fmt: skip
    auto_migrate: bool = Field(True, description="Create and upgrade the edda_ tables at start.")
    listen: bool = Field(
        True,
        description="On PostgreSQL keep one connection that hears of other processes' work, and tells siblings at once when"
        " this process dies. Set it to False behind a transaction pooler; polling then finds work, and recovery waits"
        " for the lock timeout.",
    )

    outbox: OutboxSettings | None = Field(
        None,
        description="Publishes the events of the outbox: a dict with BACKEND, the dotted path of a publisher, and its options"
        " in upper case. None keeps them unpublished.",
    )

    @field_validator("service_name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not is_name(value):
            raise ValueError("it must be a text without control characters")
        return value

    @field_validator("outbox", mode="before")
    @classmethod
    def _outbox_from_dict(cls, value: object) -> object:
        return OutboxSettings.from_mapping(value) if isinstance(value, Mapping) else value

    @field_validator("default_retry_policy", mode="before")
    @classmethod
    def _policy_from_dict(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        try:
            for name in value:
                check_name(str(name), [known.name for known in fields(RetryPolicy)], source="a RetryPolicy")
            return RetryPolicy(**value)
        except ConfigurationError as error:
            raise ValueError(str(error).rstrip(".")) from error


def outbox_to(given: Any, broker_url: str | None) -> Any:
    """What ``EddaApp(outbox_enabled=True)`` publishes to.

    :raises ConfigurationError: it does not say, or says it twice.
    """
    if (given is None) == (broker_url is None):
        raise ConfigurationError(
            "EddaApp(outbox_enabled=True) needs to know where events go: give broker_url=, or outbox= with a BACKEND;"
            " exactly one of them."
        )
    return {"URL": broker_url} if given is None else given


def engine_settings(**values: Any) -> EngineSettings:
    """The settings that were given to ``EddaApp``.

    :raises ConfigurationError: an unknown name, or a wrong value.
    """
    for name in values:
        check_name(name, EngineSettings.model_fields, source="EddaApp(...)")
    try:
        return EngineSettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        wrong = first["loc"][0] if first["loc"] else "settings"
        value = "..." if wrong == "outbox" else repr(first.get("input"))  # which may hold a token
        raise ConfigurationError(f"EddaApp({wrong}={value}) is wrong: {first['msg']}.") from None
