"""A gunicorn configuration of your own, with edda's three hooks."""

from edda_wsgi.gunicorn import post_worker_init, worker_abort, worker_exit

bind = "127.0.0.1:8000"
workers = 4
threads = 8
worker_class = "gthread"
graceful_timeout = 30

__all__ = [
    "bind", "graceful_timeout", "post_worker_init", "threads", "worker_abort", "worker_class", "worker_exit", "workers",
]  # fmt: skip
