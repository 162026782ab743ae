"""Calls of a body that nobody awaits nor gives to a task: most likely an ``await`` was forgotten.

How it thinks. Such a call has its number and is never done, and the workflow goes on as if it had been. Python tells so
on stderr when it throws the coroutine away; who reads a log has to hear of it too, with the names that they know.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any, Protocol
from weakref import ref

_log = logging.getLogger(__name__)


class _Run(Protocol):
    instance_id: str
    workflow_name: str
    fate: type[BaseException] | None


class Unawaited:
    """What a run has handed to its body, until somebody takes it up."""

    __slots__ = ("_calls", "_ids")

    def __init__(self) -> None:
        self._calls: dict[str, tuple[str, ref[Any]]] = {}
        self._ids: dict[int, str] = {}
        """By the coroutine's identity, which another one may have once it is gone."""

    def note(self, coroutine: Coroutine[Any, Any, Any], activity_id: str, name: str) -> Coroutine[Any, Any, Any]:
        """What is handed out for the call *name*."""
        self._calls[activity_id] = name, ref(coroutine)
        self._ids[id(coroutine)] = activity_id
        return named(coroutine, name)

    def begun(self, activity_id: str) -> None:
        """It is awaited now."""
        call = self._calls.pop(activity_id, None)
        if call is not None:
            self._ids.pop(id(call[1]()), None)

    def given_to_a_task(self, coroutine: object) -> None:
        """A task will await it, or has reasons of its own not to."""
        activity_id = self._ids.get(id(coroutine))
        if activity_id is not None and self._calls[activity_id][1]() is coroutine:
            self.begun(activity_id)

    def tell(self, run: _Run) -> None:
        """The body has returned: warn of what it has forgotten."""
        if not self._calls or run.fate is not None:
            return
        names = [name for name, _ in self._calls.values()]
        calls = [f"{name} ({activity_id})" for activity_id, name in zip(self._calls, names, strict=True)]
        _log.warning(
            "Workflow %s, instance %s, has returned without awaiting %s: none of that was done. Write `await %s(ctx, ...)`.",
            run.workflow_name, run.instance_id, ", ".join(calls[:20]), names[0],
            extra={"instance_id": run.instance_id, "workflow_name": run.workflow_name},
        )  # fmt: skip


def named(coroutine: Any, name: str) -> Coroutine[Any, Any, Any]:
    """Python tells by this name of a coroutine that nobody awaits."""
    coroutine.__qualname__ = name
    return coroutine  # type: ignore[no-any-return]
