"""Statements that are built once, and many rows or keys as one parameter.

Building a statement costs more than running it, and a statement whose text grows with its rows is parsed anew for
each number of rows, by every layer down to the server. So what is asked often is built once for each dialect, and
whatever varies in number travels as one value: an array on PostgreSQL, JSON on SQLite; rows as JSON on both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Float,
    FromClause,
    Integer,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator, TypeEngine

from edda_engine.storage.types import JsonText

S = TypeVar("S")

Columns = Mapping[str, type[Text] | type[Integer] | type[Float[Any]]]
"""What a row of a parameter holds, by name."""


class Prepared(Generic[S]):
    """A statement, built by the first who needs it on a dialect and used by all after it."""

    def __init__(self, build: Callable[[str], S]) -> None:
        self._build = build
        self._built: dict[str, S] = {}

    def on(self, conn: Connection) -> S:
        """The statement for the dialect of *conn*."""
        name = conn.dialect.name
        found = self._built.get(name)
        if found is None:
            found = self._built[name] = self._build(name)
        return found


class _Texts(TypeDecorator[Sequence[str]]):
    """A list of texts as one value."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """An array, or the text of a JSON array."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.ARRAY(Text()))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> Any:
        """A list for the array."""
        return list(value or ()) if dialect.name == "postgresql" else json.dumps(list(value or ()))


def is_one_of(dialect: str, which: ColumnElement[Any], parameter: str) -> ColumnElement[bool]:
    """``which IN (...)`` for a parameter that is a list of texts."""
    given = bindparam(parameter, type_=_Texts())
    if dialect == "postgresql":
        return which == any_(given)
    return which.in_(select(func.json_each(given).table_valued("value").c.value))


def given_rows(dialect: str, parameter: str, columns: Columns, *, name: str = "given") -> FromClause:
    """The rows of a parameter made by :func:`as_rows`, to select from; a JSON value travels as its text."""
    if dialect == "postgresql":
        rows = cast(bindparam(parameter, type_=Text()), JsonText())
        typed = (column(name, kind()) for name, kind in columns.items())
        return func.json_to_recordset(rows).table_valued(*typed).render_derived(name=name, with_types=True)
    each = func.json_each(bindparam(parameter, type_=Text())).table_valued("value", name="each")
    taken = (func.json_extract(each.c.value, f"$.{name}", type_=kind()).label(name) for name, kind in columns.items())
    return select(*taken).select_from(each).subquery(name)


def as_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The value of a parameter of :func:`given_rows`; instants become text."""
    return json.dumps(rows, default=str)


def insert_for(dialect: str) -> Any:
    """The ``insert()`` of the dialect, which knows ``ON CONFLICT``."""
    return postgresql.insert if dialect == "postgresql" else sqlite.insert
