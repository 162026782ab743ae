"""Exceptions to JSON and back, of the same type on replay as live.

How it thinks. An exception is recorded as the chain of its importable classes, its arguments and its attributes. It is
rebuilt without calling its constructor (which may take other arguments by then) as the first class of the chain that
can still be made. A workflow only ever meets what was rebuilt, live too (:func:`as_replayed`): whatever an exception
loses on the way shows on the first run, not after a crash.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import MemberDescriptorType
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from edda_engine.core.tagged import MAX_TEXT, NotRecorded, clean, find_named, from_tagged, to_tagged
from edda_engine.errors import EddaError

MAX_MESSAGE = MAX_TEXT
MAX_TRACEBACK = 20_000
_MAX_CHAIN = 5
_MAX_INNER = 200
_MAX_GROUP = 100
_NOTES = "__notes__"
_FILLED_BY_KEYWORD = ((ImportError, ("name", "path")), (AttributeError, ("name",)), (NameError, ("name",)))


class UnknownOriginalError(EddaError):
    """Stands for a recorded exception none of whose classes can be imported any more."""


def describe(error: BaseException) -> tuple[str, str]:
    """The type's name and the message of *error*, both safe to store and to print."""
    return type(error).__name__, clean(_message(error))


def encode_error(error: BaseException, *, with_traceback: bool = True) -> str:
    """The JSON text of *error*; never fails, whatever the exception looks like."""
    plain = _Record(error).plain
    if with_traceback:
        plain["traceback"] = clean("".join(traceback.format_exception(error, limit=-20)))[-MAX_TRACEBACK:]
    return json.dumps(plain)


def decode_error(recorded: dict[str, Any]) -> BaseException:
    """The exception that was recorded, or its nearest ancestor that can be made."""
    error = _made(recorded)
    for name, value in _recorded_attributes(recorded).items():
        try:
            setattr(error, name, value)
        except Exception:  # it has become read-only, or is a property of the user's that refuses
            continue
    if isinstance(recorded.get("cause"), dict):
        error.__cause__ = decode_error(recorded["cause"])
    return error


def as_replayed(error: BaseException) -> BaseException:
    """What a replay raises for *error*; only the traceback is that of *error*, which no replay can know."""
    rebuilt = decode_error(_Record(error).plain)
    if type(rebuilt) is not type(error):
        rebuilt.add_note(f"It was raised as {type(error).__qualname__}, which cannot be imported and made anew.")
    _lend_traceback(rebuilt, error)
    return rebuilt


def _lend_traceback(rebuilt: BaseException, original: BaseException) -> None:
    """For people, and for what reports errors: where it was raised, and what was being handled then."""
    rebuilt.__traceback__ = original.__traceback__
    if rebuilt.__cause__ is not None and original.__cause__ is not None:
        _lend_traceback(rebuilt.__cause__, original.__cause__)
    else:
        rebuilt.__context__ = original.__context__
    rebuilt.__suppress_context__ = original.__suppress_context__
    if isinstance(rebuilt, BaseExceptionGroup) and isinstance(original, BaseExceptionGroup):
        for part, its_original in zip(rebuilt.exceptions, original.exceptions, strict=False):
            _lend_traceback(part, its_original)


class _Record:
    """Writes one exception down, with those that it carries, and counts them: some carry themselves."""

    def __init__(self, error: BaseException) -> None:
        self._room = _MAX_INNER
        self.plain = self._of(error, 0)

    def _of(self, error: BaseException, depth: int) -> dict[str, Any]:
        self._room -= 1
        error_type, message = describe(error)
        if depth > _MAX_CHAIN or self._room < 0:
            return {"error_type": error_type, "message": message}
        names = [_name_of(kind) for kind in type(error).__mro__ if issubclass(kind, BaseException)]
        importable = [name for name in names if _import_class(name) is not None]
        plain: dict[str, Any] = {
            "error_type": error_type,
            "message": message,
            "type": importable[0] if importable else names[0],
            "bases": importable[1:-2],  # all but Exception and BaseException, which would always match
            "tagged": True,  # without it the values are as release 0.1.0 wrote them
        }

        def inner(part: BaseException) -> dict[str, Any]:
            return self._of(part, depth + 1)

        if isinstance(error, BaseExceptionGroup):
            plain["message"] = clean(error.message)
            plain["exceptions"] = [inner(part) for part in error.exceptions[:_MAX_GROUP]]
        elif isinstance(error, ValidationError):
            plain["validation"] = _validation(error, message, inner)
        else:
            plain["args"] = [to_tagged(argument, inner, is_shown=True) for argument in _arguments(error)]
        attributes = {name: to_tagged(value, inner) for name, value in _attributes(error).items()}
        if attributes:
            plain["attributes"] = attributes
        if error.__cause__ is not None and depth < _MAX_CHAIN:
            plain["cause"] = inner(error.__cause__)
        return plain


def _arguments(error: BaseException) -> list[Any]:
    """What to rebuild *error* with; an OSError keeps its file names beside its ``args``."""
    arguments = list(vars(BaseException)["args"].__get__(error))  # a class may use the name for something else
    if not isinstance(error, OSError) or error.filename is None or len(arguments) != 2:
        return arguments
    named = [*arguments, error.filename]
    return named if error.filename2 is None else [*named, None, error.filename2]


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a __str__ of the user's that raises
        return f"<{type(error).__name__} without a readable message>"


