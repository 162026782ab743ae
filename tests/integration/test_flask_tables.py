"""Requests that need no workflow go on whatever is the matter with the tables; those that need one are told what it is."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from edda_wsgi import DatabaseUnavailableError, EddaFlask, NewerVersionError, WorkflowContext, workflow
from tests.integration.engines import Tables
from tests.integration.flask_apps import open_shop, saved_instances


def declare_order():  # type: ignore[no-untyped-def]
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> int:
        return number * 10

    return order


def application(url: str) -> tuple[Flask, EddaFlask]:
    """An application with a view that needs no database, one that starts at once, and one that looks at the health."""
    app = Flask("shop")
    app.testing = True
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    edda = EddaFlask(app, db=SQLAlchemy(app))
    order = declare_order()
    app.add_url_rule("/", "page", lambda: "no database needed")
    app.add_url_rule("/orders", "orders", lambda: order.options(session=None).start(number=1), methods=["POST"])
    app.get("/healthz")(edda.health)
    return app, edda


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_tables_of_a_newer_version_fail_only_the_requests_that_need_them(
    bare_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_shop(bare_database_url) as shop, shop.app.app_context():
        declare_order().options(session=None).start(number=1)
        url = shop.engine.url.render_as_string(False)
    Tables(bare_database_url).execute("UPDATE edda_alembic_version SET version_num = '9999'")
    app, edda = application(url)
    client = app.test_client()

    pages = [client.get("/").text for _ in range(3)]
    with pytest.raises(NewerVersionError, match=r"revision 9999.*Deploy the newer version here too"):
        client.post("/orders")
    health = client.get("/healthz")
    edda.shutdown()
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()

    assert pages == ["no database needed"] * 3
    assert len(warnings_in(caplog)) == 1
    assert "Requests go on without the edda_ tables" in warnings_in(caplog)[0]
    assert "9999" in warnings_in(caplog)[0]
    assert health.status_code == 503
    assert "revision 9999" in health.json["checks"]["tables"]


def test_a_database_that_is_down_fails_only_the_requests_that_need_it_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edda_wsgi.tables.AGAIN_SECONDS", 0.0)  # each request tries
    in_the_way = tmp_path / "shop.db"
    in_the_way.mkdir()  # SQLite cannot open a folder
    url = f"sqlite:///{in_the_way}"
    app, edda = application(url)
    client = app.test_client()

    pages = [client.get("/").text for _ in range(3)]
    for _ in range(2):
        with pytest.raises(DatabaseUnavailableError, match=r"did not answer \(unable to open.*Nothing was changed"):
            client.post("/orders")
    told = warnings_in(caplog)
    in_the_way.rmdir()
    started = client.post("/orders").text
    edda.shutdown()
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()

    assert pages == ["no database needed"] * 3
    assert len(told) == 1
    assert "The database did not answer" in told[0]
    assert saved_instances(url) == [started]


def test_after_a_failure_requests_are_not_held_up_by_trying_again(caplog: pytest.LogCaptureFixture) -> None:
    app, edda = application("postgresql+psycopg://shop@127.0.0.1:1/nothing")
    client = app.test_client()
    tries: list[object] = []

    def count_and_ask(database: object) -> bool:
        tries.append(database)
        return upgrade(database)  # type: ignore[arg-type]

    from edda_wsgi import tables

    upgrade = tables.migrate.upgrade
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables.migrate, "upgrade", count_and_ask)
        patch.setattr(tables, "AGAIN_SECONDS", 3600.0)
        pages = [client.get("/").status_code for _ in range(3)]
        with pytest.raises(DatabaseUnavailableError):
            client.post("/orders")
    edda.shutdown()

    assert (pages, len(tries), len(warnings_in(caplog))) == ([200] * 3, 2, 1)
