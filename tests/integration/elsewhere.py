"""Another process, for tests of waking: it starts, sends or waits, and never runs anything by itself unless told to.

Run as ``python -m tests.integration.elsewhere URL COMMAND ...``. Never import it in a test: it declares workflows.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from edda_engine import EddaApp
from edda_engine.workflow import StartOptions
from edda_wsgi import EddaFlask, WorkflowContext, sleep, workflow
from tests.integration.engines import SERVICE
from tests.integration.flask_apps import driver_url


@workflow
async def number(ctx: WorkflowContext, n: int) -> int:
    return n


@workflow
async def sleeper(ctx: WorkflowContext, seconds: float) -> str:
    await sleep(ctx, seconds)
    return ctx.worker_id


def start_in_a_request(url: str, instance_id: str, delay: str) -> None:
    """A web process with the role ``client``: a start in ``db.session``, and its end right after the commit."""
    app, db, edda = Flask("elsewhere"), SQLAlchemy(), EddaFlask()
    app.config["SQLALCHEMY_DATABASE_URI"] = driver_url(url)
    db.init_app(app)
    edda.init_app(app, db=db, role="client", service_name=SERVICE)
    with app.app_context():
        number.options(instance_id=instance_id, delay=float(delay)).start(7)
        db.session.commit()


def start_in_a_script(url: str, instance_id: str, delay: str) -> None:
    """A script with an ``EddaApp`` that it never runs."""
    app = EddaApp(service_name=SERVICE, db_url=url)
    asyncio.run(_start(app, number, instance_id, delay, 7))


def start_on_both_sides_of_a_fork(url: str, first: str, second: str) -> None:
    app = EddaApp(service_name=SERVICE, db_url=url)
    asyncio.run(_start(app, number, first, "0", 1))
    child = os.fork()
    if child == 0:
        app._database.after_fork()
    asyncio.run(_start(app, number, f"{second}-{'child' if child == 0 else 'parent'}", "0", 2))
    if child != 0:
        _, status = os.waitpid(child, 0)
        assert status == 0


def send(url: str, event_type: str, service: str) -> None:
    """An event, from a script of some service."""

    async def main() -> None:
        await EddaApp(service_name=service, db_url=url).send_event(event_type, "elsewhere", {"n": 7})

    asyncio.run(main())


def send_as_worker(url: str, event_type: str) -> None:
    """An event, from a worker that goes on until it is killed, and knows the workflows of this module only."""

    async def main() -> None:
        async with EddaApp(service_name=SERVICE, db_url=url) as app:
            instance_id = uuid.uuid4().hex
            await _start(app, number, instance_id, "0", 1)
            await app.result(instance_id)  # by now all have heard of this worker
            await app.send_event(event_type, "elsewhere", {"n": 7})
            await asyncio.Event().wait()

    asyncio.run(main())


def park(url: str, instance_id: str, seconds: str) -> None:
    """A worker that begins to sleep in a workflow, and goes on until it is killed."""

    async def main() -> None:
        async with EddaApp(service_name=SERVICE, db_url=url) as app:
            await _start(app, sleeper, instance_id, "0", float(seconds))
            await asyncio.Event().wait()

    asyncio.run(main())


async def _start(app: EddaApp, what: Any, instance_id: str, delay: str, *args: Any) -> None:
    await app.start_with(what, StartOptions(instance_id=instance_id, delay=float(delay)), args, {})


COMMANDS = {
    "request": start_in_a_request,
    "script": start_in_a_script,
    "fork": start_on_both_sides_of_a_fork,
    "send": send,
    "send as worker": send_as_worker,
    "park": park,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[2]](sys.argv[1], *sys.argv[3:])
