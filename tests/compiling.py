"""The engines of all tests share what SQLAlchemy has compiled.

Each test makes engines of its own, and each engine compiles the same statements anew: that was a third of the time of
the whole suite. A statement is compiled for its dialect; so engines share if their dialects are the same in every
setting that can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from sqlalchemy import Dialect, Engine
from sqlalchemy.util import LRUCache

_MANY = 3000

_compiled: LRUCache[Any, Any] = LRUCache(_MANY)


class _Shared(MutableMapping[Any, Any]):
    """The cache of one engine. SQLAlchemy's keys begin with the dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._kind: Any = None

    def _key(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._kind is None:  # asked first with a connection: what that tells of the server is known
            plain = {
                name: value
                for name, value in vars(self._dialect).items()
                if isinstance(value, str | int | float | bool | tuple | None)
            }
            self._kind = (type(self._dialect), *sorted(plain.items(), key=lambda item: item[0]))
        return (self._kind, *key[1:])

    def __getitem__(self, key: Any) -> Any:
        return _compiled[self._key(key)]

    def __setitem__(self, key: Any, value: Any) -> None:
        _compiled[self._key(key)] = value

    def __delitem__(self, key: Any) -> None:
        del _compiled[self._key(key)]

    def __iter__(self) -> Iterator[Any]:
        return iter(list(_compiled))

    def __len__(self) -> int:
        return len(_compiled)

    def clear(self) -> None:
        """Forgets nothing of others."""


class _Sharing:
    """In the place of the attribute in which an engine has its cache."""

    def __get__(self, engine: Engine, _kind: type[Engine]) -> Any:
        return vars(engine)["_edda_cache"]

    def __set__(self, engine: Engine, cache: Any) -> None:
        vars(engine)["_edda_cache"] = _Shared(engine.dialect) if isinstance(cache, LRUCache) else cache


def share() -> None:
    """From now on new engines do."""
    Engine._compiled_cache = _Sharing()  # type: ignore[assignment]
