"""What a receiver takes is found among what it has, whatever a queue holds and whatever the server believes of both."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from edda_engine.storage import inboxes
from tests.integration.engines import run, storage

FILL = text(
    "INSERT INTO edda_inbox (receiver, kind, name, seq, is_queued, is_new)"
    " SELECT '', 'message', 'work', n, true, false FROM generate_series(1, 20000) n"
)


def plan(conn: Connection, statement: str, values: str) -> str:
    """As of a prepared statement, which is planned without its values."""
    conn.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
    conn.exec_driver_sql(f"PREPARE asked AS {statement}")
    return "\n".join(conn.exec_driver_sql(f"EXPLAIN EXECUTE asked ({values})").scalars())


def numbered(statement: Any) -> str:
    compiled: Any = statement.compile(dialect=PGDialect_psycopg(paramstyle="numeric_dollar"))
    return str(compiled)


def test_the_oldest_of_one_receiver_is_not_looked_for_among_all_others(postgres_url: str) -> None:
    def look(conn: Connection) -> str:
        conn.execute(FILL)
        conn.execute(text("ANALYZE edda_inbox"))
        return plan(conn, numbered(inboxes._TAKE), "'somebody', 'message', 'work'")

    with storage(postgres_url) as database:
        found = run(database, look)
    assert "Index Only Scan using pk_edda_inbox" in found, found
