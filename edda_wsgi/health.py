"""Health: whether this application's database, tables and worker are as they should be.

Two askers. Inside a process, :func:`report` looks at its own event loop and its own connection that listens. A
container's health check is a process of its own, and looks in the database for a worker on this host that shows life.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from dataclasses import dataclass

from flask import Response, jsonify
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from edda_engine.errors import NewerVersionError
from edda_engine.runtime.processes import host_name
from edda_engine.storage import migrate, workers
from edda_wsgi.application import Application

LOOP_SECONDS = 2.0
SILENT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; *problem* says what is wrong and what to do, ``None`` that it is well."""

    name: str
    problem: str | None = None


def report(application: Application) -> list[Check]:
    """Look at the database, the tables, and the worker of this process if it is to have one."""
    checks = [_check("database", lambda: _database(application)), _check("tables", lambda: _tables(application))]
    if application.is_running:
        checks.append(_check("worker", lambda: _worker(application)))
    elif application.settings.role == "embedded":
        checks.append(Check("worker", "It has not started in this process yet."))
    return checks


def report_host(application: Application) -> list[Check]:
    """Look at the database, the tables, and whether a worker of the service lives on this host."""
    return [
        _check("database", lambda: _database(application)),
        _check("tables", lambda: _tables(application)),
        _check("worker", lambda: _worker_on_host(application)),
    ]


def view(application: Application) -> Response:
    """The report as a response: 200, or 503 if something is wrong."""
    checks = report(application)
    is_well = all(check.problem is None for check in checks)
    body = {"status": "ok" if is_well else "unhealthy", "checks": {each.name: each.problem or "ok" for each in checks}}
    response = jsonify(body)
    response.status_code = 200 if is_well else 503
    return response


def _check(name: str, look: Callable[[], str | None]) -> Check:
    try:
        return Check(name, look())
    except SQLAlchemyError as error:
        # Only its kind: the message may hold the address and the user.
        return Check(name, f"The database does not answer ({type(error).__name__}).")


def _database(application: Application) -> str | None:
    with application.database.read() as conn:
        conn.execute(text("SELECT 1"))
    return None


def _tables(application: Application) -> str | None:
    try:
        return migrate.check(application.database)
    except NewerVersionError as error:
        return str(error)


def _worker(application: Application) -> str | None:
    try:
        problems = application.worker_problems(LOOP_SECONDS)
    except (concurrent.futures.TimeoutError, TimeoutError):
        return f"The event loop has not answered for {LOOP_SECONDS:g} s; a log line names what blocks it."
    return " ".join(problems) or None


def _worker_on_host(application: Application) -> str | None:
    service, host = application.settings.service_name, host_name()
    with application.database.read() as conn:
        here = [
            found.worker_id for found in workers.siblings(conn, service=service, worker_id="") if found.host == host
        ]
        silent = set(workers.silent(conn, service=service, seconds=SILENT_SECONDS))
        if application.settings.listen and not application.database.is_sqlite:
            # The server drops the lock with the connection that listens.
            signs = workers.siblings_with_sign_of_life(conn, service=service, worker_id="")
            silent |= {found.worker_id for found, is_held in signs if not is_held}
    if any(worker_id not in silent for worker_id in here):
        return None
    if here:
        return (
            f"The workers on {host} show no life: no heartbeat for {SILENT_SECONDS:g} s, or no connection that listens."
        )
    return f"No worker of service {service!r} runs on {host}. Start `flask edda worker`, or the server with the engine."
