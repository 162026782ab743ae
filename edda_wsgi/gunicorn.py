"""gunicorn configuration: ``gunicorn -c python:edda_wsgi.gunicorn "shop:create_app()"``.

Starts the engine with each worker and drains it when the worker leaves. With a configuration file of your own, import
the three hooks into it; a hook of your own of the same name calls the one from here::

    from edda_wsgi.gunicorn import post_worker_init, worker_abort, worker_exit

How it thinks. The worker takes no more work from SIGTERM on, while it ends its requests; then its activities have what
is left of the graceful timeout. gunicorn kills a worker that gives no sign of life for ``timeout`` seconds, and stops
asking for it only when the whole server stops. A worker that drains because of a reload or of ``max_requests`` gives
the sign itself.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edda_wsgi import lifecycle

_MARGIN_SECONDS = 2.0
_BEAT_SECONDS = 0.25


def post_worker_init(worker: Any) -> None:
    """The worker has loaded the application: start its engine, without waiting for a request."""
    lifecycle.start_all()
    lifecycle.keep_what_is_loaded()
    worker.edda_leaves_at = None
    # gunicorn closes its own before it calls worker_exit().
    worker.edda_sign_of_life = os.dup(worker.tmp.fileno())
    _note_sigterm(worker)


def worker_exit(server: Any, worker: Any) -> None:
    """The worker serves no more requests: let its activities finish within the graceful timeout."""
    leaves_at = getattr(worker, "edda_leaves_at", None)
    waited = time.monotonic() - leaves_at if leaves_at is not None else 0.0
    seconds = max(0.0, worker.cfg.graceful_timeout - waited - _MARGIN_SECONDS)
    with _signs_of_life(worker, at_most_seconds=seconds + _MARGIN_SECONDS):
        lifecycle.stop_all(seconds)


def worker_abort(worker: Any) -> None:
    """The worker has not answered for ``timeout`` seconds and is killed in a second: hand everything over at once."""
    lifecycle.stop_all(0.0)


def _note_sigterm(worker: Any) -> None:
    action = signal.getsignal(signal.SIGTERM)
    if not callable(action):
        return  # a kind of worker that has its own way

    def leave(number: int, frame: types.FrameType | None) -> None:
        worker.edda_leaves_at = worker.edda_leaves_at or time.monotonic()
        lifecycle.stop_claiming()
        action(number, frame)

    signal.signal(signal.SIGTERM, leave)
    signal.siginterrupt(signal.SIGTERM, False)  # as gunicorn has it, for the requests under way


@contextmanager
def _signs_of_life(worker: Any, *, at_most_seconds: float) -> Iterator[None]:
    number = getattr(worker, "edda_sign_of_life", None)
    has_ended, until = threading.Event(), time.monotonic() + at_most_seconds

    def beat() -> None:
        while number is not None and (now := time.monotonic()) < until:
            os.utime(number, (now, now))  # what gunicorn's own notify() does
            if has_ended.wait(_BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="edda-sign-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
