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
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, cast

from sqlalchemy import BindParameter, Dialect, Engine, Executable
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
        compiled = statement._for(engine.dialect)
        with self._cursor(engine, compiled, given) as cursor:
            return compiled.rows(cursor)

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
    def _cursor(self, engine: Engine, compiled: _Compiled, given: Mapping[str, Any]) -> Iterator[Any]:
        driver = engine.dialect.loaded_dbapi
        try:
            if self._pooled is None:
                self._pooled = engine.raw_connection()
                raw = self._pooled.dbapi_connection
                raw.rollback()  # of what a listener of the pool has asked, perhaps; sends nothing if that is nothing
                self._was_autocommit, raw.autocommit = raw.autocommit, True
            with compiled.executed(self._pooled.dbapi_connection, driver, given) as cursor:
                yield cursor
        except driver.Error as error:
            raise self._refused(engine, compiled.text, error) from error
        except BaseException:
            self._throw_away()
            raise

    def _refused(self, engine: Engine, text: str, error: Any) -> BaseException:
        dialect, pooled = engine.dialect, self._pooled
        is_lost = pooled is not None and dialect.is_disconnect(error, pooled.dbapi_connection, None)
        if is_lost:
            engine.pool._invalidate(pooled, error)  # as SQLAlchemy does: the others of its age are lost as well
            self._pooled = None
        self._throw_away()
        refused: BaseException = DBAPIError.instance(
            text, None, error, dialect.loaded_dbapi.Error,
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


def takes_plain_text(raw: Any, driver: Any) -> bool:
    """Whether a connection and its cursors are psycopg's own. Those of another class, a tracer's perhaps, are not passed by."""
    return type(raw) is driver.Connection and raw.cursor_factory is driver.Cursor


class _Compiled:
    """A statement as a driver takes it, and what its rows pass through."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        self._statement, self._dialect = statement, dialect
        is_psycopg = dialect.driver == "psycopg"
        self._numbered = _Text(statement, dialect, written_for=_numbering(dialect)) if is_psycopg else None
        columns = list(statement.exported_columns)
        self._row = _row_of([column.name for column in columns])
        self._types = [column.type.dialect_impl(dialect) for column in columns]
        self._from_driver: list[tuple[int, Callable[[Any], Any]]] | None = None

    @cached_property
    def _named(self) -> _Text:
        return _Text(self._statement, self._dialect, written_for=self._dialect)

    @property
    def text(self) -> str:
        """What an error may show."""
        return (self._numbered or self._named).sql

    def executed(self, raw: Any, driver: Any, given: Mapping[str, Any]) -> Any:
        """A cursor with the rows."""
        if self._numbered is not None and takes_plain_text(raw, driver):
            return driver.RawCursor(raw).execute(self._numbered.sql, self._numbered.in_order(given))
        cursor = raw.cursor()
        cursor.execute(self._named.sql, self._named.by_name(given))
        return cursor

    def rows(self, cursor: Any) -> list[Any]:
        """All rows of a cursor."""
        if self._from_driver is None:
            self._from_driver = list(self._processes([column[1] for column in cursor.description]))
        return [self._read(row, self._from_driver) for row in cursor.fetchall()]

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


class _Text:
    """The text of a statement, and what its parameters pass through."""

    def __init__(self, statement: Any, dialect: Dialect, *, written_for: Dialect) -> None:
        compiled = statement.compile(dialect=written_for)
        assert not compiled.post_compile_params, "a list in the text would be another statement for each length"
        self.sql = str(compiled)
        self.names: tuple[str, ...] = tuple(compiled.positiontup or compiled.bind_names.values())
        """Of the parameters; if they have numbers, in their order."""
        self._processes: dict[str, Callable[[Any], Any] | None] = {}
        self._always: dict[str, Any] = {}
        for bind, name in compiled.bind_names.items():
            process = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if bind.required:
                self._processes[name] = process
            else:
                self._always[name] = bind.effective_value if process is None else process(bind.effective_value)

    def by_name(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All values as the driver takes them."""
        values = dict(self._always)
        for name, process in self._processes.items():
            values[name] = given[name] if process is None else process(given[name])
        return values

    def in_order(self, given: Mapping[str, Any]) -> list[Any]:
        """The same, for numbers."""
        values = self.by_name(given)
        return [values[name] for name in self.names]


def _numbering(dialect: Dialect) -> Dialect:
    """The same dialect, with numbers for the parameters that are to be given, and all others written into the text."""
    of_kind: Any = type(dialect)
    made = of_kind(paramstyle="numeric_dollar")
    usual: Any = made.statement_compiler

    class Compiler(usual):  # type: ignore[misc]
        def visit_bindparam(self, bindparam: BindParameter[Any], literal_binds: bool = False, **options: Any) -> Any:
            is_constant = literal_binds or (not bindparam.required and _means_itself(bindparam.value))
            return super().visit_bindparam(bindparam, literal_binds=is_constant, **options)

    made.statement_compiler = Compiler
    return cast("Dialect", made)


def _means_itself(value: Any) -> bool:
    """Whether a constant may be written into any text: a backslash may be more than itself, as the server is set up."""
    return isinstance(value, (bool, int)) or (isinstance(value, str) and "\\" not in value)
