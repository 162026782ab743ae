"""The shop of the fault tests with two more views: for a health check, and one that never answers.

Never import it in a test: it declares workflows.
"""

from __future__ import annotations

import threading

from flask import Flask

from tests.faults.shop import create_app as create_shop
from tests.faults.shop import edda


def create_app() -> Flask:
    app = create_shop()
    app.get("/healthz")(edda.health)

    @app.get("/hang")
    def hang() -> str:
        threading.Event().wait()
        return "never"

    return app
