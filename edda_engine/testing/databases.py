"""Databases of tests: a fresh one for each on PostgreSQL, and no waiting for the disk.

A test kills workers, never the machine: what the operating system has been given is safe enough, and several times
faster than to wait until the disk has it.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Pool, event

from edda_engine.errors import ConfigurationError
from edda_engine.storage.urls import normalized_url

try:
    import psycopg
    from psycopg import sql
except ImportError:  # pragma: no cover
    psycopg = None  # type: ignore[assignment]


@contextmanager
def fresh_postgresql(server: str) -> Iterator[str]:
    """The URL of an empty database; it is dropped at the end of the block, whoever is still connected to it.

    :param server: The URL of any database on the server, of a role that may create databases.
    :raises ConfigurationError: it is no URL of PostgreSQL, or the driver is not installed.
    """
    url = normalized_url(server)
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError(
            f"{url.get_backend_name()!r} is no PostgreSQL: give the URL of a database on a PostgreSQL server, or leave it"
            " out to test on SQLite."
        )
    if psycopg is None:
        raise ConfigurationError("The driver of PostgreSQL is not installed. Install edda-wsgi[postgresql].")
    name = f"edda_test_{uuid.uuid4().hex[:12]}"
    _execute(url, "CREATE DATABASE {}", name)
    _execute(url, "ALTER DATABASE {} SET synchronous_commit = off", name)
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(url, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


@contextmanager
def hasty_sqlite() -> Iterator[None]:
    """Inside, no commit to a SQLite file of this process waits for the disk."""
    event.listen(Pool, "checkout", _do_not_wait)
    try:
        yield
    finally:
        event.remove(Pool, "checkout", _do_not_wait)


def _do_not_wait(_dbapi_connection: Any, record: Any, _proxy: Any) -> None:
    if isinstance(record.driver_connection, sqlite3.Connection) and not record.driver_connection.in_transaction:
        record.driver_connection.execute("PRAGMA synchronous = OFF")


def _execute(server: URL, statement: str, name: str) -> None:
    conninfo = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute(sql.SQL(statement).format(sql.Identifier(name)))
