"""Turns: the one of message delivery, and one for each ordering key of the outbox.

Who distributes messages, and who begins to want some, take turns; so do relays that claim events of the same key. On
PostgreSQL these are advisory locks that end with their transaction. A process that is stopped while it holds the lock
would stop the delivery of all: the server ends such a transaction after a while. SQLite admits one writer anyway: who reads
before it writes asks for that turn first, because SQLite refuses at once to let a reader write whose snapshot is old.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, and_, false, func, literal_column, text, true, update

from edda_engine.storage.database import in_transaction
from edda_engine.storage.schema import instances
from edda_engine.storage.vanishing import LONGEST_SILENCE, silence_is_limited

_KEY = 0x6564646D  # "eddm"
_WAIT = text(
    f"SELECT pg_advisory_xact_lock({_KEY}), set_config('idle_in_transaction_session_timeout', '{LONGEST_SILENCE}', true)"
)
_CHANGE_NOTHING = update(instances).where(false()).values(instance_id=instances.c.instance_id)
_KEYS = 0x65646465  # "edde"
_TRY_KEYS = text(
    f"SELECT number FROM unnest(CAST(:numbers AS int[])) AS given (number) WHERE pg_try_advisory_xact_lock({_KEYS}, number)"
)


def turn(dialect: str) -> ColumnElement[bool]:
    """Whether the turn could be taken; for a statement that takes it only if there is a reason."""
    if dialect != "postgresql":
        return true()
    return and_(func.pg_try_advisory_xact_lock(literal_column(str(_KEY))), silence_is_limited().is_not(None))


def serialize_delivery(conn: Connection) -> None:
    """Wait for the turn; it is held until the transaction ends."""
    if conn.dialect.name == "postgresql":
        conn.execute(_WAIT)


def become_writer(conn: Connection) -> None:
    """Before anything is read, wait on SQLite until this transaction may write; until it ends nobody else does.

    Outside of a transaction, where sqlite3 reads, no snapshot grows old, and nothing is done. It cannot help one that has
    read already (https://www.sqlite.org/isolation.html, "SQLITE_BUSY_SNAPSHOT").
    """
    if conn.dialect.name == "sqlite" and in_transaction(conn):
        conn.execute(_CHANGE_NOTHING)


def try_to_serialize_keys(conn: Connection, keys: Collection[str]) -> set[str]:
    """Take the turns of these ordering keys, but for those that somebody else has; returns whose turns are taken."""
    if conn.dialect.name != "postgresql":
        return set(keys)
    numbers = {key: zlib.crc32(key.encode()) - 2**31 for key in keys}
    taken = set(conn.execute(_TRY_KEYS, {"numbers": sorted(set(numbers.values()))}).scalars())
    return {key for key, number in numbers.items() if number in taken}
