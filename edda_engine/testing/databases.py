"""A fresh PostgreSQL database for each test, on a server that is there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL

from edda_engine.errors import ConfigurationError
from edda_engine.storage.database import normalized_url

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
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(url, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


def _execute(server: URL, statement: str, name: str) -> None:
    conninfo = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute(sql.SQL(statement).format(sql.Identifier(name)))
