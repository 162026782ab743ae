"""What is in a database after a run, and how two runs differ.

How it thinks. Each table is a bag of rows, compared without regard to their order. Some values are another each time,
crash or no crash: times, random ids. Two runs that nothing disturbed show which columns hold such values, and these are
left out. Numbers that the database gives to new rows have gaps after a crash, and come in another order when activities
run side by side; if two runs differ in them, rows are compared without them, and by the row that a reference means.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Integer, inspect

from edda_engine.testing.snapshots import quoted_table, tables_of

EVENTS = "events for other services"
STARTS = "workflows that were started"
_OF_EDDA = {
    EVENTS: ("edda_outbox", ("type", "source", "subject", "content_type", "data", "ordering_key")),
    STARTS: ("edda_instances", ("workflow_name", "status", "input")),
}
_DEPTH = 4
"""So many references of references are followed."""
_SHOWN_ROWS = 5
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Table:
    """What is known of a table beside its rows."""

    columns: tuple[str, ...]
    key: str | None = None
    """Its primary key, if the database may number it."""
    references: Mapping[str, str] = field(default_factory=dict)
    """Columns that hold the key of another table."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The contents of a database, in the words of :func:`shown`."""

    tables: Mapping[str, Table]
    rows: Mapping[str, list[tuple[str, ...]]]

    def column(self, table: str, column: str) -> list[str]:
        """All values of a column."""
        position = self.tables[table].columns.index(column)
        return [row[position] for row in self.rows[table]]


def read_rows(conn: Connection) -> Rows:
    """All rows of the application's tables, and of edda's what others can see of it."""
    tables, rows = {}, {}
    for schema, name in tables_of(conn):
        if not name.startswith(("edda_", "alembic_version")):
            title = name if schema in (None, "public") else f"{schema}.{name}"
            tables[title] = described = _described(conn, schema, name)
            rows[title] = _read(conn, quoted_table(conn, schema, name), described.columns)
    for title, (name, columns) in _OF_EDDA.items():
        tables[title] = Table(columns)
        rows[title] = _read(conn, name, columns)
    return Rows(tables, rows)


def volatile_columns(first: Rows, second: Rows) -> set[str]:
    """``"table.column"`` of what differs between two runs of the same, by its values alone.

    A reference to a row that the database numbered is not one of them while it means a row with the same contents: the
    numbers of rows that are written side by side change places.
    """
    found = _unequal_columns(first, second)
    references = found & {f"{table}.{column}" for table, known in first.tables.items() for column in known.references}
    if not references:
        return found
    values = found - references
    return values | (references & _unequal_columns(_by_contents(first, values), _by_contents(second, values)))


def _unequal_columns(first: Rows, second: Rows) -> set[str]:
    return {
        f"{table}.{column}"
        for table, known in first.tables.items()
        for column in known.columns
        if len(first.rows[table]) == len(second.rows[table])
        and Counter(first.column(table, column)) != Counter(second.column(table, column))
    }


def differences(expected: Rows, found: Rows, *, leaving_out: Collection[str]) -> dict[str, list[str]]:
    """The tables that differ, each with lines that say how."""
    literal = _differences(expected, found, leaving_out)
    if not literal:
        return literal
    return _differences(_by_contents(expected, leaving_out), _by_contents(found, leaving_out), leaving_out)


def unknown_columns(rows: Rows, named: Iterable[str]) -> list[str]:
    """Those of *named*, each ``"column"`` or ``"table.column"``, that no table has."""
    known = {column for table in rows.tables.values() for column in table.columns}
    known |= {f"{name}.{column}" for name, table in rows.tables.items() for column in table.columns}
    return sorted(set(named) - known)


def _differences(expected: Rows, found: Rows, leaving_out: Collection[str]) -> dict[str, list[str]]:
    told = {}
    for table, known in expected.tables.items():
        kept = [
            position for position, column in enumerate(known.columns) if not _is_left_out(table, column, leaving_out)
        ]
        before, after = (
            Counter(tuple(row[position] for position in kept) for row in rows.rows.get(table, []))
            for rows in (expected, found)
        )
        if before != after:
            names = [known.columns[position] for position in kept]
            told[table] = list(_lines(names, before, after))
    return told


