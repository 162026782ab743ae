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
    BigInteger,
    Column,
    ColumnElement,
    CompoundSelect,
    Connection,
    Dialect,
    Float,
    FromClause,
    Integer,
    Select,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from edda_engine.storage.types import JsonText

S = TypeVar("S")

Kind = type[Text] | type[Integer] | type[BigInteger] | type[Float[Any]]

Columns = Mapping[str, Kind]
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


class _ArrayText(UserDefinedType[str]):
    """An array of PostgreSQL as a text."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def get_col_spec(self, **_: Any) -> str:
        """What the text is cast to."""
        return f"{self.kind}[]"


class _List(TypeDecorator[Sequence[Any]]):
    """A list of texts or numbers as one value."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """An array, or the text of a JSON array."""
        if dialect.name != "postgresql":
            return dialect.type_descriptor(Text())
        if _takes_array_as_text(dialect):
            return dialect.type_descriptor(_ArrayText(self.kind().compile(dialect)))
        return dialect.type_descriptor(postgresql.ARRAY(self.kind()))

    def process_bind_param(self, value: Sequence[Any] | None, dialect: Dialect) -> Any:
        """What the driver takes."""
        found = list(value or ())
        if dialect.name != "postgresql":
            return json.dumps(found)
        return "{" + ",".join(map(_quoted, found)) + "}" if _takes_array_as_text(dialect) else found


def _takes_array_as_text(dialect: Dialect) -> bool:
    """Psycopg makes one of a list element by element, in Python, which takes longer than all the rest."""
    return dialect.driver in ("psycopg", "psycopg_async")


def _quoted(element: Any) -> str:
    """An element in the text of an array (PostgreSQL manual, 8.15.6)."""
    if not isinstance(element, str):
        return "NULL" if element is None else str(element)
    return '"' + element.replace("\\", "\\\\").replace('"', '\\"') + '"'


def is_one_of(dialect: str, which: ColumnElement[Any], parameter: str, kind: Kind = Text) -> ColumnElement[bool]:
    """``which IN (...)`` for a parameter that is a list of texts, or of numbers of another *kind*."""
    given = bindparam(parameter, type_=_List(kind))
    if dialect == "postgresql":
        return which == any_(given)
    return which.in_(select(func.json_each(given).table_valued("value").c.value))


def is_one_of_few(which: ColumnElement[Any], found: Select[Any] | CompoundSelect[Any]) -> ColumnElement[bool]:
    """``which IN (SELECT ...)`` on PostgreSQL, for a query in a ``WITH`` that finds few.

    As an array they are looked up by an index, whatever the planner expects of the query.
    """
    return which == any_(func.array(found.scalar_subquery()))


def each_of(parameter: str) -> FromClause:
    """On PostgreSQL: the texts of a parameter that is a list, as rows of one column ``text``; it expects few."""
    texts = bindparam(parameter, type_=_List(Text))
    return func.unnest(texts).table_valued(column("text", Text())).render_derived(name="given")


def given_texts(dialect: str, columns: Sequence[str]) -> FromClause:
    """The rows of a parameter made by :func:`as_texts`; unlike those of :func:`given_rows` PostgreSQL expects few of them.

    So it looks each of them up, however small the table is that they are joined to.
    """
    lists = [bindparam(f"given_{name}", type_=_List(Text)) for name in columns]
    if dialect == "postgresql":
        return func.unnest(*lists).table_valued(*columns).render_derived(name="given")
    first = func.json_each(lists[0]).table_valued("key", "value", name="each")
    path = literal("$[") + cast(first.c.key, Text) + literal("]")
    others = (func.json_extract(given, path).label(name) for given, name in zip(lists[1:], columns[1:], strict=True))
    return select(first.c.value.label(columns[0]), *others).select_from(first).subquery("given")


def as_texts(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The parameter of a statement with :func:`given_texts`."""
    return {f"given_{name}": [row[number] for row in rows] for number, name in enumerate(columns)}


def is_among(dialect: str, columns: Sequence[Column[Any]]) -> ColumnElement[bool]:
    """Whether a row's *columns* are one of the rows given with :func:`as_texts`, by their names."""
    return tuple_(*columns).in_(select(*given_texts(dialect, [column.name for column in columns]).c))


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
