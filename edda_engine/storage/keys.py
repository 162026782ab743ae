"""Rows by keys of several columns, many at once, always by the index.

For ``(a, b) IN (VALUES ...)`` with more than one row SQLite reads the whole table; for a subquery it does not.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, func, select, tuple_


def among(conn: Connection, columns: Sequence[Column[Any]], keys: Collection[Sequence[Any]]) -> ColumnElement[bool]:
    """Whether a row's *columns* are one of *keys*; its values are texts and numbers."""
    if conn.dialect.name != "sqlite":
        return tuple_(*columns).in_([tuple(key) for key in keys])
    given = func.json_each(json.dumps([list(key) for key in keys])).table_valued("value")
    parts = [func.json_extract(given.c.value, f"$[{number}]") for number in range(len(columns))]
    return tuple_(*columns).in_(select(*parts))
