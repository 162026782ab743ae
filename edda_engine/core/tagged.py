"""What an exception carries to JSON and back, each value as it was.

How it thinks. No annotation tells what an exception carries, so a value that JSON has no form for is written with its
kind: ``{"$decimal": "1.50"}``. A dict that could be taken for such a tag is written as pairs. A value without a plain
form (a response, a session) leaves :class:`NotRecorded` in its place: that a value was there is known, and whoever
uses it is told why it is not.
"""

from __future__ import annotations

import base64
import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

MAX_TEXT = 10_000
"""Longer texts are cut."""

_MAX_JSON = 2 * MAX_TEXT
_MAX_PARTS = 2_000
_MAX_DEPTH = 10
_MAX_SHOWN = 200
_MAX_BITS = 8_000

ErrorToJson = Callable[[BaseException], dict[str, Any]]
ErrorOfJson = Callable[[dict[str, Any]], BaseException]


@dataclass(frozen=True, slots=True)
class NotRecorded:
    """Stands in a replayed exception for a value that has no plain form, or is too large."""

    shown: str
    said: str

    def __repr__(self) -> str:
        return self.shown

    def __str__(self) -> str:
        return self.said

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"{name!r} cannot be asked of {self.shown}: an exception that leaves an activity keeps only plain values."
            " Keep the text, number or dict that is needed in the exception itself."
        )


def clean(text: str) -> str:
    """*text* without what a database refuses (NUL, lone surrogates), and not endless."""
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def to_tagged(value: Any, of_error: ErrorToJson, *, is_shown: bool = False) -> Any:
    """*value* as JSON; never fails, whatever it is.

    :param of_error: Describes an exception among the values.
    :param is_shown: The message of the exception shows the value, so its text may stand for it; otherwise only the
        name of its type does, because a text may tell secrets.
    """
    try:
        found = _Writer(of_error, is_shown).write(value, 0)
        if not isinstance(found, str) and len(json.dumps(found, ensure_ascii=False)) > _MAX_JSON:
            return _lost(value, is_shown)
        return found
    except Exception:  # too large, or what isinstance() of a user's proxy raises
        return _lost(value, is_shown)


def from_tagged(recorded: Any, to_error: ErrorOfJson) -> Any:
    """The value that :func:`to_tagged` wrote; never fails, whatever was recorded."""
    match recorded:
        case list():
            return [from_tagged(item, to_error) for item in recorded]
        case dict() if len(recorded) == 1 and next(iter(recorded)).startswith("$"):
            [(tag, content)] = recorded.items()
            try:
                return _READERS[tag](content, to_error)
            except Exception:  # a class of the user's that is gone or raises, or a tag of a newer version
                return NotRecorded(f"<{tag[1:]}>", f"<{tag[1:]}>")
        case dict():
            return {key: from_tagged(item, to_error) for key, item in recorded.items()}
    return recorded


class _TooLarge(Exception):
    """More parts, or deeper, than an exception's value may have."""


