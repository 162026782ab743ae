"""What cannot be stored, found and named: each refusal tells the path to the part that is at fault.

The walks here are slow beside the encoding itself, so they are made only when something about the text or the restored value
says that they will find something.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from edda_engine.errors import PayloadError

_SCALARS = frozenset({str, int, float, bool, type(None)})
_SECRETS = (Secret, SecretStr, SecretBytes)
_ASTERISKS = '"**********"'
_SURELY_SHALLOW = 100
_DEEPEST = 300
_ADDED_LEVELS = 8
_SURELY_READABLE = 4300
_LONG_NUMBER = re.compile(f"[0-9]{{{_SURELY_READABLE + 1}}}")


def is_unicode(text: str) -> bool:
    """Whether *text* has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_text(owner: str, path: str, value: Any, text: str) -> None:
    """Refuse what a database does not take, and what could be written but not read.

    :raises PayloadError: *text*, which stands for *value*, has something of that kind.
    """
    if "\\u0000" in text:
        _refuse_nul(owner, path, value)
    if text.count("[") + text.count("{") > _SURELY_SHALLOW:
        _refuse_too_deep(owner, path, text)
    if len(text) > _SURELY_READABLE and _LONG_NUMBER.search(text) is not None:
        _refuse_unreadable(owner, path, text)


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        return [(f".{name}", getattr(value, name)) for name in type(value).model_fields]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", child) for key, child in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"[{number}]", child) for number, child in enumerate(value)]
    return []


def located(owner: str, path: str, value: Any, error: Exception, above: tuple[int, ...] = ()) -> PayloadError:
    """The refusal of the first part that cannot be encoded by itself."""
    if id(value) in above or "depth exceeded" in str(error) or isinstance(error, RecursionError):
        return PayloadError(owner, path, "is nested too deeply or contains itself")
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, str) and not is_unicode(key):
                return PayloadError(
                    owner, path, f"has a key with a lone surrogate ({key!r}), which JSON has no form for"
                )
    for step, child in _children(value):
        if isinstance(value, BaseModel) and isinstance(child, bytes) and not _is_text(child):
            cure = 'model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")'
            return PayloadError(owner, path + step, f"is bytes that are no text; give {type(value).__name__} {cure}")
        try:
            to_json(child, inf_nan_mode="strings", bytes_mode="base64")
        except (PydanticSerializationError, ValueError, RecursionError) as inner:
            return located(owner, path + step, child, inner, (*above, id(value)))
        except Exception as inner:
            return PayloadError(owner, path + step, f"could not be encoded: {type(inner).__name__}: {inner}")
    if isinstance(value, str) and not is_unicode(value):
        return PayloadError(owner, path, "is a string with a lone surrogate, which JSON has no form for")
    return PayloadError(owner, path, f"is a {type(value).__qualname__}, which has no JSON form ({error})")


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def refuse_unfinished(owner: str, path: str, value: Any, depth: int = 0) -> None:
    """Refuse generators and coroutines, also in containers: encoding would use a generator up.

    :raises PayloadError: *value* is one, or holds one.
    """
    kind = type(value)
    if kind in _SCALARS:
        return
    if kind in (dict, list, tuple):
        if depth > _DEEPEST:
            return  # refused for its depth a moment later
        for step, child in value.items() if kind is dict else enumerate(value):
            if type(child) not in _SCALARS:
                refuse_unfinished(owner, f"{path}[{step!r}]", child, depth + 1)
        return
    is_waiting = inspect.isawaitable(value) and not isinstance(value, str)  # an event id is both
    if is_waiting or inspect.isgenerator(value) or inspect.isasyncgen(value):
        raise PayloadError(owner, path, f"is a {kind.__name__}; await it, or make a list of it, first")


def _refuse_too_deep(owner: str, path: str, text: str) -> None:
    """What is written must be readable, also inside the few levels that a row adds around it."""
    try:
        from_json("[" * _ADDED_LEVELS + text + "]" * _ADDED_LEVELS)
    except ValueError as error:
        raise PayloadError(owner, path, "is nested too deeply to be read back") from error


def _refuse_unreadable(owner: str, path: str, text: str) -> None:
    """Python writes longer integers than it reads; a message with one would break whoever gets it."""
    try:
        from_json(text)
    except ValueError as error:
        raise PayloadError(owner, path, f"holds an integer of more than {_SURELY_READABLE} digits") from error


def _refuse_nul(owner: str, path: str, value: Any) -> None:
    if isinstance(value, str) and "\0" in value:
        raise PayloadError(
            owner, path, "is a string with a NUL character, which PostgreSQL refuses; strip it, or use bytes"
        )
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, str) and "\0" in key:
                raise PayloadError(owner, path, f"has a key with a NUL character ({key!r}), which PostgreSQL refuses")
    for step, child in _children(value):
        _refuse_nul(owner, path + step, child)


def refuse_silent_change(owner: str, path: str, value: Any, restored: Any) -> None:
    """Refuse what would come back as something else without a word.

    :raises PayloadError: a part of *value* is of that kind.
    """
    if isinstance(value, float) and not math.isfinite(value) and not isinstance(restored, float):
        raise PayloadError(owner, path, f"is {value}, which JSON has no form for; annotate it as float, or use None")
    if isinstance(value, _SECRETS) and _secret_of(restored) != _secret_of(value):
        raise _secret(owner, path, value)
    if isinstance(value, Mapping) and isinstance(restored, Mapping):
        for key in value:
            if key not in restored and not isinstance(key, str):
                raise PayloadError(
                    owner,
                    path,
                    f"has the key {key!r}, a {type(key).__name__}, which JSON turns into a string;"
                    " annotate it, as in dict[int, str], or use string keys",
                )
    if isinstance(restored, Mapping) and not isinstance(value, Mapping):  # a model where no annotation names it
        theirs = {f".{key}": child for key, child in restored.items()}
    else:
        theirs = dict(_children(restored))
    for step, child in _children(value):
        if step in theirs:
            refuse_silent_change(owner, path + step, child, theirs[step])


def refuse_secrets(owner: str, path: str, value: Any, text: str) -> None:
    """Refuse a value that cannot be read back because a secret in it was written as asterisks.

    :raises PayloadError: *text*, which stands for *value*, has one.
    """
    if _ASTERISKS not in text:
        return
    if isinstance(value, _SECRETS):
        raise _secret(owner, path, value)
    for step, child in _children(value):
        refuse_secrets(owner, path + step, child, text)


def _secret(owner: str, path: str, value: Any) -> PayloadError:
    return PayloadError(
        owner,
        path,
        f"is a {type(value).__name__}, of which only asterisks would be stored; read the secret where it is needed,"
        " or pass get_secret_value() to have it stored as it is",
    )


def _secret_of(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, _SECRETS) else value


def first_problem(error: ValidationError, path: str) -> tuple[str, str]:
    """The path to what does not fit its annotation, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    inside = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][1:])
    return path + inside, f"does not fit its annotation ({first['msg']})"
