"""Values to JSON text and back, by annotation.

How it thinks. A value that a workflow sees is always ``decode(encode(value))``, live as on replay, so both
are the same whatever the annotation says. What does not survive the round trip without a word (a NaN, an
integer key in a plain ``dict``) is refused with the path to it. Everything is wrapped in a one-element
tuple for pydantic, because only then does our configuration (bytes as base64, NaN by name) reach nested
dataclasses; the two brackets are cut off again.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
import typing
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import typing_extensions
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from edda_engine.errors import ConfigurationError, PayloadError

_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
_SCALARS = frozenset({str, int, float, bool, type(None)})
_SURELY_SHALLOW = 100
_DEEPEST = 300
_ADDED_LEVELS = 8
_PLAIN_ANNOTATIONS = (Any, dict, list, object)


class Codec:
    """Encodes and decodes the values of one annotation."""

    __slots__ = ("_adapter", "_is_plain", "annotation")

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        self._is_plain = annotation in _PLAIN_ANNOTATIONS
        try:
            one_of_it: Any = tuple[_understood(annotation)]  # type: ignore[misc]
            self._adapter: TypeAdapter[tuple[Any]] = TypeAdapter(one_of_it, config=_CONFIG)
        except PydanticSchemaGenerationError as error:
            raise ConfigurationError(
                f"The annotation {annotation!r} names no type that can be stored as JSON: {error.message.splitlines()[0]}"
                " Use JSON types, pydantic models, dataclasses, or the like."
            ) from error

    def encode(self, value: Any, *, owner: str, path: str = "$") -> str:
        """The JSON text of *value*.

        :raises PayloadError: names *owner* and the path to what cannot be encoded.
        """
        _refuse_unfinished(owner, path, value)
        try:
            text = self._adapter.dump_json((value,), warnings=False)[1:-1].decode()
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise _located(owner, path, value, error) from error
        except Exception as error:  # a property or serializer of the user's class raised
            raise PayloadError(owner, path, f"could not be encoded: {type(error).__name__}: {error}") from error
        if "\\u0000" in text:
            _refuse_nul(owner, path, value)
        if text.count("[") + text.count("{") > _SURELY_SHALLOW:
            _refuse_too_deep(owner, path, text)
        if len(text) > _SURELY_READABLE and _LONG_NUMBER.search(text) is not None:
            _refuse_unreadable(owner, path, text)
        return text

    def decode(self, text: str, *, owner: str, path: str = "$") -> Any:
        """The value that the JSON *text* stands for.

        :raises PayloadError: it does not fit the annotation.
        """
        try:
            return self._adapter.validate_json(f"[{text}]")[0]
        except ValidationError as error:
            raise PayloadError(owner, *_first_problem(error, path)) from error
        except Exception as error:  # a validator of the user's class raised something else
            raise PayloadError(owner, path, f"could not be restored: {type(error).__name__}: {error}") from error

    def decode_parsed(self, value: Any, *, owner: str, path: str = "$") -> Any:
        """The same as :meth:`decode` for JSON that is parsed already."""
        if self._is_plain and (self.annotation in (Any, object) or isinstance(value, self.annotation)):
            return value
        return self.decode(to_json(value, inf_nan_mode="constants").decode(), owner=owner, path=path)

    def round_trip(self, value: Any, *, owner: str, path: str = "$") -> tuple[str, Any]:
        """The JSON text, and the value as a replay will see it.

        :raises PayloadError: it cannot be encoded, or would come back as something else without a word.
        """
        text = self.encode(value, owner=owner, path=path)
        restored = self.decode(text, owner=owner, path=path)
        if not _equal(restored, value):
            _refuse_silent_change(owner, path, value, restored)
        return text, restored


MAX_ID_LENGTH = 255


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURELY_READABLE = 4300
_LONG_NUMBER = re.compile(f"[0-9]{{{_SURELY_READABLE + 1}}}")


def is_storable(text: object) -> bool:
    """Whether *text* can be a text in the database: without NUL or lone surrogates."""
    return isinstance(text, str) and "\0" not in text and _is_unicode(text)


def is_storable_id(text: object) -> bool:
    """Whether *text* can be an id in the database: 1 to 255 characters, without NUL or lone surrogates."""
    return isinstance(text, str) and 0 < len(text) <= MAX_ID_LENGTH and is_storable(text)


def is_name(text: object, *, limit: int = MAX_ID_LENGTH) -> bool:
    """Whether *text* can be given to something as its name.

    Control characters cannot: a name stands in log lines, headers and terminals, and would begin another line there.
    """
    return isinstance(text, str) and 0 < len(text) <= limit and is_storable(text) and _CONTROLS.search(text) is None


def check_size(payload: str | bytes, limit: int, *, owner: str) -> None:
    """Refuse giants, measured in bytes; text counts as UTF-8.

    :raises PayloadError: *payload* takes more than *limit* bytes.
    """
    size = len(payload.encode()) if isinstance(payload, str) and not payload.isascii() else len(payload)
    if size > limit:
        unit = "bytes of JSON" if isinstance(payload, str) else "bytes"
        raise PayloadError(owner, "$", f"takes {size} {unit}, more than MAX_PAYLOAD_BYTES = {limit}; keep it elsewhere")


@lru_cache(maxsize=4096)
def _cached_codec(annotation: Any) -> Codec:
    return Codec(annotation)


def codec_for(annotation: Any) -> Codec:
    """The codec of an annotation; a missing annotation is ``Any``."""
    if annotation is inspect.Parameter.empty or annotation is None:
        annotation = Any if annotation is inspect.Parameter.empty else type(None)
    try:
        return _cached_codec(annotation)
    except TypeError:  # unhashable, e.g. Annotated with a list
        return Codec(annotation)


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The resolved annotations of a function; those that cannot be resolved are left out.

    A name that only exists under ``TYPE_CHECKING`` must not stop an application from starting.
    """
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # whatever the user's annotations raise when evaluated
        found = {}
        scope = {**getattr(function, "__globals__", {}), **_closure(function)}
        for name, annotation in getattr(function, "__annotations__", {}).items():
            if not isinstance(annotation, str):
                found[name] = annotation
                continue
            try:
                found[name] = eval(annotation, scope)
            except Exception:
                warnings.warn(
                    f"The annotation {annotation!r} of {name!r} in {function.__qualname__} cannot be resolved;"
                    " its values stay plain JSON. Import the name at run time to have them restored.",
                    stacklevel=4,
                )
        return found


