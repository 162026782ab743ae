"""How a worker, or the supervisor of several, is told to stop: by SIGTERM, or by Ctrl-C.

The first of them asks to drain. While it drains another SIGTERM changes nothing, because service managers and shells
send several; another Ctrl-C means that somebody does not want to wait. And once everything is done no signal may make
a failure of it.

A handler may interrupt the main thread anywhere, even where it holds a lock. So it only puts a note into a queue that
is made for that; setting a ``threading.Event`` that the main thread is about to wait for would block for ever.
"""

from __future__ import annotations

import atexit
import os
import queue
import signal
import types
from collections.abc import Callable

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Takes the signals of this process while entered; the main thread's.

    :param hurry: Called, in the handler, for Ctrl-C after the first signal.
    """

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        self._notes: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._is_asked = self._is_over = False
        self._exit_status = 0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._take) for number in _NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_over:
            for number, action in self._previous.items():
                signal.signal(number, action)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> bool:
        """Wait for so long to be asked to stop; True if it was, now or before."""
        if not self._is_asked:
            try:
                self._notes.get(timeout=seconds)
            except queue.Empty:
                return False
        return True

    def ignore_from_now_on(self, *, exit_status: int) -> None:
        """All is done and this process is ending: no signal changes its exit status any more."""
        self._exit_status, self._is_over = exit_status, True
        # Not by a function of ours: when the interpreter ends it gives those signals back to the system, which kills.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def _take(self, number: int, _frame: types.FrameType | None) -> None:
        if self._is_over:
            os._exit(self._exit_status)  # Ctrl-C while the threads of somebody else keep the process from its end
        if self._is_asked and number == signal.SIGINT:
            self._hurry()
        self._is_asked = True
        self._notes.put(number)
