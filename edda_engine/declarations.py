"""What ``@workflow`` and ``@activity`` share: names, signatures, and the registry of both.

A declaration only describes. Names are unique in a process because history is recorded by name.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from edda_engine.core.codec import MAX_ID_LENGTH, Codec, codec_for, enclosed_by, hints_of, is_name, parse
from edda_engine.errors import ConfigurationError, DuplicateNameError, PayloadError, UnknownWorkflowError

D = TypeVar("D", bound="Declaration")


class Parameters:
    """The parameters of a declared function after ``ctx``, each with its codec."""

    def __init__(self, function: Callable[..., Any], name: str, *, reserved: str) -> None:
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise ConfigurationError(
                f"{name!r} at {place_of(function)} must take the context as its first argument: def {name}(ctx, ...)."
            )
        hints = hints_of(function)
        if reserved in {parameter.name for parameter in parameters}:
            raise ConfigurationError(
                f"{name!r} at {place_of(function)} has a parameter {reserved!r}, which is reserved; rename it."
            )
        self.signature = inspect.Signature(parameters[1:])
        is_by_place = parameters[0].kind is inspect.Parameter.POSITIONAL_ONLY
        self._context_name = None if is_by_place else parameters[0].name
        self._kinds = {parameter.name: parameter.kind for parameter in parameters[1:]}
        self._codecs: dict[str, Codec] = {
            parameter.name: codec_for(self._annotation(parameter, hints)) for parameter in parameters[1:]
        }
        self._paths = {name: f"$.{name}" for name in self._codecs}
        self.result = codec_for(hints.get("return", inspect.Parameter.empty))
        self._sole_model = self._find_sole_model(parameters[1:], hints)
        self._simple = (
            tuple(self._codecs)
            if all(kind == inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in self._kinds.values())
            else None
        )

    @staticmethod
    def _annotation(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
        annotation = hints.get(parameter.name, parameter.annotation)
        if annotation is inspect.Parameter.empty or isinstance(annotation, str):
            annotation = Any
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return list[annotation]  # type: ignore[valid-type]
        return dict[str, annotation] if parameter.kind is inspect.Parameter.VAR_KEYWORD else annotation  # type: ignore[valid-type]

    @staticmethod
    def _find_sole_model(parameters: list[inspect.Parameter], hints: Mapping[str, Any]) -> str | None:
        if len(parameters) != 1 or parameters[0].kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            return None
        annotation = hints.get(parameters[0].name)
        return parameters[0].name if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None

    @property
    def takes_one_model(self) -> bool:
        """Whether there is one parameter, and a pydantic model is its type."""
        return self._sole_model is not None

    def as_called(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, owner: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What to call the function with: keywords that make up its one model parameter become that model.

        :raises PayloadError: they do not fit the model.
        """
        if self._sole_model is None or args or not kwargs or self._sole_model in kwargs:
            return args, kwargs
        text = codec_for(Any).encode(kwargs, owner=owner)
        return (self._codecs[self._sole_model].decode(text, owner=owner, path=f"$.{self._sole_model}"),), {}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name, defaults filled in.

        :raises TypeError: they do not fit the signature.
        """
        if self._simple is not None and not kwargs and len(args) == len(self._simple):
            return dict(zip(self._simple, args, strict=True))
        if self._context_name in kwargs:
            raise TypeError(f"{self._context_name!r} is the context, and no argument")
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def as_recorded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments as history holds them, or ``None`` if they cannot be told."""
        try:
            args, kwargs = self.as_called(args, kwargs, owner="")
            return parse(self.encode(self.bind(args, kwargs), owner=""))
        except (TypeError, PayloadError):
            return None

    def encode(self, arguments: Mapping[str, Any], *, owner: str) -> str:
        """The arguments as one JSON object.

        :raises PayloadError: names *owner* and the path to the value.
        """
        return (
            "{"
            + ",".join(
                f'"{name}":{self._codecs[name].encode(value, owner=owner, path=self._paths[name])}'
                for name, value in arguments.items()
            )
            + "}"
        )

    def round_trip(self, arguments: Mapping[str, Any], *, owner: str) -> str:
        """The same as :meth:`encode`, and a check that every value fits its annotation when it comes back."""
        return (
            "{"
            + ",".join(
                f'"{name}":{self._codecs[name].round_trip(value, owner=owner, path=self._paths[name])[0]}'
                for name, value in arguments.items()
            )
            + "}"
        )

    def decode(self, arguments: Mapping[str, Any], *, owner: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What to call the function with: positional and keyword arguments."""
        if self._sole_model is not None and self._sole_model not in arguments:
            arguments = {self._sole_model: dict(arguments)}
        unknown = [name for name in arguments if name not in self._codecs]
        if unknown:
            raise PayloadError(
                owner, f"$.{unknown[0]}", f"belongs to no parameter any more; the signature is {self.signature}"
            )
        values = {
            name: codec.decode_parsed(arguments[name], owner=owner, path=self._paths[name])
            for name, codec in self._codecs.items()
            if name in arguments
        }
        if self._simple is not None and len(values) == len(self._simple):
            return tuple(values.values()), {}
        bound = self.signature.bind_partial()
        for name, value in values.items():
            bound.arguments[name] = tuple(value) if self._kinds[name] is inspect.Parameter.VAR_POSITIONAL else value
        bound.apply_defaults()
        return bound.args, bound.kwargs


class Declaration:
    """A declared function: its name, its parameters, where it stands."""

    kind = "declaration"

    def __init__(self, function: Callable[..., Any], *, name: str | None, reserved: str) -> None:
        if not callable(function):
            raise ConfigurationError(
                f"@{self.kind} decorates a function; this is {function!r}. Options are keywords: @{self.kind}(name=...)."
            )
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise ConfigurationError(
                f"{function.__qualname__!r} at {place_of(function)} is a generator; a {self.kind} is a plain or an async function."
            )
        self.function = function
        self.name = name or function.__name__
        if not is_name(self.name):
            raise ConfigurationError(
                f"@{self.kind}(name={self.name!r:.80}): a name is a text of 1 to {MAX_ID_LENGTH} characters, without control"
                " characters."
            )
        self.is_async = inspect.iscoroutinefunction(function)
        self.parameters = Parameters(function, self.name, reserved=reserved)
        self.place = place_of(function)
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r} at {self.place}>"


class Registry(Generic[D]):
    """Every declaration of one kind in this process, by name."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._by_name: dict[str, D] = {}

    def add(self, declaration: D) -> None:
        """Register, replacing the same function (a reload), refusing another one of the same name.

        :raises DuplicateNameError: another function has this name, or this one closes over other values.
        """
        known = self._by_name.get(declaration.name)
        if known is not None:
            closes_over = other_values(known.function, declaration.function) if known.place == declaration.place else []
            if known.place != declaration.place or closes_over:
                raise DuplicateNameError(
                    self._kind, declaration.name, first=known.place, second=declaration.place, closes_over=closes_over
                )
        self._by_name[declaration.name] = declaration

    def find(self, name: str) -> D:
        """The declaration of that name.

        :raises UnknownWorkflowError: there is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownWorkflowError(name, list(self._by_name)) from None

    def get(self, name: str) -> D | None:
        """The declaration of that name, or ``None``."""
        return self._by_name.get(name)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._by_name)

    def __iter__(self) -> Iterator[D]:
        return iter(list(self._by_name.values()))

    def snapshot(self) -> dict[str, D]:
        """What is registered now, for :meth:`restore`; for tests that declare their own."""
        return dict(self._by_name)

    def restore(self, snapshot: dict[str, D]) -> None:
        """Forget what was declared since *snapshot*."""
        self._by_name = dict(snapshot)


_SCALARS = (str, bytes, int, float, type(None))


def other_values(first: Any, second: Any) -> list[str]:
    """The names in which two functions made at one place differ, because what is around it ran twice.

    Of a function of a module there are none: a reload may replace all that it uses.
    """
    first, second = inspect.unwrap(first), inspect.unwrap(second)
    if "<locals>" not in getattr(second, "__qualname__", ""):
        return []
    return _other_values(first, second, set())


def _other_values(first: Any, second: Any, seen: set[tuple[int, int]]) -> list[str]:
    seen.add((id(first), id(second)))
    before, after = enclosed_by(first), enclosed_by(second)
    return [name for name in after if name in before and not _is_same(before[name], after[name], seen)]


def _is_same(first: Any, second: Any, seen: set[tuple[int, int]]) -> bool:
    if first is second:
        return True
    if isinstance(first, _SCALARS) and isinstance(second, _SCALARS):
        return first == second
    first, second = (value.function if isinstance(value, Declaration) else value for value in (first, second))
    if not (inspect.isfunction(first) and inspect.isfunction(second)) or place_of(first) != place_of(second):
        return False
    return (id(first), id(second)) in seen or not _other_values(first, second, seen)


def place_of(function: Callable[..., Any]) -> str:
    """``file:line``, where a function is declared."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def source_of(function: Callable[..., Any]) -> tuple[str, str]:
    """The source text of a function, and its hash; the hash of its code where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        source = f"# source not available\n{code.co_code.hex() if code else function!r}"
    return source, hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()[:16]
