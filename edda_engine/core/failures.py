"""Exceptions to JSON and back, of the same type on replay as live.

How it thinks. An exception is recorded as the chain of its importable classes, its arguments and its plain
attributes. It is rebuilt without calling its constructor (which may take other arguments by then) as the
first class of the chain that can still be imported. A class that cannot be imported even today (one declared
inside a function) is replaced by its nearest importable ancestor at once, live too: ``except`` must catch
the same before and after a crash.
"""

from __future__ import annotations

import importlib
import json
import traceback
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from edda_engine.core.codec import parse
from edda_engine.errors import EddaError

MAX_MESSAGE = 10_000
MAX_TRACEBACK = 20_000


class UnknownOriginalError(EddaError):
    """Stands for a recorded exception none of whose classes can be imported any more."""


def describe(error: BaseException) -> tuple[str, str]:
    """The type's name and the message of *error*, both safe to store and to print."""
    return type(error).__name__, clean(_message(error))


def encode_error(error: BaseException, *, with_traceback: bool = True) -> str:
    """The JSON text of *error*; never fails, whatever the exception looks like."""
    return json.dumps(_to_plain(error, with_traceback=with_traceback))


def decode_error(recorded: dict[str, Any]) -> BaseException:
    """The exception that was recorded, or its nearest ancestor that can be imported."""
    names = [recorded.get("type", ""), *recorded.get("bases", [])]
    kind = next((found for found in map(_import_class, names) if found is not None), None)
    message = str(recorded.get("message", ""))
    arguments = tuple(_without_lists(argument) for argument in recorded.get("args", [message]))
    if kind is None:
        return UnknownOriginalError(f"{recorded.get('error_type', 'Exception')}: {message}")
    error: BaseException
    try:
        if issubclass(kind, BaseExceptionGroup):
            inner = [decode_error(part) for part in recorded.get("exceptions", [])]
            error = kind.__new__(kind, message, inner or [UnknownOriginalError("lost")])
        else:
            error = kind.__new__(kind, *arguments)
            error.args = arguments
            if issubclass(kind, OSError):
                # errno, filename and their kin are filled in here; a subclass may take other arguments.
                OSError.__init__(error, *arguments)
        for name, value in recorded.get("attributes", {}).items():
            try:
                setattr(error, name, value)
            except AttributeError:
                continue
        if isinstance(recorded.get("cause"), dict):
            error.__cause__ = decode_error(recorded["cause"])
    except Exception:  # a class that cannot even be made any more must not hide the failure
        return UnknownOriginalError(f"{recorded.get('error_type', 'Exception')}: {message}")
    return error


def as_replayed(error: BaseException) -> BaseException:
    """*error* itself if a replay would rebuild its class, else what a replay would raise in its place."""
    if _is_rebuildable(error):
        return error
    replaced = decode_error(_to_plain(error, with_traceback=False))
    replaced.__cause__ = error
    return replaced


def _is_rebuildable(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup) and not all(_is_rebuildable(part) for part in error.exceptions):
        return False
    return _import_class(_name_of(type(error))) is type(error)


def clean(text: str) -> str:
    """*text* without what a database refuses (NUL, lone surrogates), and not endless."""
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _to_plain(error: BaseException, *, with_traceback: bool, depth: int = 0) -> dict[str, Any]:
    names = [_name_of(kind) for kind in type(error).__mro__ if issubclass(kind, BaseException)]
    importable = [name for name in names if _import_class(name) is not None]
    error_type, message = describe(error)
    plain: dict[str, Any] = {
        "error_type": error_type,
        "message": message,
        "type": importable[0] if importable else names[0],
        "bases": importable[1:-2],  # all but Exception and BaseException, which would always match
    }
    if isinstance(error, BaseExceptionGroup):
        plain["message"] = clean(error.message)
        if depth < 5:
            plain["exceptions"] = [
                _to_plain(part, with_traceback=False, depth=depth + 1) for part in error.exceptions[:100]
            ]
    elif (arguments := _json_or_none(_arguments(error))) is not None:
        plain["args"] = arguments
    else:
        plain["args"] = [message]
    attributes = {name: value for name, value in _attributes(error).items() if _json_or_none(value) is not None}
    if attributes:
        plain["attributes"] = {name: _json_or_none(value) for name, value in attributes.items()}
    if error.__cause__ is not None and depth < 5:
        plain["cause"] = _to_plain(error.__cause__, with_traceback=False, depth=depth + 1)
    if with_traceback:
        plain["traceback"] = clean("".join(traceback.format_exception(error, limit=-20)))[-MAX_TRACEBACK:]
    return plain


def _arguments(error: BaseException) -> list[Any]:
    """What to rebuild *error* with; an OSError keeps its file names beside its ``args``."""
    if not isinstance(error, OSError) or error.filename is None or len(error.args) != 2:
        return list(error.args)
    named = [*error.args, error.filename]
    return named if error.filename2 is None else [*named, None, error.filename2]


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a __str__ of the user's that raises
        return f"<{type(error).__name__} without a readable message>"


def _attributes(error: BaseException) -> dict[str, Any]:
    return {
        name: value
        for name, value in getattr(error, "__dict__", {}).items()
        if isinstance(name, str) and not name.startswith("__") and clean(name) == name
    }


def _json_or_none(value: Any) -> Any:
    """*value* as JSON if it is plain and small, else ``None``."""
    if value is None or not _is_plain(value):
        return None
    try:
        text = to_json(value, inf_nan_mode="constants").decode()
    except (PydanticSerializationError, ValueError):
        return None
    return (
        parse(text)
        if len(text) <= MAX_MESSAGE and "\\u0000" not in text and "NaN" not in text and "Infinity" not in text
        else None
    )


def _is_plain(value: Any, depth: int = 0) -> bool:
    if value is None or isinstance(value, (str, int, float, bool)):
        return True
    if depth > 8:
        return False
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, depth + 1) for item in value)
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(item, depth + 1) for key, item in value.items())
    return False


def _without_lists(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _import_class(name: str) -> type[BaseException] | None:
    module_name, _, path = name.partition(":")
    if not module_name or not path or "<locals>" in path:
        return None
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception:  # importing a module of the user's may raise anything
        return None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
