"""The audit: what the customers asked for beside what the database holds, row by row.

Each check compares two multisets, so a row too many and a row too few both show, and neither hides the other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from example_flask_app.models import ARTICLES


@dataclass(frozen=True, slots=True)
class Wanted:
    """An order as its customer remembers it."""

    number: str
    lines: tuple[tuple[str, int], ...]

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


def audit(conn: Connection, wanted: Iterable[Wanted], charges: Iterable[Mapping[str, Any]]) -> list[Check]:
    """Compare *wanted* with the shop's tables, and the shop's payments with the *charges* of the payment service."""
    orders = list(wanted)
    numbers = Counter(order.number for order in orders)
    sold: Counter[Hashable] = Counter()
    for order in orders:
        for sku, quantity in order.lines:
            sold[sku] += quantity

    def rows(sql: str) -> Counter[Hashable]:
        return Counter(tuple(row) if len(row) > 1 else row[0] for row in conn.execute(text(sql)))

    payments = rows("SELECT reference, amount_cents FROM shop_payment")
    return [
        Check("orders placed", Counter(numbers), rows("SELECT number FROM shop_order")),
        Check("orders fulfilled", Counter(numbers), rows("SELECT number FROM shop_order WHERE status = 'fulfilled'")),
        Check(
            "payments",
            Counter((order.number, order.total_cents) for order in orders),
            rows("SELECT order_number, amount_cents FROM shop_payment"),
        ),
        Check(
            "charges by the payment service",
            payments,
            Counter((charge["reference"], charge["amount_cents"]) for charge in charges),
        ),
        Check(
            "stock movements",
            Counter((order.number, sku, -quantity) for order in orders for sku, quantity in order.lines),
            rows("SELECT order_number, sku, quantity FROM shop_stock_movement"),
        ),
        Check(
            "pieces gone from the shelves",
            sold,
            Counter({sku: gone for sku, gone in _gone(conn).items() if gone}),
        ),
        Check("deliveries", Counter(numbers), _deliveries(conn)),
        Check(
            "events in the outbox",
            Counter((order.number, kind) for order in orders for kind in ("order.paid", "order.fulfilled")),
            rows("SELECT subject, type FROM edda_outbox"),
        ),
    ]


def _gone(conn: Connection) -> dict[str, int]:
    return dict(conn.execute(text("SELECT sku, start_quantity - quantity FROM shop_article")).all())


def _deliveries(conn: Connection) -> Counter[Hashable]:
    """The order numbers of completed ``deliver`` workflows."""
    query = "SELECT input FROM edda_instances WHERE workflow_name = 'deliver' AND status = 'completed'"
    inputs = conn.execute(text(query)).scalars()
    return Counter((json.loads(found) if isinstance(found, str) else found)["number"] for found in inputs)
