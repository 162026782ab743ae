"""Where the edda_ tables live: DATABASE_URL may name the application's own database, and then it is shared as without it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as SQLAlchemyLite
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import sessionmaker

from edda_wsgi import ConfigurationError, EddaFlask, WorkflowContext, workflow
from tests.integration.flask_apps import FLASK_SQLALCHEMY, SESSIONMAKER, driver_url, open_shop, saved_instances


def declare_order():  # type: ignore[no-untyped-def]
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> int:
        return number * 10

    return order


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("edda")]


def test_a_database_url_that_names_the_applications_postgresql_otherwise_shares_it(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    otherwise = make_url(postgres_url).update_query_dict({"application_name": "edda"})
    assert otherwise.drivername == "postgresql"
    order = declare_order()
    with (
        open_shop(postgres_url, config={"EDDA_DATABASE_URL": otherwise.render_as_string(False)}) as shop,
        shop.app.app_context(),
    ):
        order.start(number=1)
        shop.session().rollback()
        kept = order.start(number=2)
        shop.session().commit()

        assert saved_instances(postgres_url) == [kept]
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("kind", ["flask-sqlalchemy", "flask-sqlalchemy-lite", "sessionmaker"])
def test_a_relative_database_url_is_the_file_that_the_applications_own_one_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    app = Flask("shop", instance_path=str(tmp_path / "instance"))
    app.testing = True
    db: Any
    match kind:
        case "flask-sqlalchemy":
            app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.db"
            db = SQLAlchemy(app)
        case "flask-sqlalchemy-lite":
            app.config["SQLALCHEMY_ENGINES"] = {"default": "sqlite:///shop.db"}
            db = SQLAlchemyLite(app)
        case _:
            db = sessionmaker(create_engine("sqlite:///shop.db"))
    edda = EddaFlask(app, db=db, database_url="sqlite:///shop.db")
    with app.app_context():
        is_shared = app.extensions["edda"].session_source is not None
        engine = db.kw["bind"] if kind == "sessionmaker" else db.engine
        edda.shutdown()
        engine.dispose()

    assert is_shared


def test_a_database_url_of_another_database_is_said_once_and_by_the_command_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask("shop", instance_path=str(tmp_path / "instance"))
    app.testing = True
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.db"
    db = SQLAlchemy(app)
    edda = EddaFlask(app, db=db, database_url="sqlite:///edda.db")
    order = declare_order()

    with caplog.at_level(logging.WARNING), app.app_context():
        order.start(number=1)
        order.start(number=2)
    told = warnings_in(caplog)
    printed = app.test_cli_runner().invoke(args=["edda", "check"])
    as_json = json.loads(app.test_cli_runner().invoke(args=["edda", "check", "--json"]).stdout)
    edda.shutdown()
    with app.app_context():
        db.engine.dispose()

    assert len(told) == 1
    assert told[0].startswith("DATABASE_URL names another database")
    assert "instance/edda.db" in told[0]
    assert "instance/shop.db" in told[0]
    assert printed.exit_code == 0
    assert f"NOTE  {told[0]}" in printed.stdout
    assert (as_json["notes"], as_json["problems"]) == (told, [])
    assert len(saved_instances(f"sqlite:///{tmp_path}/instance/edda.db")) == 2


def test_the_password_of_another_database_is_not_logged(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = "postgresql://shop:geheim@nowhere.invalid/edda"
    with open_shop(sqlite_url, config={"EDDA_DATABASE_URL": elsewhere}) as shop:
        notes = shop.app.extensions["edda"].notes

    assert "shop:***@nowhere.invalid/edda" in notes[0]
    assert "geheim" not in caplog.text


@pytest.mark.parametrize(
    "given", [{"isolation_level": "autocommit"}, {"execution_options": {"isolation_level": "AUTOCOMMIT"}}], ids=str
)
@pytest.mark.parametrize("kind", [FLASK_SQLALCHEMY, SESSIONMAKER])
def test_an_engine_without_transactions_is_refused_at_the_start(sqlite_url: str, kind: str, given: Any) -> None:
    app = Flask("shop")
    app.config.update(SQLALCHEMY_DATABASE_URI=driver_url(sqlite_url), SQLALCHEMY_ENGINE_OPTIONS=given)
    db = SQLAlchemy(app) if kind == FLASK_SQLALCHEMY else sessionmaker(create_engine(sqlite_url, **given))
    edda = EddaFlask(app, db=db)

    with pytest.raises(ConfigurationError, match=r"isolation_level='AUTOCOMMIT'.*Make the engine without it"):
        edda.start_worker()
    with app.app_context(), pytest.raises(ConfigurationError, match="no transactions that starts and activities"):
        declare_order().start(number=1)
