"""What ``find_instances()`` may be asked, checked before the database is.

A question often comes from a page, with words that a stranger has typed. So whatever cannot be asked is a
:class:`UsageError` that says what can, the same on both databases, and never an error of a driver.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from edda_engine.core.codec import MAX_ID_LENGTH, codec_for, is_storable, parse
from edda_engine.core.status import Status
from edda_engine.errors import PayloadError, UsageError
from edda_engine.events import check_text

MAX_PAGE = 1000

_ANY = codec_for(Any)
_INTEGERS = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Criteria:
    """A question that can be asked. *after* is where the page before ended; *input_filters* hold JSON texts."""

    statuses: list[Status] | None
    workflow_name: str | None
    instance_id: str | None
    input_filters: Mapping[str, str]
    started_after: datetime | None
    started_before: datetime | None
    after: tuple[datetime, str] | None
    limit: int


def checked(
    *,
    status: Status | str | Collection[Status | str] | None,
    workflow_name: str | None,
    instance_id: str | None,
    input_filters: Mapping[str, Any] | None,
    started_after: datetime | None,
    started_before: datetime | None,
    limit: int,
    page_token: str | None,
) -> Criteria:
    """What is asked for, if that can be asked.

    :raises UsageError: it cannot.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
        raise UsageError(
            f"find_instances(limit={limit!r:.40}): between 1 and {MAX_PAGE}; ask for further pages with page_token."
        )
    for name, moment in (("started_after", started_after), ("started_before", started_before)):
        if moment is not None and not _is_instant(moment):
            raise UsageError(
                f"find_instances({name}={moment!r:.80}): give an aware time, such as datetime.now(timezone.utc)."
            )
    for name, text in (("workflow_name", workflow_name), ("instance_id", instance_id)):
        if text is not None:
            check_text("find_instances", name, text, MAX_ID_LENGTH)
    return Criteria(
        statuses=_statuses(status),
        workflow_name=workflow_name,
        instance_id=instance_id,
        input_filters={path: _wanted(path, value) for path, value in (input_filters or {}).items()},
        started_after=started_after,
        started_before=started_before,
        after=_decoded(page_token) if page_token else None,
        limit=limit,
    )


def _is_instant(moment: object) -> bool:
    try:
        return isinstance(moment, datetime) and moment.tzinfo is not None and bool(moment.astimezone(UTC))
    except OverflowError:  # it is in the year 0, or 10000
        return False


def token_of(created_at: datetime, instance_id: str) -> str:
    """The token of the page after this instance."""
    text = json.dumps([created_at.isoformat(), instance_id])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decoded(token: str) -> tuple[datetime, str]:
    try:
        moment, instance_id = parse(base64.urlsafe_b64decode(token.encode()))
        created_at = datetime.fromisoformat(moment).astimezone(UTC)
        if not moment.endswith("+00:00") or not is_storable(instance_id):
            raise ValueError
        return created_at, instance_id
    except (ValueError, TypeError, AttributeError, OverflowError):  # whatever stands in a forged one
        raise UsageError(
            f"page_token {token!r:.40} is not one that find_instances() returned; leave it out to begin anew."
        ) from None


def _statuses(given: Status | str | Collection[Status | str] | None) -> list[Status] | None:
    if given is None:
        return None
    words = [given] if isinstance(given, str) else list(given)
    try:
        return [Status(word) for word in words]
    except ValueError:
        unknown = next(word for word in words if word not in list(Status))
        raise UsageError(f"{unknown!r:.80} is not a status; statuses are {', '.join(Status)}.") from None


def _wanted(path: str, value: Any) -> str:
    """The JSON text of a value that an input is to have."""
    call = f"find_instances(input_filters={{{path!r:.80}: ...}})"
    if not is_storable(path):
        raise UsageError(f"{call}: a path is a text such as 'customer.country', without NUL or surrogates.")
    if isinstance(value, int) and value not in _INTEGERS:
        raise UsageError(f"{call}: an integer beyond 64 bits cannot be compared; look for another part of the input.")
    try:
        return _ANY.round_trip(value, owner=call)[0]
    except PayloadError as error:
        raise UsageError(f"{call}: the value at {error.path} {error.problem}. Give a JSON value.") from error
