"""What can be set about an engine, with defaults that suit most.

Lower-case here; a Flask application writes the same names in upper case (see ``edda_wsgi.settings``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, field_validator

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
        description="How long a lease holds without renewal. Renewed every third of it while the worker lives.",
    )
    threads: int = Field(16, ge=1, le=1000, description="Sync activities that run side by side in one process.")
    max_running: int = Field(256, ge=1, description="Instances that one process works on at the same time.")
    max_parked: int = Field(
        1000, ge=0,
        description="Waiting bodies kept suspended in memory, to go on without replay; the least recently used goes first.",
    )  # fmt: skip
    shutdown_seconds: float = Field(
        20.0,
        ge=0,
        description="How long a stopping process lets running activities finish before it hands leases back.",
    )
    poll_interval_seconds: float = Field(
        1.0, gt=0, le=60, description="How often a worker asks for due work when nothing wakes it."
    )
    recovery_interval_seconds: float = Field(
        0.5, gt=0, le=60,
        description="How often a worker looks for siblings that died, to take over their instances.",
    )  # fmt: skip
    max_payload_bytes: int = Field(
        1_048_576,
        ge=1,
        description="The largest input, result, arguments of an activity, or event, as JSON; a larger one is refused with an error.",
    )
    auto_migrate: bool = Field(True, description="Create and upgrade the edda_ tables at start.")
    listen: bool = Field(
        True,
        description="On PostgreSQL keep one connection that tells siblings at once when this process dies."
        " Set it to False behind a transaction pooler; recovery then waits for the lock timeout.",
    )

    @field_validator("default_retry_policy", mode="before")
    @classmethod
    def _policy_from_dict(cls, value: object) -> object:
        if isinstance(value, dict):
            try:
                return RetryPolicy(**value)
            except Exception as error:
                raise ValueError(str(error)) from error
        return value
