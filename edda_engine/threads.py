"""Threads for user code that may take for ever: a process never waits for them at its end.

The standard pool's threads are joined when the interpreter exits, so one activity that hangs would keep a worker that
has drained, and handed everything over, from ending. Whatever still runs on these is cut off with the process; what it
has not committed goes on elsewhere.

A job tells by itself what became of it, so putting one costs no more than a place in a queue; a thread that has ended
one takes the next at once. :meth:`DaemonThreads.submit` is for those who want a future.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Job = Callable[[], None]


class DaemonThreads(Executor):
    """Runs functions on up to so many threads, made when there is work and none is idle."""

    def __init__(self, most: int, *, name: str) -> None:
        self._most, self._name = most, name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._putting = threading.Lock()
        self._idle: deque[None] = deque()
        self._made = 0
        self._is_shut = False

    def put(self, job: Job) -> None:
        """Run a job on one of the threads; what it raises is logged.

        :raises RuntimeError: the threads were shut down, or there is none and the system makes none.
        """
        with self._putting:
            if self._is_shut:
                raise RuntimeError(f"The threads {self._name!r} were shut down; nothing more can run on them.")
            try:
                self._idle.pop()
            except IndexError:
                self._make_one()
            self._jobs.put(job)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function on one of the threads.

        :raises RuntimeError: the threads were shut down.
        """
        job: _Call = _Call(lambda: fn(*args, **kwargs))
        self.put(job)
        return job.future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Take no more work and let the threads end; never waits for them.

        :param cancel_futures: Drop what has not begun.
        """
        with self._putting:
            self._is_shut = True
            for job in self._taken_out() if cancel_futures else ():
                if isinstance(job, _Call):
                    job.future.cancel()
            for _ in range(self._made):
                self._jobs.put(None)

    def _make_one(self) -> None:
        if self._made == self._most:
            return
        try:
            threading.Thread(target=self._work, name=f"{self._name}_{self._made}", daemon=True).start()
        except RuntimeError:  # the system has no more; those that there are will come to everything
            if not self._made:
                raise
        else:
            self._made += 1

    def _taken_out(self) -> list[Job | None]:
        found: list[Job | None] = []
        while True:
            try:
                found.append(self._jobs.get_nowait())
            except queue.Empty:
                return found

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException:  # it answers for what it runs, so this is an error of ours
                _log.exception("A job of the threads %s broke", self._name)
            del job  # nothing of a call is kept while the thread is idle
            self._idle.append(None)


class _Call:
    """A job whose outcome is a future's."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.future: Future[Any] = Future()

    def __call__(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._call()
        except BaseException as error:  # whoever waits gets it, SystemExit too
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
