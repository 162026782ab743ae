"""What the drivers of PostgreSQL know of a transaction without asking the server (libpq manual, ``PQtransactionStatus``)."""

from __future__ import annotations

from typing import Any

IDLE = 0
"""Nothing was sent yet."""
BEGUN = 2
"""Something was sent, and nothing has failed."""
FAILED = 3
"""A statement has failed. Above it, the connection is gone."""


def state_of(raw: Any) -> int:
    """The state of the transaction of a connection of psycopg or psycopg2."""
    return int(raw.info.transaction_status)
