"""Putting a test's database back to what it was, as often as a test is run again.

On SQLite the whole file is copied by SQLite itself. On PostgreSQL the rows of every table are kept in temporary tables
of one connection, and put back, with the sequences, in one transaction: nobody ever sees half of it, and if the test
is interrupted nothing is lost that was there before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from edda_engine.errors import UsageError
from edda_engine.storage.database import Database

_SYSTEM_SCHEMAS = ("information_schema", "pg_catalog", "pg_toast")
_LOCK_TIMEOUT = "10s"


class Snapshot(Protocol):
    """What a database held at one moment."""

    def restore(self) -> None:
        """Put it back."""
        ...


@contextmanager
def snapshot_of(database: Database) -> Iterator[Snapshot]:
    """What the database holds now; kept until the end of the block."""
    with _of_sqlite(database) if database.is_sqlite else _of_postgresql(database) as found:
        yield found


# SQLite.


class _SqliteSnapshot:
    def __init__(self, database: Database, kept: sqlite3.Connection) -> None:
        self._database, self._kept = database, kept

    def restore(self) -> None:
        with self._database.read() as conn:
            self._kept.backup(_driver_connection(conn))


@contextmanager
def _of_sqlite(database: Database) -> Iterator[Snapshot]:
    kept = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        with database.read() as conn:
            _driver_connection(conn).backup(kept)
        yield _SqliteSnapshot(database, kept)
    finally:
        kept.close()


def _driver_connection(conn: Connection) -> sqlite3.Connection:
    found = conn.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)
    return found


# PostgreSQL.


@dataclass(frozen=True, slots=True)
class _Kept:
    """One table, and the temporary one that keeps its rows; both quoted."""

    name: str
    copy: str
    columns: str
    """Without those that the database computes."""


class _PostgresSnapshot:
    def __init__(self, database: Database, tables: list[_Kept], sequences: list[tuple[str, int, bool]]) -> None:
        self._database, self._tables, self._sequences = database, tables, sequences

    def restore(self) -> None:
        try:
            with self._database.write(service=False) as conn:
                conn.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
                _without_triggers(conn)
                # Not TRUNCATE: that would wait for whoever has only read.
                for table in reversed(self._tables):
                    conn.exec_driver_sql(f"DELETE FROM {table.name}")
                for table in self._tables:
                    conn.exec_driver_sql(
                        f"INSERT INTO {table.name} ({table.columns}) OVERRIDING SYSTEM VALUE"
                        f" SELECT {table.columns} FROM {table.copy}"
                    )
                for name, value, is_called in self._sequences:
                    conn.execute(
                        text("SELECT setval(CAST(:name AS regclass), :value, :is_called)"),
                        {"name": name, "value": value, "is_called": is_called},
                    )
        except DBAPIError as error:
            raise UsageError(
                "The test's database could not be put back to what it was before the run:"
                f" {str(error.orig).splitlines()[0]}. End transactions that the test itself has open; tables that refer to"
                " each other in a circle need a role that may set session_replication_role."
            ) from error


@contextmanager
def _of_postgresql(database: Database) -> Iterator[Snapshot]:
    # One connection, because temporary tables are its own.
    keeper = Database(create_engine(database.engine.url, poolclass=StaticPool), owns_engine=True)
    try:
        with keeper.write(service=False) as conn:
            tables = [_keep(conn, number, schema, name) for number, (schema, name) in enumerate(_tables_in_order(conn))]
            sequences = [tuple(row) for row in conn.execute(text(_SEQUENCES))]
        yield _PostgresSnapshot(keeper, tables, sequences)
    finally:
        keeper.close()


_SEQUENCES = (
    "SELECT format('%I.%I', schemaname, sequencename), coalesce(last_value, start_value), last_value IS NOT NULL"
    " FROM pg_sequences"
)


_PARTITIONS = "SELECT relnamespace::regnamespace::text, relname FROM pg_class WHERE relispartition"


def _tables_in_order(conn: Connection) -> list[tuple[str, str]]:
    """All tables, each after those that it refers to, as far as that goes; partitions are part of their table."""
    found = []
    partitions = {tuple(row) for row in conn.execute(text(_PARTITIONS))}
    for schema in inspect(conn).get_schema_names():
        if schema not in _SYSTEM_SCHEMAS and not schema.startswith("pg_"):
            found += [
                (schema, name)
                for name, _ in inspect(conn).get_sorted_table_and_fkc_names(schema)
                if name is not None and (schema, name) not in partitions
            ]
    return found


def _keep(conn: Connection, number: int, schema: str, name: str) -> _Kept:
    quote = conn.dialect.identifier_preparer.quote
    columns = ", ".join(
        quote(column["name"]) for column in inspect(conn).get_columns(name, schema) if not column.get("computed")
    )
    kept = _Kept(f"{quote(schema)}.{quote(name)}", f"pg_temp.kept_{number}", columns)
    conn.exec_driver_sql(f"CREATE TEMPORARY TABLE kept_{number} AS SELECT {columns} FROM {kept.name}")
    return kept


def _without_triggers(conn: Connection) -> None:
    """If this role may: neither triggers nor foreign keys act on what is only put back."""
    try:
        with conn.begin_nested():
            conn.execute(text("SET LOCAL session_replication_role = replica"))
    except SQLAlchemyError:
        return


def quoted_table(conn: Connection, schema: str | None, name: str) -> str:
    """The name of a table as SQL."""
    quote = conn.dialect.identifier_preparer.quote
    return quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"


def tables_of(conn: Connection) -> list[tuple[str | None, str]]:
    """Every table, with its schema on PostgreSQL."""
    found: Any = inspect(conn).get_table_names() if conn.dialect.name == "sqlite" else _tables_in_order(conn)
    return [(None, name) for name in found] if conn.dialect.name == "sqlite" else list(found)
