"""Statements that are transactions by themselves, and asked so often that what is around them counts.

How it thinks. Of such a statement SQLAlchemy's way costs more than the statement: its connection, its transaction, its
cursor, its result. So it is compiled once, by SQLAlchemy, and given to the driver, on a connection of the same pool; to
psycopg with numbers for its parameters, as the server takes it: it would look for their names in it each time.
Whoever listens to the statements of the engine, a tracer or a test, gets to see all of them: then it is executed by
SQLAlchemy like any other. Either way its errors are SQLAlchemy's.
"""

from __future__ import annotations

import logging
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

from sqlalchemy import Dialect, Engine, Executable
from sqlalchemy.exc import DBAPIError

_log = logging.getLogger(__name__)

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


class Kept:
    """A connection of a pool for one thread's statements alone; kept while one follows the other, until :meth:`close`."""

    def __init__(self, find_engine: Callable[[], Engine]) -> None:
        self._find_engine = find_engine
        self._engine: Engine | None = None
        self._pooled: Any = None
        self._was_autocommit = False

    def execute(self, statement: Alone, given: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of a statement.

        :raises DBAPIError: as SQLAlchemy would say it.
        """
        engine = self._engine = self._engine or self._find_engine()
        if is_heard(engine):
            self.close()
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                return conn.execute(statement.statement, given).all()
        return statement._for(engine.dialect).execute(partial(self._cursor, engine), given)

    def close(self) -> None:
        """Nothing follows: it is the pool's again, and an ordinary one. What cannot be given back is thrown away."""
        pooled, self._pooled, self._engine = self._pooled, None, None
        if pooled is None:
            return
        try:
            pooled.dbapi_connection.autocommit = self._was_autocommit
            pooled.close()
        except BaseException as error:  # of the driver, if it has broken since, or of a listener of the pool
            _log.debug("A connection could not be given back, and is thrown away", exc_info=True)
            with suppress(Exception):
                pooled.invalidate()
            if not isinstance(error, Exception):
                raise

    @contextmanager
    def _cursor(self, engine: Engine, text: _Text, values: Mapping[str, Any]) -> Iterator[Any]:
        driver = engine.dialect.loaded_dbapi
        try:
            if self._pooled is None:
                self._pooled = engine.raw_connection()
                raw = self._pooled.dbapi_connection
                raw.rollback()  # of what a listener of the pool has asked, perhaps; sends nothing if that is nothing
                self._was_autocommit, raw.autocommit = raw.autocommit, True
            with text.executed(self._pooled.dbapi_connection, driver, values) as cursor:
                yield cursor
        except driver.Error as error:
            raise self._refused(engine, text, error) from error
        except BaseException:
            self._throw_away()
            raise

    def _refused(self, engine: Engine, text: _Text, error: Any) -> BaseException:
        dialect, pooled = engine.dialect, self._pooled
        is_lost = pooled is not None and dialect.is_disconnect(error, pooled.dbapi_connection, None)
        if is_lost:
            engine.pool._invalidate(pooled, error)  # as SQLAlchemy does: the others of its age are lost as well
            self._pooled = None
        self._throw_away()
        refused: BaseException = DBAPIError.instance(
            text.named, None, error, dialect.loaded_dbapi.Error,
            hide_parameters=True, connection_invalidated=is_lost, dialect=dialect,
        )  # fmt: skip
        return refused

    def _throw_away(self) -> None:
        pooled, self._pooled = self._pooled, None
        if pooled is not None:
            pooled.invalidate()


def is_heard(engine: Engine) -> bool:
    """Whether its statements are to go SQLAlchemy's way: somebody listens, or they are to be logged, or to be changed."""
    is_listened_to = any(getattr(engine.dispatch, name) for name in _HEARD)
    return is_listened_to or bool(engine.get_execution_options()) or engine._should_log_info()


class _Compiled:
    """A statement as a driver takes it, and what its values and rows pass through."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        self._dialect = dialect
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

    def execute(
        self, cursor_of: Callable[[_Text, Mapping[str, Any]], AbstractContextManager[Any]], given: Mapping[str, Any]
    ) -> list[Any]:
        values = dict(self._always)
        for name, process in self._given.items():
            values[name] = given[name] if process is None else process(given[name])
        with cursor_of(self._text, values) as cursor:
            rows = cursor.fetchall()
            if self._from_driver is None:
                self._from_driver = list(self._processes([column[1] for column in cursor.description]))
        return [self._read(row, self._from_driver) for row in rows]

    def _processes(self, kinds: list[Any]) -> Iterator[tuple[int, Callable[[Any], Any]]]:
        """By the number of the column, for what the driver calls the types of the columns."""
        for number, (kind, of_driver) in enumerate(zip(self._types, kinds, strict=True)):
            process = kind.result_processor(self._dialect, of_driver)
            if process is not None:
                yield number, process

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
