"""``flask edda worker --processes N``: several workers under one small process that starts again what dies.

Each worker is a process of its own, started by the same command line, so nothing is inherited across a fork. A worker
that dies at once and again is started with growing pauses. When this process is told to stop it tells its workers,
and waits for them; when it is killed itself, they notice and stop by themselves.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edda_wsgi.signals import StopSignals

_log = logging.getLogger(__name__)

PARENT_VARIABLE = "EDDA_WORKER_OF"
"""Set for a supervised worker: the pid of its supervisor."""

_LOOK_SECONDS = 0.2
_SHORT_LIFE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 30.0
_EXTRA_SECONDS = 10.0


def is_supervised() -> bool:
    """Whether this process is one of the workers of a supervisor."""
    return PARENT_VARIABLE in os.environ


def has_lost_its_supervisor() -> bool:
    """Whether this process was started by a supervisor that is gone."""
    return is_supervised() and str(os.getppid()) != os.environ[PARENT_VARIABLE]


@dataclass(slots=True)
class _Place:
    """One of the workers to keep alive."""

    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_after: float = 0.0
    pause_seconds: float = 0.0


class Supervisor:
    """Keeps so many workers alive until it is told to stop."""

    def __init__(self, count: int, *, shutdown_seconds: float, command: Sequence[str] | None = None) -> None:
        self._command = list(command or (sys.executable, *sys.orig_argv[1:]))
        self._places = [_Place() for _ in range(count)]
        self._patience = shutdown_seconds + _EXTRA_SECONDS
        self._must_hurry = False

    def run(self) -> bool:
        """Start the workers and look after them; return when all have ended after a signal, to end the process.

        :returns: False if some had to be killed, because they took too long or somebody did not want to wait.
        """
        are_drained = False
        with StopSignals(self._hurry) as signals:
            try:
                self._look_after_all()
                while not signals.wait(_LOOK_SECONDS):
                    self._look_after_all()
            finally:
                are_drained = self._stop_all()
            signals.ignore_from_now_on(exit_status=0 if are_drained else 1)
        return are_drained

    def _hurry(self) -> None:
        self._must_hurry = True

    def _look_after_all(self) -> None:
        for place in self._places:
            self._look_after(place)

    def _look_after(self, place: _Place) -> None:
        now = time.monotonic()
        if place.process is not None:
            status = place.process.poll()
            if status is None:
                return
            lived = now - place.started_at
            is_short = lived < _SHORT_LIFE_SECONDS
            place.pause_seconds = min(max(1.0, place.pause_seconds * 2), _LONGEST_PAUSE_SECONDS) if is_short else 0.0
            place.start_after = now + place.pause_seconds
            _log.warning(
                "Worker process %s ended with status %s after %.1f s; it is started again in %.0f s",
                place.process.pid, status, lived, place.pause_seconds,
            )  # fmt: skip
            place.process = None
        if now >= place.start_after:
            environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
            place.process = subprocess.Popen(self._command, env=environment)
            place.started_at = now

    def _stop_all(self) -> bool:
        are_drained = True
        processes = [place.process for place in self._places if place.process is not None]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + self._patience
        for process in processes:
            while process.poll() is None and time.monotonic() < deadline and not self._must_hurry:
                time.sleep(0.05)
            if process.poll() is None:
                _log.warning("Worker process %s has not ended and is killed; its work goes on elsewhere", process.pid)
                process.kill()
            # One that was told to stop before it could listen had nothing under way.
            are_drained &= process.wait() in (0, -signal.SIGTERM)
        return are_drained
