"""gunicorn configuration: ``gunicorn -c python:edda_wsgi.gunicorn "shop:create_app()"``.

Starts the engine with each worker and drains it when the worker leaves. With a configuration file of your own,
import the two hooks into it::

    from edda_wsgi.gunicorn import post_worker_init, worker_exit
"""

from __future__ import annotations

from typing import Any

from edda_wsgi import lifecycle

_MARGIN_SECONDS = 2.0


def post_worker_init(worker: Any) -> None:
    """The worker has loaded the application: start its engine, without waiting for a request."""
    lifecycle.start_all()


def worker_exit(server: Any, worker: Any) -> None:
    """The worker serves no more requests: let its activities finish within the graceful timeout."""
    lifecycle.stop_all(max(0.0, worker.cfg.graceful_timeout - _MARGIN_SECONDS))