def _lines(names: list[str], before: Counter[tuple[str, ...]], after: Counter[tuple[str, ...]]) -> Iterable[str]:
    changed = [row for row in before | after if before[row] != after[row]]
    for row in changed[:_SHOWN_ROWS]:
        text = ", ".join(f"{name}={value}" for name, value in zip(names, row, strict=True))
        text = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
        yield f"{_times(before[row])} without the crash, {_times(after[row])} after it:  {text}"
    if len(changed) > _SHOWN_ROWS:
        yield f"and {len(changed) - _SHOWN_ROWS} more"


def _times(count: int) -> str:
    return {0: "not there", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _by_contents(rows: Rows, leaving_out: Collection[str]) -> Rows:
    """The same without numbered keys; a column that refers to one shows the row that it means."""
    reader = _Contents(rows, leaving_out)
    return Rows(
        {table: Table(tuple(reader.columns(table))) for table in rows.tables},
        {table: [tuple(reader.cells(table, row, 0)) for row in found] for table, found in rows.rows.items()},
    )


class _Contents:
    """Shows rows by what they hold, however their keys were numbered."""

    def __init__(self, rows: Rows, leaving_out: Collection[str]) -> None:
        self._rows, self._leaving_out = rows, leaving_out
        self._by_key = {
            table: dict(zip(rows.column(table, known.key), rows.rows[table], strict=True))
            for table, known in rows.tables.items()
            if known.key is not None
        }

    def columns(self, table: str) -> list[str]:
        return [column for column in self._rows.tables[table].columns if column != self._rows.tables[table].key]

    def cells(self, table: str, row: tuple[str, ...], depth: int) -> list[str]:
        known = self._rows.tables[table]
        return [
            self._shown(known.references.get(column), value, depth)
            for column, value in zip(known.columns, row, strict=True)
            if column != known.key
        ]

    def _shown(self, owner: str | None, value: str, depth: int) -> str:
        row = self._by_key.get(owner, {}).get(value) if owner is not None else None
        if owner is None or row is None:
            return value
        if depth > _DEPTH:
            return f"one of {owner}"
        named = zip(self.columns(owner), self.cells(owner, row, depth + 1), strict=True)
        kept = [f"{name}={cell}" for name, cell in named if not _is_left_out(owner, name, self._leaving_out)]
        return f"the {owner} with {', '.join(kept) or 'nothing'}"


def _is_left_out(table: str, column: str, leaving_out: Collection[str]) -> bool:
    return column in leaving_out or f"{table}.{column}" in leaving_out


def _described(conn: Connection, schema: str | None, name: str) -> Table:
    inspector = inspect(conn)
    columns = {column["name"]: column["type"] for column in inspector.get_columns(name, schema)}
    keys = inspector.get_pk_constraint(name, schema)["constrained_columns"]
    is_numbered = len(keys) == 1 and isinstance(columns[keys[0]], Integer)
    references = {
        key["constrained_columns"][0]: key["referred_table"]
        for key in inspector.get_foreign_keys(name, schema)
        if len(key["constrained_columns"]) == 1
    }
    return Table(tuple(columns), keys[0] if is_numbered and keys[0] not in references else None, references)


def _read(conn: Connection, table: str, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    quote = conn.dialect.identifier_preparer.quote
    found = conn.exec_driver_sql(f"SELECT {', '.join(map(quote, columns))} FROM {table}")
    return [tuple(map(shown, row)) for row in found]


def shown(value: Any) -> str:
    """A value of any type as a text that is the same for equal values."""
    match value:
        case dict() | list():
            return json.dumps(value, sort_keys=True, default=str)
        case bytes() | bytearray() | memoryview():
            return repr(bytes(value))
        case datetime() | date() | Decimal() | UUID():
            return str(value)
        case _:
            return repr(value)
