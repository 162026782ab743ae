"""The one lock of message delivery: who distributes messages, and who begins to want some, take turns.

On PostgreSQL it is an advisory lock that ends with its transaction. A process that is stopped while it holds the lock
would stop the delivery of all: the server ends such a transaction after a while. SQLite admits one writer anyway.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

_KEY = 0x6564646D  # "eddm"
_LIMIT = "set_config('idle_in_transaction_session_timeout', '10s', true)"
_WAIT = text(f"SELECT pg_advisory_xact_lock({_KEY}), {_LIMIT}")
_TRY = text(f"SELECT pg_try_advisory_xact_lock({_KEY}), {_LIMIT}")


def serialize_delivery(conn: Connection) -> None:
    """Wait for the turn; it is held until the transaction ends."""
    if conn.dialect.name == "postgresql":
        conn.execute(_WAIT)


def try_to_serialize_delivery(conn: Connection) -> bool:
    """Take the turn if nobody has it."""
    if conn.dialect.name != "postgresql":
        return True
    return bool(conn.execute(_TRY).scalar_one())