class _Writer:
    """Writes one value, and counts its parts."""

    def __init__(self, of_error: ErrorToJson, is_shown: bool) -> None:
        self._of_error, self._is_shown, self._parts = of_error, is_shown, 0

    def write(self, value: Any, depth: int) -> Any:
        self._parts += 1
        if self._parts > _MAX_PARTS or depth > _MAX_DEPTH:
            raise _TooLarge
        match value:
            case None | bool():
                return value
            case Enum():
                return self._enum(value, depth)
            case str():
                return _text(str.__str__(value))
            case int():
                return _lost(value, self._is_shown) if value.bit_length() > _MAX_BITS else int(value)
            case float():
                return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
            case list():
                return self._all(value, depth)
            case dict():
                return self._dict(value, depth)
            case tuple():
                return {"$tuple": self._all(value, depth)}
            case set():
                return {"$set": self._all(value, depth)}
            case frozenset():
                return {"$frozenset": self._all(value, depth)}
            case NotRecorded():
                return {"$lost": [value.shown, value.said]}
            case BaseException():
                return {"$error": self._of_error(value)}
        return self._scalar(value)

    def _scalar(self, value: Any) -> Any:
        match value:
            case bytes() | bytearray():
                return {"$bytes": base64.b64encode(value).decode()}
            case Decimal():
                return {"$decimal": str(value)}
            case datetime():
                return {"$datetime": value.isoformat()}
            case date():
                return {"$date": value.isoformat()}
            case time():
                return {"$time": value.isoformat()}
            case timedelta():
                return {"$timedelta": [value.days, value.seconds, value.microseconds]}
            case UUID():
                return {"$uuid": str(value)}
            case Path():
                return {"$path": self.write(str(value), 0)}
        return _lost(value, self._is_shown)

    def _all(self, values: Any, depth: int) -> list[Any]:
        return [self.write(value, depth + 1) for value in values]

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        if all(type(key) is str and not key.startswith("$") and clean(key) == key for key in value):
            return {key: self.write(item, depth + 1) for key, item in value.items()}
        return {"$dict": [self._all(pair, depth + 1) for pair in value.items()]}

    def _enum(self, value: Enum, depth: int) -> Any:
        kind = type(value)
        name = f"{kind.__module__}:{kind.__qualname__}"
        if find_named(name) is kind:
            return {"$enum": [name, self.write(value.value, depth + 1)]}
        plain = value.value if isinstance(value, (str, int, float)) else None
        return _lost(value, self._is_shown) if plain is None else self.write(plain, depth)


def find_named(name: str) -> Any:
    """What ``module:qualified.name`` names, or ``None`` if it cannot be imported."""
    module_name, _, path = name.partition(":")
    if not module_name or not path or "<locals>" in path:
        return None
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception:  # importing a module of the user's may raise anything
        return None
    return found


def _text(value: str) -> Any:
    if len(value) > MAX_TEXT:
        return clean(value)
    return value if clean(value) == value else {"$str": value.encode("unicode_escape").decode()}


def _lost(value: Any, is_shown: bool) -> Any:
    kind = f"<{type(value).__qualname__}>"
    if not is_shown:
        return {"$lost": [clean(kind), clean(kind)]}
    texts = []
    for say in (repr, str):
        try:
            texts.append(clean(say(value))[:_MAX_SHOWN])
        except Exception:  # a __repr__ of the user's that raises
            texts.append(clean(kind))
    return {"$lost": texts}


def _read_enum(content: Any, to_error: ErrorOfJson) -> Any:
    name, recorded = content
    value, kind = from_tagged(recorded, to_error), find_named(name)
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return value
    try:
        return kind(value)
    except ValueError:  # the member is gone; its value is still known
        return value


def _read_pairs(content: Any, to_error: ErrorOfJson) -> Any:
    return {from_tagged(key, to_error): from_tagged(item, to_error) for key, item in content}


_READERS: dict[str, Callable[[Any, ErrorOfJson], Any]] = {
    "$bytes": lambda content, _: base64.b64decode(content),
    "$date": lambda content, _: date.fromisoformat(content),
    "$datetime": lambda content, _: datetime.fromisoformat(content),
    "$decimal": lambda content, _: Decimal(content),
    "$dict": _read_pairs,
    "$enum": _read_enum,
    "$error": lambda content, to_error: to_error(content),
    "$float": lambda content, _: float(content),
    "$frozenset": lambda content, to_error: frozenset(from_tagged(content, to_error)),
    "$lost": lambda content, _: NotRecorded(*content),
    "$path": lambda content, to_error: Path(from_tagged(content, to_error)),
    "$set": lambda content, to_error: set(from_tagged(content, to_error)),
    "$str": lambda content, _: content.encode().decode("unicode_escape"),
    "$time": lambda content, _: time.fromisoformat(content),
    "$timedelta": lambda content, _: timedelta(*content),
    "$tuple": lambda content, to_error: tuple(from_tagged(content, to_error)),
    "$uuid": lambda content, _: UUID(content),
}
