"""Who waits in this process for an instance to end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edda_engine.core.status import Status
from edda_engine.storage.units import End


@dataclass(frozen=True, slots=True)
class Ending:
    """An instance has completed, with this output as it was written."""

    workflow_name: str
    output_json: str | None


Watcher = Callable[[Ending | None], None]
"""Called with its end, or with ``None`` when the database has to be asked."""


class _Watching:
    """One who waits for one instance."""

    __slots__ = ("_about", "_of")

    def __init__(self, of: Completions, *about: Any) -> None:
        self._of, self._about = of, about

    def __enter__(self) -> None:
        self._of._add(*self._about)

    def __exit__(self, *_: object) -> None:
        self._of._remove(*self._about)


class Completions:
    """Callbacks by instance id; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Watcher]] = {}

    def watching(self, instance_id: str, callback: Watcher) -> _Watching:
        """While inside, *callback* is called when the instance ends in this process."""
        return _Watching(self, instance_id, callback)

    def _add(self, instance_id: str, callback: Watcher) -> None:
        with self._lock:
            self._waiting.setdefault(instance_id, []).append(callback)

    def _remove(self, instance_id: str, callback: Watcher) -> None:
        with self._lock:
            callbacks = self._waiting[instance_id]
            callbacks.remove(callback)
            if not callbacks:
                del self._waiting[instance_id]

    def announce(self, instance_id: str, ending: Ending | None = None) -> None:
        """Call those who wait for this instance."""
        if not self._waiting:
            return
        with self._lock:
            callbacks = list(self._waiting.get(instance_id, ()))
        for callback in callbacks:
            callback(ending)


def ending_of(workflow_name: str, end: End) -> Ending | None:
    """What those who wait are told, if that is for ever; otherwise the database tells.

    A failed instance may have been retried by now, of a chain of recurrences the last one counts, and why an instance was
    cancelled is not known here.
    """
    if end.status is Status.COMPLETED:
        return Ending(workflow_name, end.output_json)
    return None
