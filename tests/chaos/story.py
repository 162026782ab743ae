"""What is to happen to each order, and the tables that tell whether it did: known to the shop and to its judge.

The table of entries has no unique constraint on purpose: what is written twice must be seen, not refused.
"""

from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, String, Table

PACKERS = ("packer-1", "packer-2", "packer-3")
READERS = ("reader-1", "reader-2")
PARCELS, NEWS = "parcels", "news"
CLOSING = 0
"""The number of an order that nobody places: its payment closes the shop."""

THREADS, POOL_SIZE, REQUEST_THREADS = 8, 8, 4
LOCK_SECONDS = 2.0

metadata = MetaData()
orders = Table("chaos_order", metadata, Column("number", Integer, primary_key=True, autoincrement=False))
payments = Table("chaos_payment", metadata, Column("number", Integer, primary_key=True, autoincrement=False))
entries = Table(
    "chaos_entry",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("what", String(100), nullable=False),
    Column("pid", Integer, nullable=False),
)

_STEPS = ("reserve:1", "label:1", "charge:1", "wait_event:1")
PAID_STEPS = (*_STEPS, "sleep:1", "hand_over:1", "ctx.first_of:1", "receive:1", "sleep:2", "close:1")
UNPAID_STEPS = (*_STEPS, "call_off:1")
PAID_ROWS = ("reserved", "charged", "handed over", "packed", *(f"read by {name}" for name in READERS), "closed")
UNPAID_ROWS = ("reserved", "charged", "called off")
PAID_NEWS = ("order.handed_over", "order.closed")
UNPAID_NEWS = ("order.called_off",)


def is_paid(number: int) -> bool:
    """One in ten finds nobody who pays, and is called off when its term is over."""
    return number % 10 != 4


def failures(number: int) -> int:
    """So many attempts to charge it fail, each after it has written and committed."""
    return number % 4


def order_id(number: int) -> str:
    """The instance of an order."""
    return f"order-{number}"
