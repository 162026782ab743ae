"""Looking into JSON documents with SQL, by keys that may be any text.

SQLite's paths have no way to write a key with a quotation mark in it, so they are not used: the document is taken
apart step by step, and each key is a parameter that is compared, on both databases.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, case, cast, func, literal, select
from sqlalchemy.dialects.postgresql import JSONB

_NUMBERS = ("integer", "real")


def json_equals(dialect: str, document: ColumnElement[Any], steps: Sequence[str], wanted_json: str) -> Any:
    """Whether *document* has, under these keys of objects in objects, the value that *wanted_json* writes."""
    if dialect == "postgresql":
        found = func.jsonb_extract_path(cast(document, JSONB), *steps, type_=JSONB)
        return found == cast(literal(wanted_json), JSONB)
    inner: Any = document
    conditions = []
    for number, step in enumerate(steps):
        level = func.json_each(inner).table_valued(
            "key", "value", "type", name=f"level_{number}", joins_implicitly=True
        )
        conditions.append(level.c.key == step)
        inner = case((level.c.type == "object", level.c.value))
    conditions.append(_is(level.c.value, level.c.type, wanted_json))
    return select(literal(1)).where(*conditions).exists()


def _is(value: Any, kind: Any, wanted_json: str) -> Any:
    """SQLite has numbers and texts; what else JSON has is told by its kind."""
    wanted = json.loads(wanted_json)
    match wanted:
        case None | True | False:
            return kind == wanted_json
        case str():
            return and_(kind == "text", value == wanted)
        case int() | float():
            return and_(kind.in_(_NUMBERS), value == wanted)
        case _:
            return and_(kind.in_(("object", "array")), value == func.json(wanted_json))
