"""The judge: what was ordered beside what is there, row by row, once the shop is closed.

Each check compares two multisets, as that of the demo does, so that a row too many and a row too few both show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from example_flask_app.audit import Check
from tests.chaos import story

_LEFT = {
    "workflows not ended": "SELECT count(*) FROM edda_instances WHERE completed_at IS NULL",
    "workflows failed or cancelled": "SELECT count(*) FROM edda_instances WHERE status IN ('failed', 'cancelled')",
    "leases": "SELECT count(*) FROM edda_instances WHERE locked_by IS NOT NULL OR wake_at IS NOT NULL",
    "waits": "SELECT count(*) FROM edda_waits",
    "retries": "SELECT count(*) FROM edda_retries",
    "subscriptions": "SELECT count(*) FROM edda_subscriptions",
    "messages undelivered": "SELECT count(*) FROM edda_messages WHERE is_new",
    "messages unread": "SELECT count(*) FROM edda_inbox",
    "events unpublished": "SELECT count(*) FROM edda_outbox WHERE status <> 'published'",
    "workers": "SELECT count(*) FROM edda_workers",
}
"""What must be gone when everything has ended and all servers have stopped."""


def audit(
    conn: Connection, numbers: Iterable[int], deliveries: Sequence[Mapping[str, Any]], leaked: Counter[str]
) -> list[Check]:
    """Compare the orders of these *numbers* with the tables, and with what the receiver has got."""
    everything = list(numbers)
    paid = [number for number in everything if story.is_paid(number)]
    unpaid = [number for number in everything if not story.is_paid(number)]
    written = _rows(conn, "SELECT what, number FROM chaos_entry")
    heard = {(event["source"], event["id"]): event for event in reversed(deliveries)}
    stories = dict.fromkeys(paid, story.PAID_NEWS) | dict.fromkeys(unpaid, story.UNPAID_NEWS)
    ends = Counter((story.order_id(number), "closed") for number in paid)
    ends += Counter((story.order_id(number), "called off") for number in unpaid)
    steps = Counter((story.order_id(number), step) for number in paid for step in story.PAID_STEPS)
    steps += Counter((story.order_id(number), step) for number in unpaid for step in story.UNPAID_STEPS)
    news = Counter((number, kind) for number, kinds in stories.items() for kind in kinds)
    return [
        Check("orders placed", Counter(everything), _rows(conn, "SELECT number FROM chaos_order")),
        Check("orders ended as they should", _any(ends), _ends(conn)),
        *(
            Check(
                f"rows {what!r}",
                _any(Counter(paid if what in story.PAID_ROWS else []))
                + _any(Counter(unpaid if what in story.UNPAID_ROWS else [])),
                _of(written, what),
            )
            for what in dict.fromkeys((*story.PAID_ROWS, *story.UNPAID_ROWS))
        ),
        Check("steps in the histories of orders", _any(steps), _steps(conn)),
        Check("events published", _any(news), _rows(conn, "SELECT CAST(subject AS INTEGER), type FROM edda_outbox")),
        Check(
            "events received", _any(news), Counter((int(found["subject"]), found["type"]) for found in heard.values())
        ),
        Check("stories received in order", _any(Counter(stories.items())), _any(Counter(_stories(heard).items()))),
        Check("left behind", Counter(), _left(conn)),
        Check("threads and connections leaked", Counter(), _any(leaked)),
    ]


def _any(found: Mapping[Any, int]) -> Counter[Hashable]:
    return Counter(dict(found))


def _of(written: Counter[Hashable], what: str) -> Counter[Hashable]:
    return Counter({row[1]: count for row, count in written.items() if row[0] == what})  # type: ignore[index]


def _rows(conn: Connection, sql: str) -> Counter[Hashable]:
    return Counter(tuple(row) if len(row) > 1 else row[0] for row in conn.execute(text(sql)))


def _ends(conn: Connection) -> Counter[Hashable]:
    """How each order has ended: what it returned, or else its status."""
    query = "SELECT instance_id, status, output FROM edda_instances WHERE workflow_name = 'chaos_order'"
    return Counter(
        (instance_id, str(output).strip('"') if status == "completed" else status)
        for instance_id, status, output in conn.execute(text(query))
    )


def _steps(conn: Connection) -> Counter[Hashable]:
    return _rows(conn, "SELECT instance_id, activity_id FROM edda_history WHERE instance_id LIKE 'order-%'")


def _stories(heard: Mapping[Any, Mapping[str, Any]]) -> dict[int, tuple[str, ...]]:
    """What was heard of each order, in the order in which it was heard first."""
    stories: dict[int, tuple[str, ...]] = {}
    for event in reversed(list(heard.values())):
        number = int(event["subject"])
        stories[number] = (*stories.get(number, ()), event["type"])
    return stories


def _left(conn: Connection) -> Counter[Hashable]:
    counted = {name: int(conn.execute(text(sql)).scalar_one()) for name, sql in _LEFT.items()}
    return Counter({name: count for name, count in counted.items() if count})
