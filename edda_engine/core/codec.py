"""Values to JSON text and back, by annotation.

How it thinks. A value that a workflow sees is always ``decode(encode(value))``, live as on replay, so both
are the same whatever the annotation says. What does not survive the round trip without a word (a NaN, an
integer key in a plain ``dict``) is refused with the path to it. Everything is wrapped in a one-element
tuple for pydantic, because only then does our configuration (bytes as base64, NaN by name) reach nested
dataclasses; the two brackets are cut off again.

Numbers, words and ids are what most steps are called with, and come back as they are: pydantic is not asked about those.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import typing_extensions
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from edda_engine.core.refusals import (
    first_problem,
    is_unicode,
    located,
    refuse_secrets,
    refuse_silent_change,
    refuse_text,
    refuse_unfinished,
)
from edda_engine.errors import ConfigurationError, PayloadError

_CONFIG = ConfigDict(
    ser_json_bytes="base64",
    val_json_bytes="base64",
    ser_json_inf_nan="strings",
    hide_input_in_errors=True,  # they are causes of ours, and stand in tracebacks
)
_PLAIN_ANNOTATIONS = (Any, dict, list, object)

_SIMPLE = (int, bool, type(None), str)
_WORDS = {True: "true", False: "false", None: "null"}
_LARGEST = 2**63 - 1
"""Of an integer that every reader of JSON takes as it is."""
_LONGEST = 200


class Codec:
    """Encodes and decodes the values of one annotation."""

    __slots__ = ("_adapter", "_is_plain", "_names", "_simple", "annotation")

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        self._is_plain = annotation in _PLAIN_ANNOTATIONS
        named = type(None) if annotation is None else annotation
        self._simple = {kind for kind in _SIMPLE if named in (kind, Any, object)}
        try:
            one_of_it: Any = tuple[_understood(annotation)]  # type: ignore[misc]
            self._adapter: TypeAdapter[tuple[Any]] = TypeAdapter(one_of_it, config=_CONFIG)
        except PydanticSchemaGenerationError as error:
            raise ConfigurationError(
                f"The annotation {annotation!r} names no type that can be stored as JSON: {error.message.splitlines()[0]}"
                " Use JSON types, pydantic models, dataclasses, or the like."
            ) from error
        self._names = _Names(self._adapter.core_schema)

    def encode(self, value: Any, *, owner: str, path: str = "$") -> str:
        """The JSON text of *value*.

        :raises PayloadError: names *owner* and the path to what cannot be encoded.
        """
        simple = self._simple_text(value)
        if simple is not None:
            return simple
        refuse_unfinished(owner, path, value)
        try:
            text = self._adapter.dump_json(
                (value,), warnings=False, by_alias=self._names.by_alias, round_trip=self._names.round_trip
            )[1:-1].decode()
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise located(owner, path, value, error) from error
        except Exception as error:  # a property or serializer of the user's class raised
            raise PayloadError(owner, path, f"could not be encoded: {type(error).__name__}: {error}") from error
        refuse_text(owner, path, value, text)
        return text

    def decode(self, text: str, *, owner: str, path: str = "$") -> Any:
        """The value that the JSON *text* stands for.

        :raises PayloadError: it does not fit the annotation.
        """
        try:
            return self._adapter.validate_json(f"[{text}]", by_alias=not self._names.collide, by_name=True)[0]
        except ValidationError as error:
            raise PayloadError(owner, *first_problem(error, path)) from error
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
        simple = self._simple_text(value)
        if simple is not None:
            return simple, value
        text = self.encode(value, owner=owner, path=path)
        try:
            restored = self.decode(text, owner=owner, path=path)
        except PayloadError:
            refuse_secrets(owner, path, value, text)
            raise
        if not _equal(restored, value):
            refuse_silent_change(owner, path, value, restored)
        return text, restored

    def _simple_text(self, value: Any) -> str | None:
        """The JSON text of a value that comes back as it is, whoever reads it; ``None`` if that must be found out."""
        kind = type(value)
        if kind not in self._simple:
            return None
        if kind is int:
            return str(value) if -_LARGEST <= value <= _LARGEST else None
        if kind is not str:
            return _WORDS[value]
        is_as_written = len(value) <= _LONGEST and value.isascii() and value.isprintable()
        return f'"{value}"' if is_as_written and '"' not in value and "\\" not in value else None


class _Names:
    """How the fields of an annotation are called in JSON: by their names when we write, and also by an alias when we read.

    Whoever starts a workflow may know the aliases only; what we have written must not depend on how a model wants to be shown.
    """

    __slots__ = ("by_alias", "collide", "round_trip")

    def __init__(self, schema: Any) -> None:
        self.by_alias: bool | None = None
        """``None``: a model that no annotation names is shown as it wants to be."""
        self.round_trip = False
        """Whether there are fields that are shown and not read, or shown otherwise than they are read."""
        self.collide = False
        """One field's alias is another one's name: only the names can be told apart."""
        self._look_at(schema, set())

    def _look_at(self, part: Any, seen: set[int]) -> None:
        if not isinstance(part, (dict, list, tuple)) or id(part) in seen:
            return
        seen.add(id(part))
        if not isinstance(part, dict):
            for inner in part:
                self._look_at(inner, seen)
            return
        fields = part.get("fields")
        if isinstance(fields, (dict, list)):
            self.by_alias = False
            self.collide = self.collide or _collide(dict(_named(fields)))
        if part.get("computed_fields") or part.get("type") == "json":
            self.round_trip = True
        for name, inner in part.items():
            if name not in ("default", "metadata", "config"):  # these hold what users write
                self._look_at(inner, seen)


def _named(fields: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The fields of a model come by name, those of a dataclass in a list."""
    for name, field in fields.items() if isinstance(fields, dict) else ((None, field) for field in fields):
        if isinstance(field, dict):
            yield name or field.get("name", ""), field


def _collide(fields: dict[str, dict[str, Any]]) -> bool:
    for name, field in fields.items():
        aliases = field.get("validation_alias")
        for alias in aliases if isinstance(aliases, list) else [aliases]:
            first = alias[0] if isinstance(alias, list) and alias else alias  # a path begins with a name
            if isinstance(first, str) and first != name and first in fields:
                return True
    return False


MAX_ID_LENGTH = 255


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


def is_storable(text: object) -> bool:
    """Whether *text* can be a text in the database: without NUL or lone surrogates."""
    return isinstance(text, str) and "\0" not in text and is_unicode(text)


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
        scope = {**getattr(function, "__globals__", {}), **enclosed_by(function)}
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


def enclosed_by(function: Callable[..., Any]) -> dict[str, Any]:
    """What *function* uses of the function around it, as far as it is set: models declared beside a workflow, say."""
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
