"""Threads for user code that may take for ever: a process never waits for them at its end.

The standard pool's threads are joined when the interpreter exits, so one activity that hangs would keep a worker that
has drained, and handed everything over, from ending. Whatever still runs on these is cut off with the process; what it
has not committed goes on elsewhere.

A job tells by itself what became of it, so putting one costs no more than a place in a queue. :meth:`DaemonThreads.submit`
is for those who want a future.

How it thinks. To wake a thread costs more than a short job, so as few as can be are woken: one, unless one is on its way
already. Who takes a job while others are left wakes the next one first. So a hundred short jobs are done one after the
other by a thread that never sleeps in between, and a job that blocks holds nothing up: somebody is on the way to the rest.
"""

from __future__ import annotations

import logging
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
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._asleep: list[threading.Lock] = []
        """What each idle thread waits for to be released."""
        self._on_their_way = 0
        """So many threads were woken or made, and have not looked for a job yet."""
        self._made = 0
        self._is_shut = False

    def put(self, job: Job) -> None:
        """Run a job on one of the threads; what it raises is logged.

        :raises RuntimeError: the threads were shut down.
        """
        with self._lock:
            if self._is_shut:
                raise RuntimeError(f"The threads {self._name!r} were shut down; nothing more can run on them.")
            self._jobs.append(job)
            if not self._on_their_way:
                self._call_somebody()

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
        with self._lock:
            self._is_shut = True
            dropped = list(self._jobs) if cancel_futures else []
            if cancel_futures:
                self._jobs.clear()
            asleep, self._asleep = self._asleep, []
            self._on_their_way += len(asleep)
        for bed in asleep:
            bed.release()
        for job in dropped:
            if isinstance(job, _Call):
                job.future.cancel()

    def _call_somebody(self) -> None:
        """Wake a thread, or make one; the lock is held."""
        if self._asleep:
            self._on_their_way += 1
            self._asleep.pop().release()
        elif self._made < self._most:
            threading.Thread(target=self._work, name=f"{self._name}_{self._made}", daemon=True).start()
            self._made += 1
            self._on_their_way += 1

    def _work(self) -> None:
        bed = threading.Lock()
        bed.acquire()
        has_just_come = True
        while True:
            with self._lock:
                if has_just_come:
                    self._on_their_way -= 1
                job = self._jobs.popleft() if self._jobs else None
                if job is None and self._is_shut:
                    return
                if job is None:
                    self._asleep.append(bed)
                elif self._jobs and not self._on_their_way:
                    self._call_somebody()
            has_just_come = job is None
            if job is None:
                bed.acquire()
                continue
            try:
                job()
            except BaseException:  # it answers for what it runs, so this is an error of ours
                _log.exception("A job of the threads %s broke", self._name)


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
