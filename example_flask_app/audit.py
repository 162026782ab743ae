"""The audit: what the customers asked for beside what the database holds, row by row.

Each check compares two multisets, so a row too many and a row too few both show, and neither hides the other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from example_flask_app.models import ARTICLES


@dataclass(frozen=True, slots=True)
class Wanted:
    """An order as its customer remembers it."""

    number: str
    lines: tuple[tuple[str, int], ...]
    has_bank: bool = True
    """Without one nobody ever pays it, and it is called off when its term is over."""

    @property
    def story(self) -> tuple[str, ...]:
        """What the shop tells of it, in this order."""
        return ("order.paid", "order.fulfilled") if self.has_bank else ("order.called_off",)

    @property
    def total_cents(self) -> int:
        """What it costs."""
        return sum(ARTICLES[sku][1] * quantity for sku, quantity in self.lines)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the audit."""

    title: str
    expected: Counter[Hashable]
    found: Counter[Hashable]

    @property
    def duplicates(self) -> int:
        """How many are there that nobody asked for."""
        return (self.found - self.expected).total()

    @property
    def lost(self) -> int:
        """How many were asked for and are not there."""
        return (self.expected - self.found).total()

    @property
    def holds(self) -> bool:
        """Everything is there, exactly once."""
        return self.found == self.expected


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What the others have in their books."""

    charges: Sequence[Mapping[str, Any]]
    """Of the payment service."""
    deliveries: Sequence[Mapping[str, Any]]
    """Of the receiver of the shop's events; some came more than once."""

    @property
    def events(self) -> list[Mapping[str, Any]]:
        """The events that were delivered, each once, in the order of their first delivery."""
        return list({(event["source"], event["id"]): event for event in reversed(self.deliveries)}.values())[::-1]


def audit(conn: Connection, wanted: Iterable[Wanted], neighbours: Neighbours) -> list[Check]:
    """Compare *wanted* with the shop's tables, and these with the books of its *neighbours*."""
    orders = list(wanted)
    paid = [order for order in orders if order.has_bank]
    unpaid = [order for order in orders if not order.has_bank]
    fulfilled, called_off = (Counter(order.number for order in some) for some in (paid, unpaid))
    sold: Counter[Hashable] = Counter()
    for order in paid:
        sold.update(dict(order.lines))

    def rows(sql: str) -> Counter[Hashable]:
        return Counter(tuple(row) if len(row) > 1 else row[0] for row in conn.execute(text(sql)))

    return [
        Check("orders placed", fulfilled + called_off, rows("SELECT number FROM shop_order")),
        Check("orders fulfilled", fulfilled, rows("SELECT number FROM shop_order WHERE status = 'fulfilled'")),
        Check("orders called off", called_off, rows("SELECT number FROM shop_order WHERE status = 'called off'")),
        Check(
            "payments",
            Counter((order.number, order.total_cents) for order in paid),
            rows("SELECT order_number, amount_cents FROM shop_payment"),
        ),
        Check(
            "charges paid",
            rows("SELECT reference, amount_cents FROM shop_payment"),
            Counter((one["reference"], one["amount_cents"]) for one in neighbours.charges if one["outcome"] == "paid"),
        ),
        Check(
            "stock movements",
            Counter(
                (order.number, sku, quantity * sign)
                for order in orders
                for sku, quantity in order.lines
                for sign in ((-1,) if order.has_bank else (-1, 1))
            ),
            rows("SELECT order_number, sku, quantity FROM shop_stock_movement"),
        ),
        Check("pieces gone from the shelves", sold, _gone(conn)),
        Check("messages to the packers", fulfilled, _messages(conn)),
        Check(
            "events published",
            Counter((order.number, kind) for order in orders for kind in order.story),
            rows("SELECT subject, type FROM edda_outbox WHERE status = 'published'"),
        ),
        Check(
            "events received",
            Counter((order.number, kind) for order in orders for kind in order.story),
            Counter((event["subject"], event["type"]) for event in neighbours.events),
        ),
        Check(
            "stories received in order",
            Counter((order.number, order.story) for order in orders),
            Counter(_stories(neighbours.events).items()),
        ),
    ]


def _gone(conn: Connection) -> Counter[Hashable]:
    """Pieces that are not on their shelves any more."""
    found = conn.execute(text("SELECT sku, start_quantity - quantity FROM shop_article")).all()
    return Counter({sku: gone for sku, gone in found if gone})


def _messages(conn: Connection) -> Counter[Hashable]:
    """The numbers of the orders that packers have received, as their histories tell."""
    query = "SELECT event_data FROM edda_history WHERE event_type = 'MessageReceived'"
    events = [json.loads(found) if isinstance(found, str) else found for found in conn.execute(text(query)).scalars()]
    return Counter(event["result"]["data"] for event in events)


def _stories(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """What was heard of each order, in the order in which it was heard first."""
    stories: dict[str, tuple[str, ...]] = {}
    for event in events:
        stories[event["subject"]] = (*stories.get(event["subject"], ()), event["type"])
    return stories
