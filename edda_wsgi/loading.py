"""What settings name by its dotted path: modules with workflows, hooks, the check of the event endpoint.

Nothing is loaded before it is needed, so that a setting may name what the application only defines after
``init_app()``; ``flask edda check`` loads it all and says what is wrong.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from edda_engine.errors import ConfigurationError
from edda_engine.hooks import HooksBase


def import_modules(module_names: Iterable[str]) -> None:
    """Import the modules that declare workflows.

    :raises ConfigurationError: one of them cannot be imported.
    """
    for name in module_names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            raise ConfigurationError(
                f"WORKFLOWS names {name!r}, and there is no module {error.name!r}. Check the spelling and the path."
            ) from error


def load_hooks(paths: Iterable[str]) -> Any:
    """Make the hooks objects; several are called one after the other.

    :raises ConfigurationError: a path leads nowhere.
    """
    made = []
    for path in paths:
        module_name, _, name = path.rpartition(".")
        try:
            made.append(getattr(importlib.import_module(module_name), name)())
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(f"HOOKS names {path!r}, which cannot be loaded: {error}") from error
    if len(made) <= 1:
        return made[0] if made else HooksBase()
    return _Several(made)


class _Several:
    """Passes every call on to all hooks; one that raises does not keep it from the others."""

    def __init__(self, hooks: list[Any]) -> None:
        self._hooks = hooks

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> None:
            errors = []
            for hook in self._hooks:
                try:
                    getattr(hook, name)(*args)
                except Exception as error:  # the edge of user code
                    errors.append(error)
            if errors:
                raise errors[0]

        return call


def load_check(auth: Any) -> Callable[[Any], object]:
    """The callable that ``EVENTS["AUTH"]`` is or names.

    :raises ConfigurationError: it names none, or one that would let everybody in.
    """
    found: Any = auth
    if isinstance(auth, str):
        module_name, _, name = auth.rpartition(".")
        try:
            found = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"EVENTS['AUTH'] names {auth!r}, which cannot be loaded: {error}") from error
    if not callable(found) or inspect.isclass(found):
        raise ConfigurationError(f"EVENTS['AUTH'] is {found!r}; it must be a function that takes the request.")
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__):
        raise ConfigurationError(
            f"EVENTS['AUTH'] is {found!r}, an `async def`: what it returns would always be true. Use a plain function."
        )
    check: Callable[[Any], object] = found
    return check
