"""When the engine starts and stops by itself.

It starts at the first request, under ``flask run`` without one, and from the gunicorn configuration with each
worker; never at import, in ``flask shell`` and other commands, or in an application under test. A fork is noticed
by the pid. When the process exits, leases are handed back.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  registers its own end of process first
import gc
import os
import threading

import click
from flask import Flask

from edda_wsgi.application import Application, everywhere
from edda_wsgi.signals import StopSignals
from edda_wsgi.supervisor import has_lost_its_supervisor

_AFTER_LOADING_SECONDS = 0.5
_AT_EXIT_SECONDS = 2.0
_LOOK_SECONDS = 0.5

_leaving_pid: int | None = None
"""Of this process, once it is ending. Not of its children."""


def attach(app: Flask, application: Application) -> None:
    """Arrange for the engine of *app* to start when it is needed."""

    @app.before_request
    def start_with_the_first_request() -> None:
        # Before the view opens a transaction: the tables cannot be made beside one on SQLite.
        application.tables.try_for()
        is_wanted = application.settings.role == "embedded" and not app.testing and _leaving_pid != os.getpid()
        if is_wanted and not application.is_running:
            application.start_engine()

    if application.settings.role != "embedded":
        return

    if _is_flask_run():
        # No request may ever come, and interrupted instances must go on all the same. The application is
        # not complete yet, so a moment later.
        timer = threading.Timer(_AFTER_LOADING_SECONDS, _start_unless_testing, (app, application))
        timer.daemon = True
        timer.start()


def start_all() -> None:
    """Start the engines of all applications of this process whose role is ``embedded``."""
    for application in list(everywhere):
        if application.settings.role == "embedded":
            application.start_engine()


def keep_what_is_loaded() -> None:
    """Spare the garbage collector what the application consists of: in a process that only works it stays to the end.

    Otherwise every full collection looks at all of it again, and work for many instances makes many.
    """
    gc.collect()
    gc.freeze()


def stop_claiming() -> None:
    """Take no more work into this process; for the handler of a signal that will let it end."""
    for application in list(everywhere):
        application.stop_claiming()


def stop_all(at_most_seconds: float) -> None:
    """Drain and stop every engine of this process, which is to end, within its own SHUTDOWN_SECONDS and this limit."""
    global _leaving_pid
    _leaving_pid = os.getpid()  # requests that are still served begin no new one
    for application in list(everywhere):
        application.stop_engine(min(application.settings.shutdown_seconds, at_most_seconds))


def run_until_signalled(application: Application, *, ends_process: bool = False) -> bool:
    """Run workflows in this process until SIGTERM or SIGINT, then drain. Ctrl-C while it drains stops at once.

    :param ends_process: The process is there for nothing else: what is loaded stays, and no later signal may turn success
        into a failure.
    :returns: False if a body blocks the event loop, so that nothing could be handed over.
    """
    # What was under way goes on elsewhere.
    with StopSignals(hurry=lambda: os._exit(1)) as signals:
        starting = application.start_engine()
        if ends_process:
            keep_what_is_loaded()
        while not signals.wait(_LOOK_SECONDS) and not has_lost_its_supervisor():
            if starting.done() and (error := starting.exception()) is not None:
                raise error
        is_drained = application.stop_engine(None)
        if ends_process:
            signals.ignore_from_now_on(exit_status=0)
    return is_drained


def _start_unless_testing(app: Flask, application: Application) -> None:
    if not app.testing:
        application.start_engine()


def _is_flask_run() -> bool:
    """Whether this process serves under ``flask run``: not another command, and not the reloader's parent."""
    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "run" or os.environ.get("FLASK_RUN_FROM_CLI") != "true":
        return False
    debug = os.environ.get("FLASK_DEBUG", "").lower() not in ("", "0", "false", "no")
    has_reloader = context.params.get("reload")
    has_reloader = debug if has_reloader is None else has_reloader
    return not has_reloader or os.environ.get("WERKZEUG_RUN_MAIN") == "true"


def _at_exit() -> None:
    stop_all(_AT_EXIT_SECONDS)


# Thread pools refuse work before ordinary atexit functions are called; this runs before they do (last registered,
# first called). Python has no public name for it, so without it the siblings have to notice that we are gone.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)
