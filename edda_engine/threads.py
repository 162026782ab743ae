"""Threads for user code that may take for ever: a process never waits for them at its end.

The standard pool's threads are joined when the interpreter exits, so one activity that hangs would keep a worker that
has drained, and handed everything over, from ending. Whatever still runs on these is cut off with the process; what it
has not committed goes on elsewhere.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Job = tuple["Future[Any]", Callable[[], Any]]


class DaemonThreads(Executor):
    """Runs functions on up to so many threads, made when there is work and none is idle."""

    def __init__(self, most: int, *, name: str) -> None:
        self._most, self._name = most, name
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._made = self._idle = 0
        self._is_shut = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function on one of the threads.

        :raises RuntimeError: the threads were shut down.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._is_shut:
                raise RuntimeError(f"The threads {self._name!r} were shut down; nothing more can run on them.")
            self._jobs.append((future, lambda: fn(*args, **kwargs)))
            if len(self._jobs) > self._idle and self._made < self._most:
                threading.Thread(target=self._work, name=f"{self._name}_{self._made}", daemon=True).start()
                self._made += 1
            else:
                self._changed.notify()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Take no more work and let the threads end; never waits for them.

        :param cancel_futures: Drop what has not begun.
        """
        with self._changed:
            self._is_shut = True
            dropped = list(self._jobs) if cancel_futures else []
            if cancel_futures:
                self._jobs.clear()
            self._changed.notify_all()
        for future, _ in dropped:
            future.cancel()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            _run(*job)
            del job  # nothing of a call is kept while the thread is idle

    def _next(self) -> _Job | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._jobs or self._is_shut)
            self._idle -= 1
            return self._jobs.popleft() if self._jobs else None


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # whoever waits gets it, SystemExit too
        future.set_exception(error)
    else:
        future.set_result(result)