def _attributes(error: BaseException) -> dict[str, Any]:
    """What *error* keeps in its ``__dict__``, in slots, and in what some built-in classes take as keywords."""
    found = {
        name: value
        for name, value in getattr(error, "__dict__", {}).items()
        if isinstance(name, str) and (name == _NOTES or not name.startswith("__")) and clean(name) == name
    }
    if found.get("hide_parameters") is True:  # an engine of SQLAlchemy that was told to keep them out of logs
        found["params"] = NotRecorded("<hidden>", "<hidden>")
    for kind in type(error).__mro__:
        if "__slots__" in vars(kind):
            slots = [name for name, slot in vars(kind).items() if isinstance(slot, MemberDescriptorType)]
            found |= {name: getattr(error, name) for name in slots if hasattr(error, name)}
    for builtin, names in _FILLED_BY_KEYWORD:
        if isinstance(error, builtin):
            found |= {name: getattr(error, name) for name in names if isinstance(getattr(error, name, None), str)}
    return found


def _validation(
    error: ValidationError, message: str, inner: Callable[[BaseException], dict[str, Any]]
) -> dict[str, Any]:
    """The problems that pydantic found; its class cannot be made in any other way."""
    return {
        "title": clean(error.title),
        "hides_input": "input_value=" not in message,
        "problems": [
            {
                "type": clean(problem["type"]),
                "msg": clean(problem["msg"]),
                "loc": to_tagged(list(problem["loc"]), inner),
                "input": to_tagged(problem["input"], inner),
            }
            for problem in error.errors(include_url=False, include_context=False)[:_MAX_GROUP]
        ],
    }


# Reading.


def _made(recorded: dict[str, Any]) -> BaseException:
    for name in (recorded.get("type", ""), *recorded.get("bases", [])):
        kind = _import_class(name)
        if kind is None:
            continue
        try:
            return _make(kind, recorded)
        except Exception:  # a class that cannot even be made any more must not hide the failure
            continue
    return UnknownOriginalError(f"{recorded.get('error_type', 'Exception')}: {recorded.get('message', '')}")


def _make(kind: type[BaseException], recorded: dict[str, Any]) -> BaseException:
    message = str(recorded.get("message", ""))
    if issubclass(kind, BaseExceptionGroup):
        inner = [decode_error(part) for part in recorded.get("exceptions", [])]
        group: BaseException = _new(kind, (message, inner or [UnknownOriginalError("lost")]))
        return group
    if kind is ValidationError and "validation" in recorded:
        return _make_validation_error(recorded["validation"])
    arguments = _recorded_arguments(recorded, message)
    error: BaseException = _new(kind, arguments)
    # Fills in what the class keeps outside of __dict__, such as errno; a subclass may have been made with other arguments.
    with suppress(TypeError, ValueError):
        _built_in(kind).__init__(error, *_fitting(error, arguments))
    if isinstance(error, UnicodeError):
        error.args = arguments
    return error


def _fitting(error: BaseException, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of a large text that could not be coded, only the place of the problem is kept; the class insists on a text."""
    if isinstance(error, UnicodeError) and len(arguments) == 5 and isinstance(arguments[1], NotRecorded):
        return (arguments[0], b"" if isinstance(error, UnicodeDecodeError) else "", *arguments[2:])
    return arguments


def _new(kind: type[BaseException], arguments: tuple[Any, ...]) -> Any:
    try:
        return kind.__new__(kind, *arguments)
    except Exception:  # a __new__ of the user's that takes other arguments
        return _built_in(kind).__new__(kind, *arguments)


def _built_in(kind: type[BaseException]) -> type[BaseException]:
    return next(found for found in kind.__mro__ if found.__module__ == "builtins")


def _make_validation_error(recorded: dict[str, Any]) -> ValidationError:
    problems = [
        InitErrorDetails(
            type=PydanticCustomError(problem["type"], problem["msg"]),
            loc=tuple(from_tagged(problem["loc"], decode_error)),
            input=from_tagged(problem["input"], decode_error),
        )
        for problem in recorded["problems"]
    ]
    made = ValidationError.from_exception_data(recorded["title"], problems, hide_input=recorded["hides_input"])
    made.args = ()  # as in those that pydantic raises
    return made


def _recorded_arguments(recorded: dict[str, Any], message: str) -> tuple[Any, ...]:
    if recorded.get("tagged"):
        return tuple(from_tagged(argument, decode_error) for argument in recorded.get("args", [message]))
    # Release 0.1.0 wrote a tuple as a list, and more often meant a tuple.
    written = recorded.get("args", [message])
    return tuple(tuple(argument) if isinstance(argument, list) else argument for argument in written)


def _recorded_attributes(recorded: dict[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = recorded.get("attributes", {})
    if not recorded.get("tagged"):
        return attributes
    return {name: from_tagged(value, decode_error) for name, value in attributes.items()}


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _import_class(name: str) -> type[BaseException] | None:
    found = find_named(name)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