def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    """Names of the enclosing function: models declared beside the workflow, as in tests."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    names = dict(zip(code.co_freevars, cells, strict=False)) if code and cells else {}
    return {name: cell.cell_contents for name, cell in names.items() if _is_filled(cell)}


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def parse(text: str | bytes) -> Any:
    """JSON text to plain values."""
    return from_json(text)


def _understood(annotation: Any) -> Any:
    """Below Python 3.12 pydantic refuses ``typing.TypedDict``; give it the twin that it takes."""
    if sys.version_info >= (3, 12):
        return annotation
    if typing.is_typeddict(annotation) and not typing_extensions.is_typeddict(annotation):
        return _twin(annotation)
    if type(annotation).__name__ == "_TypedDictMeta" and annotation.__class__.__module__ == "typing":
        return _twin(annotation)
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if not arguments or origin in (typing.Literal, typing.Annotated) or origin is None:
        return annotation
    replaced = tuple(
        _understood(argument) if isinstance(argument, type) or typing.get_args(argument) else argument
        for argument in arguments
    )
    if replaced == arguments:
        return annotation
    if hasattr(annotation, "copy_with"):
        return annotation.copy_with(replaced)
    if isinstance(origin, type) and origin.__module__ == "types":
        return typing.Union[replaced]  # noqa: UP007 (X | None with a replaced X)
    return origin[replaced]


def _twin(annotation: Any) -> Any:
    hints = typing.get_type_hints(annotation, include_extras=True)
    fields = {
        name: (
            _understood(hint)
            if name in annotation.__required_keys__
            else typing_extensions.NotRequired[_understood(hint)]
        )
        for name, hint in hints.items()
    }
    return typing_extensions.TypedDict(annotation.__name__, fields)  # type: ignore[operator]


def _equal(left: Any, right: Any) -> bool:
    try:
        return bool(left == right)
    except Exception:  # comparing user classes may raise anything; the careful walk decides
        return False


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


def _located(owner: str, path: str, value: Any, error: Exception, above: tuple[int, ...] = ()) -> PayloadError:
    """Walk down to the first part that cannot be encoded by itself."""
    if id(value) in above or "depth exceeded" in str(error) or isinstance(error, RecursionError):
        return PayloadError(owner, path, "is nested too deeply or contains itself")
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, str) and not _is_unicode(key):
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
            return _located(owner, path + step, child, inner, (*above, id(value)))
        except Exception as inner:
            return PayloadError(owner, path + step, f"could not be encoded: {type(inner).__name__}: {inner}")
    if isinstance(value, str) and not _is_unicode(value):
        return PayloadError(owner, path, "is a string with a lone surrogate, which JSON has no form for")
    return PayloadError(owner, path, f"is a {type(value).__qualname__}, which has no JSON form ({error})")


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unfinished(owner: str, path: str, value: Any, depth: int = 0) -> None:
    """Refuse generators and coroutines, also in containers: encoding would use a generator up."""
    kind = type(value)
    if kind in (dict, list, tuple):
        if depth > _DEEPEST:
            return  # refused for its depth a moment later
        for step, child in value.items() if kind is dict else enumerate(value):
            if type(child) not in _SCALARS:
                _refuse_unfinished(owner, f"{path}[{step!r}]", child, depth + 1)
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


def _refuse_silent_change(owner: str, path: str, value: Any, restored: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value) and not isinstance(restored, float):
        raise PayloadError(owner, path, f"is {value}, which JSON has no form for; annotate it as float, or use None")
    if isinstance(value, Mapping) and isinstance(restored, Mapping):
        for key in value:
            if key not in restored and not isinstance(key, str):
                raise PayloadError(
                    owner,
                    path,
                    f"has the key {key!r}, a {type(key).__name__}, which JSON turns into a string;"
                    " annotate it, as in dict[int, str], or use string keys",
                )
    ours, theirs = _children(value), dict(_children(restored))
    for step, child in ours:
        if step in theirs:
            _refuse_silent_change(owner, path + step, child, theirs[step])


def _first_problem(error: ValidationError, path: str) -> tuple[str, str]:
    first = error.errors(include_url=False, include_input=False)[0]
    inside = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][1:])
    return path + inside, f"does not fit its annotation ({first['msg']})"
