"""Nothing secret in a log, an error or the output of a command: passwords, tokens, keys, what payloads hold.

Everything is logged at DEBUG here, and of each record everything is looked at: message, arguments, extras, tracebacks
with their causes. SQLAlchemy's own log of statements is left out; an application turns that on by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import make_url, text

from edda_engine import EddaApp
from edda_wsgi import ConfigurationError, EddaError, EddaFlask, WorkflowContext, activity, workflow
from tests.integration.deliveries import change
from tests.integration.flask_apps import ONCE, Shop, driver_url, open_shop
from tests.integration.test_engine_outages import Proxy
from tests.support import eventually

PASSWORD = "pw-7f3a9c"
TOKEN = "token-51be02"
KEY = "key-e8d1f4"
PAYLOAD = "payload-93c6aa"
SECRETS = (PASSWORD, TOKEN, KEY, PAYLOAD)


class Everything(logging.Handler):
    """All that is said in log records."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        told = {name: value for name, value in vars(record).items() if name not in ("exc_info", "msg")}
        if record.exc_info:
            told["trace"] = "".join(traceback.format_exception(*record.exc_info))  # type: ignore[arg-type]
        self.said.append(f"{record.getMessage()} {told!r}")

    def leaks(self, *, but: str = "") -> list[str]:
        return [said[:3000] for said in self.said if any(secret in said for secret in SECRETS if secret != but)]


@pytest.fixture
def log() -> Iterator[Everything]:
    """What is logged meanwhile; at the end nothing secret was."""
    root, handler = logging.getLogger(), Everything()
    before, sqlalchemy = root.level, logging.getLogger("sqlalchemy")
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    sqlalchemy.setLevel(logging.WARNING)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        sqlalchemy.setLevel(logging.NOTSET)
    assert handler.leaks() == []


def told(error: BaseException) -> str:
    """Everything that a traceback of *error* says, except its source lines."""
    found = traceback.TracebackException.from_exception(error)
    for part in (found, found.__cause__, found.__context__):
        if part is not None:
            part.stack.clear()
    return "".join(found.format())


def assert_discreet(call: Callable[[], Any], *kinds: type[BaseException]) -> str:
    """It raises one of *kinds*, which tells no secret; what it says."""
    with pytest.raises(kinds or EddaError) as caught:
        call()
    said = told(caught.value)
    assert not any(secret in said for secret in SECRETS), said
    return said


@activity(name="secrets.keep", retry_policy=ONCE)
def keep(ctx: WorkflowContext, content: str) -> str:
    return content


@activity(name="secrets.cannot", retry_policy=ONCE)
def cannot(ctx: WorkflowContext, content: str) -> Any:
    """Its keys are told, as the path to what is wrong; what they stand for is not."""
    return {"first": content, "second": [content, {"third": object(), "fourth": content}]}


@workflow(name="secrets.flow")
async def flow(ctx: WorkflowContext, content: str, number: int = 0) -> str:
    return await keep(ctx, content)


@activity(name="secrets.write", retry_policy=ONCE)
def write(ctx: WorkflowContext, content: str) -> str:
    """In its own transaction, to which the row of history is added."""
    ctx.session.execute(text("INSERT INTO note (text) VALUES ('harmless')"))
    return content


@workflow(name="secrets.writing")
async def writing(ctx: WorkflowContext, content: str) -> str:
    return await write(ctx, content)


@workflow(name="secrets.failing")
async def failing(ctx: WorkflowContext, content: str) -> Any:
    return await cannot(ctx, content)


# The database.


