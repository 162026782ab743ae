"""Who waits in this process for an instance to end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edda_engine.core.status import Status
from edda_engine.storage.units import End


@dataclass(frozen=True, slots=True)
class Ending:
    """How an instance ended, as it was written."""

    workflow_name: str
    status: Status
    output_json: str | None
    error_json: str | None


Watcher = Callable[[Ending | None], None]
"""Called with how it ended, or with ``None`` when the database has to be asked."""


class Completions:
    """Callbacks by instance id; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Watcher]] = {}

    @contextmanager
    def watching(self, instance_id: str, callback: Watcher) -> Iterator[None]:
        """While inside, *callback* is called when the instance ends in this process."""
        with self._lock:
            self._waiting.setdefault(instance_id, []).append(callback)
        try:
            yield
        finally:
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
    """What those who wait are told; of a chain of recurrences, and why an instance was cancelled, the database tells."""
    if end.status in (Status.COMPLETED, Status.FAILED):
        return Ending(workflow_name, end.status, end.output_json, end.error_json)
    return None
