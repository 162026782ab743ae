"""Statements that are transactions by themselves, and asked so often that what is around them counts.

How it thinks. Of such a statement SQLAlchemy's way costs more than the statement: its connection, its transaction, its
cursor, its result. So it is compiled once, by SQLAlchemy, and given to the driver, on a connection of the same pool; to
psycopg with numbers for its parameters, as the server takes it: it would look for their names in it each time.
Whoever listens to the statements of the engine, a tracer or a test, gets to see all of them: then it is executed by
SQLAlchemy like any other. Either way its errors are SQLAlchemy's.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from sqlalchemy import Dialect, Engine, Executable
from sqlalchemy.exc import DBAPIError

Execute = Callable[["Alone", Mapping[str, Any]], Sequence[Any]]
"""Executes one statement with these parameters; its rows, whose values are also attributes."""


_HEARD = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute", "engine_connect")
"""Events of an engine by which somebody hears of its statements."""


class Alone:
    """A statement that returns rows, and is a transaction by itself; built when it is needed first.

    It may have no ``IN`` of a list of values.
    """

    def __init__(self, build: Callable[[], Executable]) -> None:
        self._build = build
        self._compiled: dict[tuple[str, str], _Compiled] = {}

    def execute(self, engine: Engine, given: Mapping[str, Any]) -> Sequence[Any]:
        """Its rows.

        :raises DBAPIError: as SQLAlchemy would say it.
        """
        if any(getattr(engine.dispatch, name) for name in _HEARD):
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                return conn.execute(self.statement, given).all()
        return self._for(engine.dialect).execute(engine, given)

    def prepare(self, dialect: Dialect) -> None:
        """Build it now, so that its first execution need not."""
        self._for(dialect)

    def _for(self, dialect: Dialect) -> _Compiled:
        key = (dialect.name, dialect.driver)
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = _Compiled(self.statement, dialect)
        return found

    @cached_property
    def statement(self) -> Any:
        """As SQLAlchemy has it."""
        return self._build()


class _Compiled:
    """A statement as a driver takes it, and what its values and rows pass through."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._text = _Text(str(compiled), *_numbered(statement, dialect))
        assert not compiled.post_compile_params, "a list in the text would be another statement for each length"
        to_driver = {
            name: (bind, bind.type.dialect_impl(dialect).bind_processor(dialect))
            for bind, name in compiled.bind_names.items()
        }
        self._given = {name: process for name, (bind, process) in to_driver.items() if bind.required}
        self._always = {
            name: bind.effective_value if process is None else process(bind.effective_value)
            for name, (bind, process) in to_driver.items()
            if not bind.required
        }
        columns = list(statement.exported_columns)
        self._row = _row_of([column.name for column in columns])
        self._types = [column.type.dialect_impl(dialect) for column in columns]
        self._from_driver: list[tuple[int, Callable[[Any], Any]]] | None = None

    def execute(self, engine: Engine, given: Mapping[str, Any]) -> list[Any]:
        values = dict(self._always)
        for name, process in self._given.items():
            values[name] = given[name] if process is None else process(given[name])
        rows, kinds = _fetched(engine, self._text, values)
        if self._from_driver is None:
            processes = (kind.result_processor(engine.dialect, of) for kind, of in zip(self._types, kinds, strict=True))
            self._from_driver = [(number, process) for number, process in enumerate(processes) if process is not None]
        return [self._read(row, self._from_driver) for row in rows]

    def _read(self, row: Sequence[Any], processes: list[tuple[int, Callable[[Any], Any]]]) -> Any:
        if not processes:
            return self._row(row)
        found = list(row)
        for number, process in processes:
            found[number] = process(found[number])
        return self._row(found)


def _row_of(names: list[str]) -> Callable[[Sequence[Any]], Any]:
    made: Any = namedtuple("Row", names)  # type: ignore[misc]
    return cast("Callable[[Sequence[Any]], Any]", made._make)


@dataclass(frozen=True, slots=True)
class _Text:
    """A statement as a driver takes it."""

    named: str
    """With the names of its parameters."""
    numbered: str | None
    """With their numbers, as PostgreSQL has it; ``None`` for another driver than psycopg."""
    names: tuple[str, ...]
    """Their names, in the order of the numbers."""

    def executed(self, raw: Any, driver: Any, values: Mapping[str, Any]) -> Any:
        """A cursor with the rows."""
        # A connection or cursors of another class, a tracer's perhaps, are not passed by.
        if self.numbered is None or type(raw) is not driver.Connection or raw.cursor_factory is not driver.Cursor:
            cursor = raw.cursor()
            cursor.execute(self.named, values)
            return cursor
        return driver.RawCursor(raw).execute(self.numbered, [values[name] for name in self.names])


def _numbered(statement: Any, dialect: Dialect) -> tuple[str | None, tuple[str, ...]]:
    if dialect.driver != "psycopg":
        return None, ()
    of_kind: Any = type(dialect)
    compiled = statement.compile(dialect=of_kind(paramstyle="numeric_dollar"))
    return str(compiled), tuple(compiled.positiontup)


def _fetched(engine: Engine, text: _Text, values: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """The rows, and what the driver calls the types of their columns."""
    driver, dialect = engine.dialect.loaded_dbapi, engine.dialect
    pooled: Any = None
    try:
        pooled = engine.raw_connection()
        raw = pooled.dbapi_connection
        raw.rollback()  # of what a listener of the pool has asked, perhaps; sends nothing if that is nothing
        raw.autocommit = True
        with text.executed(raw, driver, values) as cursor:
            rows, kinds = cursor.fetchall(), [column[1] for column in cursor.description]
        raw.autocommit = False
    except driver.Error as error:
        is_lost = pooled is not None and dialect.is_disconnect(error, pooled.dbapi_connection, None)
        if is_lost:
            engine.pool._invalidate(pooled, error)  # as SQLAlchemy does: the others of its age are lost as well
        elif pooled is not None:
            pooled.invalidate()
        raise DBAPIError.instance(
            text.named, None, error, driver.Error, hide_parameters=True, connection_invalidated=is_lost, dialect=dialect
        ) from error
    except BaseException:
        if pooled is not None:
            pooled.invalidate()
        raise
    pooled.close()
    return rows, kinds