@contextmanager
def refusing_rows(database_url: str, *tables: str) -> Iterator[None]:
    """The database takes no new rows into these tables."""
    is_sqlite = database_url.startswith("sqlite")
    if not is_sqlite:
        change(
            database_url,
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger AS 'BEGIN RAISE EXCEPTION ''no''; END' LANGUAGE plpgsql",
        )
    for table in tables:
        refuse = "BEGIN SELECT RAISE(ABORT, 'no'); END" if is_sqlite else "FOR EACH ROW EXECUTE FUNCTION refuse()"
        change(database_url, f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON edda_{table} {refuse}")
    yield
    for table in tables:
        change(database_url, f"DROP TRIGGER refuse_{table}" + ("" if is_sqlite else f" ON edda_{table}"))


def test_rows_that_the_database_refuses_are_not_told(database_url: str, log: Everything) -> None:
    events = {"URL_PREFIX": "/events", "AUTH": None}
    with open_shop(database_url, events=events) as shop, shop.app.app_context():
        shop.edda.start_worker()
        assert shop.edda.result(flow.options(session=None).start("harmless"), timeout=30) == "harmless"
        with refusing_rows(database_url, "instances", "history", "messages", "outbox", "received_events"):
            for insert in (
                lambda: flow.options(session=None).start(PAYLOAD),
                lambda: shop.edda.publish("c", PAYLOAD, {"m": PAYLOAD}, session=None),
                lambda: shop.edda.send_event("t", "/s", {"a": PAYLOAD}, session=None),
                lambda: shop.edda.send_event_transactional("t", "/s", PAYLOAD, session=None),
            ):
                assert_discreet(insert, Exception)
            event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": PAYLOAD}
            answer = shop.app.test_client().post("/events", json=event, content_type="application/cloudevents+json")
            assert answer.status_code == 500
            assert PAYLOAD not in answer.text
        with refusing_rows(database_url, "history"):
            for started in (flow.options(session=None).start(PAYLOAD), writing.options(session=None).start(PAYLOAD)):
                eventually(lambda id=started: shop.edda.get(id).error is not None, timeout=30)


def test_an_outage_tells_no_password_and_no_payload(postgres_url: str, log: Everything) -> None:
    proxy = Proxy(postgres_url)
    proxy.open()
    url = make_url(proxy.url).set(password=PASSWORD).update_query_dict({"connect_timeout": "3"})
    try:
        with open_shop(url.render_as_string(False)) as shop, shop.app.app_context():
            shop.edda.start_worker()
            assert shop.edda.result(flow.options(session=None).start(PAYLOAD), timeout=30) == PAYLOAD
            proxy.shut()
            for call in (
                lambda: flow.options(session=None).start(PAYLOAD),
                lambda: shop.edda.find_instances(input_filters={"content": PAYLOAD}),
                lambda: shop.edda.get("x"),
                lambda: shop.edda.cancel("x", session=None),
                lambda: shop.edda.send_event("t", "/s", PAYLOAD, session=None),
                lambda: shop.edda.publish("c", PAYLOAD, session=None),
            ):
                assert_discreet(call, Exception)
            for command in (["check"], ["health"], ["list"], ["start", "secrets.flow", "--input", '{"content": "x"}']):
                done = shop.app.test_cli_runner().invoke(args=["edda", *command])
                assert done.exit_code == 1
                assert not any(secret in done.output for secret in SECRETS), done.output
            assert PASSWORD not in shop.edda.health().get_data(as_text=True)
            eventually(lambda: any("it is opened again" in said for said in log.said))
            proxy.open()
            assert shop.edda.result(eventually(lambda: started_again(shop)), timeout=60) == "again"
    finally:
        proxy.close()


def started_again(shop: Shop) -> str | None:
    try:
        return flow.options(session=None).start("again")
    except EddaError:
        return None


class Refuser:
    """A server that asks for a password as PostgreSQL does, and refuses every one."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._door.accept()
            except OSError:
                return
            with connection:
                try:
                    self._refuse(connection)
                except (OSError, struct.error):
                    continue

    def _refuse(self, connection: socket.socket) -> None:
        while True:
            (length,) = struct.unpack("!I", connection.recv(4))
            content = connection.recv(length - 4)
            if content[:4] not in (struct.pack("!I", 80877103), struct.pack("!I", 80877104)):
                break
            connection.sendall(b"N")  # no encryption of either kind
        connection.sendall(b"R" + struct.pack("!II", 8, 3))
        assert connection.recv(1) == b"p"
        (length,) = struct.unpack("!I", connection.recv(4))
        self.given.append(connection.recv(length - 4).rstrip(b"\0"))
        fields = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "shop"\0\0'
        connection.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)

    def close(self) -> None:
        self._door.close()


@pytest.mark.parametrize("where", ["in its place", "as a parameter"])
def test_a_wrong_password_is_told_to_nobody_but_the_server(log: Everything, where: str) -> None:
    server = Refuser()
    url = f"postgresql+psycopg://shop:{PASSWORD}@127.0.0.1:{server.port}/shop"
    if where == "as a parameter":
        url = f"postgresql+psycopg://shop@127.0.0.1:{server.port}/shop?password={PASSWORD}&sslpassword={PASSWORD}"
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db = SQLAlchemy(app)
    edda = EddaFlask(app, db=db, workflows=[__name__])
    try:
        with app.app_context():
            for call in (
                lambda: flow.options(session=None).start(PAYLOAD),
                lambda: edda.get("x"),
                lambda: edda.find_instances(),
            ):
                assert "password authentication failed" in assert_discreet(call, Exception)
            for command in (
                ["check"],
                ["check", "--json"],
                ["health"],
                ["list"],
                ["show", "x"],
                ["upgrade"],
            ):
                done = app.test_cli_runner().invoke(args=["edda", *command])
                assert done.exit_code == 1, done.output
                assert PASSWORD not in done.output + repr(done.exception)
            assert PASSWORD not in edda.health().get_data(as_text=True)
            with pytest.raises(TimeoutError):
                edda.start_worker(timeout=1)
            db.engine.dispose()
        assert server.given
        assert set(server.given) == {PASSWORD.encode()}
    finally:
        edda.shutdown(timeout=0)
        server.close()


# Values that are refused.


def test_what_is_wrong_with_a_value_is_told_and_the_value_is_not(sqlite_url: str, log: Everything) -> None:
    with open_shop(sqlite_url) as shop, shop.app.app_context():
        for call in (
            lambda: flow.start({"secret": PAYLOAD}, PAYLOAD),
            lambda: flow.start(PAYLOAD, 1, PAYLOAD),
            lambda: flow.start(content=PAYLOAD, number=[PAYLOAD]),
            lambda: shop.edda.publish("c", {"a": PAYLOAD, "b": float("nan")}),
            lambda: shop.edda.send_event("t", "/s", [PAYLOAD, "\0"]),
            lambda: shop.edda.send_event("t", "/s", PAYLOAD * 200_000),
            lambda: shop.edda.publish("c", 1, PAYLOAD),  # type: ignore[arg-type]
        ):
            assert_discreet(call)
        flow.options(instance_id="taken", session=None).start(PAYLOAD)
        assert "another input" in assert_discreet(
            lambda: flow.options(instance_id="taken", session=None).start("other")
        )
        assert_discreet(lambda: failing.options(instance_id="taken", session=None).start("other"))
        shop.edda.start_worker()
        failed = failing.options(session=None).start(PAYLOAD)
        assert "PayloadError" in assert_discreet(lambda: shop.edda.result(failed, timeout=30))
        for command in (["list"], ["list", "--status", "failed"]):
            done = shop.app.test_cli_runner().invoke(args=["edda", *command])
            assert (done.exit_code, PAYLOAD in done.output) == (0, False)


# Settings.

OUTBOX = {
    "URL": f"https://shop:{PASSWORD}@127.0.0.1:1/events?token={TOKEN}",
    "HEADERS": {"Authorization": f"Bearer {TOKEN}"},
}
EVENTS = {"URL_PREFIX": "/events", "AUTH": "edda_wsgi.auth.check_signature", "SECRET": KEY}


def test_check_shows_what_is_set_without_what_is_secret(sqlite_url: str, log: Everything) -> None:
    with open_shop(sqlite_url, outbox=OUTBOX, events=EVENTS) as shop:
        for command in (["check"], ["check", "--json"], ["list"], ["health"], ["outbox", "list"]):
            done = shop.app.test_cli_runner().invoke(args=["edda", *command])
            assert not any(secret in done.output for secret in SECRETS), done.output
        shown = str(shop.app.extensions["edda"].settings) + repr(shop.app.extensions["edda"].settings)
        assert not any(secret in shown for secret in SECRETS)


@pytest.mark.parametrize(
    "settings",
    [
        {"EDDA": json.dumps({"EVENTS": EVENTS})[:-1]},  # not quite JSON, so it stays a text
        {"EDDA": [EVENTS]},
        {"EDDA_EVENTS": json.dumps(EVENTS)[:-1]},
        {"EDDA": {"EVENTS": [tuple(EVENTS.items())]}},
        {"EDDA": {"EVENTS": {**EVENTS, "SECRET": [KEY, 5]}}},
        {"EDDA": {"EVENTS": {**EVENTS, "SECRET": {"a": KEY}}}},
        {"EDDA": {"EVENTS": {**EVENTS, "URL_PREFIX": None, "MAX_BYTES": -1}}},
        {"EDDA": {"EVENTS": {**EVENTS, "SECRT": KEY}}},
        {"EDDA_OUTBOX": json.dumps(OUTBOX)[:-1]},
        {"EDDA": {"OUTBOX": [OUTBOX]}},
        {"EDDA": {"OUTBOX": {**OUTBOX, "headers": {"Authorization": TOKEN}}}},
        {"EDDA": {"OUTBOX": {**OUTBOX, "RETENTION_DAYS": -1}}},
        {"EDDA": {"DATABASE_URL": {"password": PASSWORD}}},
        {"EDDA": {"DATABASE_URL": [f"postgresql://u:{PASSWORD}@h/d"]}},
    ],
    ids=str,
)
def test_a_wrong_setting_is_named_and_not_repeated(settings: dict[str, Any], log: Everything) -> None:
    app = Flask("shop")
    app.config.update(settings)
    assert_discreet(lambda: EddaFlask(app), ConfigurationError)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{PASSWORD}@host:port/d",
        f"postgresql://u:{PASSWORD}@h:99999999/d",
        f"postgresql://u:{PASSWORD}@[h/d",
        f"postgresql+psycopg://u:{PASSWORD}@h/d?plugin={PASSWORD}",
        f"postgres+nonsense://u:{PASSWORD}@h/d",
        f"mysql://u:{PASSWORD}@h/d",
        f"//u:{PASSWORD}@h/d",
        f"u:{PASSWORD}@h",
        PASSWORD,
    ],
)
def test_a_database_url_that_cannot_be_used_is_not_repeated(url: str, tmp_path: Path, log: Everything) -> None:
    app = Flask("shop", instance_path=str(tmp_path))
    edda = EddaFlask(app, database_url=url)
    with app.app_context():
        assert_discreet(lambda: edda.get("x"), Exception)
    assert_discreet(lambda: asyncio.run(EddaApp(db_url=url).get("x")), Exception)
    for command in (["check"], ["list"], ["health"]):
        done = app.test_cli_runner().invoke(args=["edda", *command])
        assert PASSWORD not in done.output + "".join(traceback.format_exception(done.exception))


# The broker.


def test_a_broker_that_does_not_answer_is_told_of_without_its_tokens(sqlite_url: str, log: Everything) -> None:
    with open_shop(sqlite_url, outbox=OUTBOX, name="broken") as shop, shop.app.app_context():
        shop.edda.start_worker()
        shop.edda.send_event_transactional("t", "/s", {"a": PAYLOAD}, session=None)
        runner = shop.app.test_cli_runner()
        entry = eventually(lambda: tried(runner))
        assert not any(secret in json.dumps(entry) for secret in SECRETS), entry
        assert driver_url(sqlite_url)


def tried(runner: Any) -> dict[str, Any] | None:
    (entry,) = json.loads(runner.invoke(args=["edda", "outbox", "list", "--json"]).output)["events"]
    return dict(entry) if entry["attempts"] else None
