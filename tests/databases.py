"""Databases on a PostgreSQL server, each used by one test after the other.

To make one and drop it costs ten times what it costs to empty it: the server copies files, and waits for a checkpoint.
Only one that is like a new one in every respect that a test may notice is used again. It gets another name each time,
so that a process which has outlived its test cannot come back to it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from edda_engine.storage.migrate import VERSION_TABLE

_PUBLIC = "relnamespace = 'public'::regnamespace"

_TRAITS: tuple[str, ...] = (
    "SELECT oid, relname, relnamespace, relkind, relnatts, relchecks, relhasrules, relhastriggers, relrowsecurity,"
    " relpersistence, reloptions, relacl,"
    " CASE relkind WHEN 'r' THEN reltuples END FROM pg_class WHERE oid >= 16384",
    "SELECT attrelid, attname, atttypid, attnotnull, atthasdef FROM pg_attribute WHERE attrelid >= 16384",
    "SELECT oid FROM pg_attrdef",
    "SELECT oid FROM pg_policy",
    "SELECT oid FROM pg_proc WHERE oid >= 16384",
    "SELECT oid FROM pg_type WHERE oid >= 16384",
    "SELECT oid FROM pg_trigger WHERE oid >= 16384",
    "SELECT oid FROM pg_rewrite WHERE oid >= 16384",
    "SELECT oid FROM pg_constraint WHERE oid >= 16384",
    "SELECT oid FROM pg_namespace",
    "SELECT oid FROM pg_extension",
    "SELECT starelid FROM pg_statistic WHERE starelid >= 16384",
    "SELECT sequencename FROM pg_sequences WHERE last_value IS NOT NULL",
    "SELECT setconfig FROM pg_db_role_setting, pg_database WHERE setdatabase = pg_database.oid"
    " AND datname = current_database()",
    f"SELECT version_num FROM {VERSION_TABLE}",
)
"""What tells one database from another: all that is not a row, and the rows of the one table that has some."""


class Databases:
    """Copies of a template; each is lent to one test at a time."""

    def __init__(self, server: str, template: str) -> None:
        self._server, self._template = server, template
        self._pristine: list[Any] = []
        self._tables: set[str] = set()
        self._free: list[str] = []

    @contextmanager
    def lent(self) -> Iterator[str]:
        """The URL of one that is as good as new."""
        name = self._free.pop() if self._free else self._made()
        yield self._url(name)
        renamed = _new_name()
        try:
            self._become_alone(name, renamed)
        except psycopg.Error:  # somebody is there again at once, or nobody may come in
            self._drop(name)
            return
        if self._is_emptied(renamed):
            self._free.append(renamed)
        else:
            self._drop(renamed)

    def drop_all(self) -> None:
        """At the end of the session."""
        while self._free:
            self._drop(self._free.pop())

    def _made(self) -> str:
        name = _new_name()
        with psycopg.connect(self._server, autocommit=True) as conn:
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            conn.execute(create.format(sql.Identifier(name), sql.Identifier(self._template)))
        if not self._pristine:
            with psycopg.connect(self._url(name), autocommit=True) as conn:
                self._tables = _tables(conn)
                self._pristine = _traits(conn)
        return name

    def _become_alone(self, name: str, renamed: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as conn:
            end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
            conn.execute(end, [name])
            rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
            conn.execute(rename.format(sql.Identifier(name), sql.Identifier(renamed)))

    def _is_emptied(self, name: str) -> bool:
        try:
            with psycopg.connect(self._url(name), autocommit=True) as conn:
                for table in _tables(conn) - self._tables:
                    conn.execute(sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.Identifier(table)))
                clear(conn)
                return _traits(conn) == self._pristine
        except psycopg.Error:
            return False

    def _drop(self, name: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _url(self, name: str) -> str:
        return make_url(self._server).set(database=name).render_as_string(False)


def clear(conn: psycopg.Connection[Any]) -> None:
    """Empty every table but that of the version, and let every sequence begin again."""
    used = conn.execute(
        f"SELECT relname FROM pg_class WHERE {_PUBLIC} AND relkind IN ('r', 'p') AND pg_relation_size(oid) > 0"
        f" AND relname <> '{VERSION_TABLE}'"
    ).fetchall()
    if used:
        names = sql.SQL(", ").join(sql.Identifier(name) for (name,) in used)
        conn.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(names))
    conn.execute(
        "SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)"
        " FROM pg_sequences WHERE last_value IS NOT NULL"
    )


def _tables(conn: psycopg.Connection[Any]) -> set[str]:
    found = conn.execute(f"SELECT relname FROM pg_class WHERE {_PUBLIC} AND relkind IN ('r', 'p')")
    return {name for (name,) in found.fetchall()}


def _traits(conn: psycopg.Connection[Any]) -> list[Any]:
    return [sorted(map(str, conn.execute(query).fetchall())) for query in _TRAITS]


def _new_name() -> str:
    return f"edda_test_{uuid.uuid4().hex[:12]}"
