"""Whoever vanishes in the middle of a transaction keeps its locks only for a while.

A host may be cut off after a lock was given and before its commit arrives, and the network may carry one direction only.
Nothing tells the server, which would keep the locks until its connections time out: a quarter of an hour, or more. So a
statement that locks says how long its transaction may be silent. That ends with the transaction, and needs no setting of
the connection, which a pooler would pass on to others.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, func, literal_column, select

LONGEST_SILENCE = "10s"
"""Far more than a process needs between two statements of ours, and less than anybody should have to wait."""


def silence_is_limited() -> ColumnElement[str]:
    """For an expression of a statement on PostgreSQL."""
    return func.set_config("idle_in_transaction_session_timeout", LONGEST_SILENCE, literal_column("true"))


def limiting_silence(dialect: str) -> tuple[ColumnElement[Any], ...]:
    """One more column of the rows that a statement locks; none on SQLite. It is asked for once, not for each row."""
    return (select(silence_is_limited()).scalar_subquery(),) if dialect == "postgresql" else ()
