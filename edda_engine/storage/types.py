"""Column types and SQL functions that mean the same on PostgreSQL and SQLite.

Instants are ``timestamptz`` on PostgreSQL; on SQLite, text of fixed width in UTC to the millisecond, so that
comparing text compares time. JSON travels as text in both directions: the codec has encoded it already, and the
key order of what a workflow saw must not change (``jsonb`` would sort it).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Dialect, Float, Text, cast
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

_SQLITE_FORMAT = "%Y-%m-%d %H:%M:%f"


class UtcTimestamp(TypeDecorator[datetime]):
    """An aware instant; always UTC in Python."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """``timestamptz``, or text."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Refuses naive instants."""
        return stored_instant(value, dialect.name)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Always in UTC, whatever the session's time zone."""
        if value is None:
            return None
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        return datetime.fromisoformat(str(value)).replace(tzinfo=UTC)


def stored_instant(value: datetime | None, dialect: str) -> Any:
    """An instant as a driver takes it; refuses naive ones."""
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone; instants in the database are aware.")
    if dialect == "postgresql":
        return value
    value = value.astimezone(UTC)
    # Not %Y: it leaves out the zeros of early years.
    return f"{value.year:04d}-{value:%m-%d %H:%M:%S}.{value.microsecond // 1000:03d}"


class JsonText(UserDefinedType[str]):
    """A JSON column whose Python value is its text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """``JSON`` on both."""
        return "JSON"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Keep SQLite from reading a bare number: as text it would be stored as one of SQLite's own numbers."""
        if dialect.name != "sqlite":
            return None
        return lambda value: value.encode() if value and value[0] in "-0123456789" else value

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read it as text."""
        # The driver would parse json by itself; as text it arrives as it was written.
        return cast(column, Text)


class clock(FunctionElement[datetime]):
    """The database's time now. Stable within a statement, so that an index can be used."""

    type = UtcTimestamp()
    inherit_cache = True


class clock_plus(FunctionElement[datetime]):
    """The database's time now, plus so many seconds."""

    type = UtcTimestamp()
    inherit_cache = True


class seconds_since(FunctionElement[float]):
    """Seconds from an instant until the database's now; negative for the future."""

    type = Float()

    inherit_cache = True


@compiles(clock, "postgresql")
def _clock_postgresql(element: clock, compiler: Any, **_: Any) -> str:
    return "statement_timestamp()"


@compiles(clock, "sqlite")
def _clock_sqlite(element: clock, compiler: Any, **_: Any) -> str:
    return f"strftime('{_SQLITE_FORMAT}', 'now')"


@compiles(clock_plus, "postgresql")
def _clock_plus_postgresql(element: clock_plus, compiler: Any, **kw: Any) -> str:
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(clock_plus, "sqlite")
def _clock_plus_sqlite(element: clock_plus, compiler: Any, **kw: Any) -> str:
    # printf, because CAST(1e-05 AS TEXT) would be '1.0e-05', which is no modifier.
    return f"strftime('{_SQLITE_FORMAT}', 'now', printf('%.3f seconds', {compiler.process(element.clauses, **kw)}))"


@compiles(seconds_since, "postgresql")
def _seconds_since_postgresql(element: seconds_since, compiler: Any, **kw: Any) -> str:
    return f"(extract(epoch from statement_timestamp() - {compiler.process(element.clauses, **kw)}))::float8"


@compiles(seconds_since, "sqlite")
def _seconds_since_sqlite(element: seconds_since, compiler: Any, **kw: Any) -> str:
    return f"((julianday('now') - julianday({compiler.process(element.clauses, **kw)})) * 86400.0)"
