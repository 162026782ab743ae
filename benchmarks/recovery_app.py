"""The application whose workers `recovery.py` kills: all settings are the defaults.

``BENCH_DATABASE_URL`` names its database, ``BENCH_FOLDER`` the folder where each run of the step is noted, and where a
file says which process is to be killed: there the step lasts for ever.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from edda_wsgi import EddaFlask, SyncWorkflowContext, WorkflowContext, activity, workflow

VICTIM, RUNS = "victim", "runs"
_never = threading.Event()

db = SQLAlchemy()
edda = EddaFlask(db=db)


@activity
def begin(ctx: WorkflowContext) -> int:
    return 1


@activity
def go_on(ctx: WorkflowContext, number: int) -> int:
    """The step that is interrupted; the clock is that of the machine, the same in all its processes."""
    begun_at = time.monotonic()
    folder = Path(os.environ["BENCH_FOLDER"])
    with (folder / RUNS).open("a") as file:
        file.write(f"{ctx.instance_id} {os.getpid()} {begun_at}\n")
    if (folder / VICTIM).read_text() == str(os.getpid()):
        _never.wait()
    return number + 1


@workflow
def two_steps(ctx: SyncWorkflowContext) -> int:
    return go_on(ctx, begin(ctx))


def create_app(*, role: str = "embedded") -> Flask:
    if role == "embedded":
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
    app = Flask("recovery")
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["BENCH_DATABASE_URL"]
    app.config["EDDA"] = {"ROLE": role}
    db.init_app(app)
    edda.init_app(app)
    return app
