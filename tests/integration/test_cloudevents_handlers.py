"""``@edda.on_event``: what a handler does is kept with its event, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app, g
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from edda_wsgi import (
    ConfigurationError,
    EddaFlask,
    ReceivedEvent,
    TerminalError,
    UsageError,
    WorkflowContext,
    send_event,
    workflow,
)
from tests.integration.deliveries import (
    ACCEPTED,
    NOTHING,
    OPEN,
    STRUCTURED,
    attributes_of,
    batch,
    deliver,
    endpoint,
    event,
    refusal,
    rows,
    said,
    stored,
)
from tests.integration.flask_apps import (
    FLASK_SQLALCHEMY,
    KINDS,
    LITE,
    SCOPED_SESSION,
    SESSIONMAKER,
    Note,
    Shop,
    saved_instances,
    saved_notes,
)
from tests.support import eventually

SHARED = [FLASK_SQLALCHEMY, LITE, SCOPED_SESSION]


@workflow
async def fulfil_paid(ctx: WorkflowContext, order_id: int = 0) -> int:
    return order_id


@workflow(event_handler=True, name="order.taken")
async def on_order_taken(ctx: WorkflowContext, order_id: int = 0) -> int:
    return order_id


def note(shop: Shop, words: str) -> None:
    if shop.kind == SESSIONMAKER:
        with shop.db() as session:
            session.add(Note(text=words))
            session.commit()
    else:
        shop.session().add(Note(text=words))


# What it is given.


def test_a_handler_is_called_with_the_event_inside_the_application(database_url: str) -> None:
    seen: list[Any] = []
    with endpoint(database_url) as shop:

        @shop.edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            seen.append((received, current_app.name, list(g)))

        moment = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
        sent = event(
            "order.paid",
            {"sum": 5},
            subject="7",
            time=moment,
            datacontenttype="application/json",
            dataschema="/schema",
            tenant="blue",
        )
        assert said(deliver(shop, sent)) == ACCEPTED
        deliver(shop, event("order.shipped", id="another"))

    ((received, app_name, in_g),) = seen
    assert (received.type, received.source, received.id, received.subject) == ("order.paid", "/till", "event-1", "7")
    assert (received.time, received.datacontenttype) == (moment, "application/json")
    assert received.data == {"sum": 5}
    assert dict(received.extensions) == {"tenant": "blue", "dataschema": "/schema"}
    assert received.metadata.type == "order.paid"
    assert (app_name, in_g) == ("shop", [])


def test_handlers_are_called_in_the_order_of_their_registration_once_for_each_event(database_url: str) -> None:
    seen: list[str] = []
    with endpoint(database_url) as shop:
        shop.edda.on_event("order.paid")(lambda received: seen.append(f"first {received.id}"))
        shop.edda.on_event("order.paid")(lambda received: seen.append(f"second {received.id}"))
        for _ in range(2):
            deliver(shop, batch(event(id="a"), event(id="b")))
    assert seen == ["first a", "second a", "first b", "second b"]


def test_a_handler_takes_nothing_away_from_others(database_url: str) -> None:
    seen: list[str] = []
    with endpoint(database_url) as shop:
        for event_type in ("order.taken", "order.paid"):
            shop.edda.on_event(event_type)(lambda received: seen.append(received.type))
        deliver(shop, event("order.taken", {"order_id": 7}))
        deliver(shop, event("order.paid", id="event-2"))
    assert seen == ["order.taken", "order.paid"]
    assert stored(database_url) == {"edda_instances": 1, "edda_messages": 1, "edda_received_events": 2}


def test_a_handler_may_be_registered_before_the_application_is_there(database_url: str) -> None:
    edda = EddaFlask()
    seen: list[str] = []
    edda.on_event("order.paid")(lambda received: seen.append(received.id))
    app = Flask("later")
    app.testing = True
    edda.init_app(app, database_url=database_url, events=dict(OPEN))
    assert app.test_client().post("/events", json=attributes_of(event()), headers=STRUCTURED).status_code == 202
    edda.shutdown()
    assert seen == ["event-1"]


def test_a_coroutine_function_cannot_handle_events() -> None:
    async def handle(_event: Any) -> None:
        pass

    with pytest.raises(ConfigurationError, match="plain function"):
        EddaFlask().on_event("order.paid")(handle)
    with pytest.raises(UsageError, match="event_type"):
        EddaFlask().on_event("")


# Together with the event.


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_handler_writes_is_committed_with_the_event(database_url: str, kind: str) -> None:
    with endpoint(database_url, kind=kind) as shop:
        shop.edda.on_event("order.paid")(lambda received: note(shop, f"paid {received.id}"))
        for _ in range(2):
            assert said(deliver(shop, event())) == ACCEPTED
    assert saved_notes(database_url) == ["paid event-1"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_raises_leaves_nothing_and_the_event_may_come_again(
    database_url: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ValueError("the till is closed")]
    with endpoint(database_url, kind=kind) as shop:

        @shop.edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            note(shop, f"paid {received.id}")
            if kind != SESSIONMAKER:
                shop.session().commit()
            fulfil_paid.start(order_id=7)
            if failures:
                raise failures.pop()

        assert refusal(deliver(shop, event())) == (500, "ValueError", True)
        assert (stored(database_url), saved_notes(database_url)) == (NOTHING, [])
        assert "the till is closed" in caplog.text
        caplog.clear()

        assert said(deliver(shop, event())) == ACCEPTED
    assert stored(database_url) == {"edda_instances": 1, "edda_messages": 1, "edda_received_events": 1}
    assert saved_notes(database_url) == ["paid event-1"]
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def test_a_failure_in_the_middle_of_a_batch_undoes_all_of_it(database_url: str) -> None:
    with endpoint(database_url) as shop:

        @shop.edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            note(shop, received.id)
            shop.session().commit()
            if received.id == "b" and received.data != "mended":
                raise LookupError("no such order")

        assert refusal(deliver(shop, batch(event(id="a"), event(id="b")))) == (500, "LookupError", True)
        assert (stored(database_url), saved_notes(database_url)) == (NOTHING, [])
        assert said(deliver(shop, batch(event(id="a"), event(content="mended", id="b")))) == ACCEPTED
    assert saved_notes(database_url) == ["a", "b"]


@pytest.mark.parametrize("kind", SHARED)
def test_commit_and_rollback_in_a_handler_end_savepoints(database_url: str, kind: str) -> None:
    with endpoint(database_url, kind=kind) as shop:

        @shop.edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            session = shop.session()
            session.add(Note(text="kept"))
            session.commit()
            session.add(Note(text="dropped"))
            fulfil_paid.start()
            session.rollback()
            session.add(Note(text="kept"))
            with pytest.raises(IntegrityError):
                session.flush()
            session.rollback()
            session.add(Note(text="left pending"))

        assert said(deliver(shop, event())) == ACCEPTED
    assert saved_notes(database_url) == ["kept", "left pending"]
    assert stored(database_url)["edda_instances"] == 0


@pytest.mark.parametrize(
    "commit",
    [
        lambda session: session.connection().get_transaction().commit(),
        lambda session: session.connection().commit(),
        lambda session: session.execute(text("COMMIT")),
    ],
)
@pytest.mark.parametrize("is_caught", [False, True])
def test_a_handler_cannot_commit_the_transaction_of_the_event(
    database_url: str, commit: Callable[[Any], Any], is_caught: bool
) -> None:
    with endpoint(database_url) as shop:

        @shop.edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            session = shop.session()
            note(shop, received.id)
            session.flush()
            try:
                while session.connection().in_nested_transaction():
                    session.connection().get_nested_transaction().commit()
                commit(session)
            except Exception:
                if not is_caught:
                    raise

        answer = deliver(shop, batch(event(id="a"), event(id="b")))
    outcome = (answer.status_code, stored(database_url)["edda_received_events"], saved_notes(database_url))
    assert outcome in [(500, 0, []), (202, 2, ["a", "b"])]


@pytest.mark.parametrize("kind", [*KINDS, "no db", "another database"])
def test_what_a_handler_starts_sends_and_cancels_belongs_to_the_event(
    database_url: str, tmp_path: Path, kind: str
) -> None:
    url, options = database_url, {"kind": kind} if kind in KINDS else {}
    if kind == "another database":
        url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
        options = {"config": {"EDDA_DATABASE_URL": url}}
    failures = [ValueError("once")]

    def set_up(edda: EddaFlask) -> None:
        @edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            started = fulfil_paid.options(instance_id="order-7").start(order_id=7)
            send_event("order.ready", "/shop", {"order_id": 7})
            assert edda.cancel("victim") is True
            if failures:
                raise failures.pop()
            assert started == "order-7"

    def check(edda: EddaFlask, app: Flask, send: Callable[[], Any]) -> None:
        with app.app_context():
            fulfil_paid.options(instance_id="victim", session=None).start()
        assert refusal(send()) == (500, "ValueError", True)
        assert saved_instances(url) == ["victim"]
        assert edda.get("victim").status == "pending"
        assert said(send()) == said(send()) == ACCEPTED
        assert saved_instances(url) == ["victim", "order-7"]
        assert edda.get("victim").status == "cancelled"
        assert [row[0] for row in rows(url, "SELECT name FROM edda_messages ORDER BY seq")] == [
            "order.paid",
            "order.ready",
        ]

    if kind == "no db":
        app = Flask("plain")
        app.testing = True
        edda = EddaFlask(app, database_url=database_url, events=dict(OPEN))
        set_up(edda)
        send = lambda: app.test_client().post("/events", json=attributes_of(event()), headers=STRUCTURED)  # noqa: E731
        check(edda, app, send)
        edda.shutdown()
    else:
        with endpoint(database_url, **options) as shop:
            set_up(shop.edda)
            check(shop.edda, shop.app, lambda: deliver(shop, event()))


def test_a_workflow_that_a_handler_started_runs_at_once(database_url: str) -> None:
    with endpoint(database_url, poll_interval_seconds=60) as shop:
        shop.edda.on_event("order.paid")(lambda received: fulfil_paid.options(instance_id="order-7").start(order_id=7))
        shop.edda.start_worker()
        deliver(shop, event())
        assert shop.edda.result("order-7", timeout=20) == 7


def test_a_running_instance_is_asked_to_stop_only_after_the_event_is_committed(database_url: str) -> None:
    failures = [ValueError("once")]
    with endpoint(database_url) as shop:

        @shop.edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            shop.edda.cancel("slow")
            shop.session().commit()
            if failures:
                raise failures.pop()

        shop.edda.start_worker()
        with shop.app.app_context():
            waits_for_ever.options(instance_id="slow", session=None).start()
        eventually(lambda: shop.edda.get("slow").status == "waiting_for_event")
        assert deliver(shop, event()).status_code == 500
        assert shop.edda.get("slow").status == "waiting_for_event"
        assert deliver(shop, event()).status_code == 202
        eventually(lambda: shop.edda.get("slow").status == "cancelled")


@workflow
async def waits_for_ever(ctx: WorkflowContext) -> None:
    from edda_wsgi import wait_event

    await wait_event(ctx, "never")


def test_a_second_transaction_in_a_handler_is_refused_where_it_could_never_begin(database_url: str) -> None:
    errors: list[str] = []
    with endpoint(database_url) as shop:

        @shop.edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            try:
                fulfil_paid.options(session=None).start()
            except UsageError as error:
                errors.append(str(error))

        assert said(deliver(shop, event())) == ACCEPTED
    if database_url.startswith("sqlite"):
        assert len(errors) == 1
        assert "Leave session= out" in errors[0]
        assert stored(database_url)["edda_instances"] == 0
    else:
        assert errors == []
        assert stored(database_url)["edda_instances"] == 1


def test_a_terminal_error_refuses_the_event_for_good(database_url: str) -> None:
    with endpoint(database_url) as shop:

        @shop.edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            note(shop, "paid")
            raise TerminalError("Order 7 is not ours.")

        answer = deliver(shop, event())
        assert refusal(answer) == (400, "TerminalError", False)
        assert answer.get_json()["error"] == "Order 7 is not ours."
    assert (stored(database_url), saved_notes(database_url)) == (NOTHING, [])


def test_an_http_error_in_a_handler_is_a_failure_like_any_other(database_url: str) -> None:
    from flask import abort

    with endpoint(database_url) as shop:
        shop.edda.on_event("order.paid")(lambda received: abort(404))
        assert refusal(deliver(shop, event())) == (500, "NotFound", True)
    assert stored(database_url) == NOTHING


def test_a_handler_has_a_session_of_its_own_beside_that_of_the_request(database_url: str) -> None:
    sessions: list[Any] = []
    with endpoint(database_url) as shop:

        @shop.app.before_request
        def look_around() -> None:
            sessions.append(shop.db.session())
            shop.db.session.execute(text("SELECT 1"))

        @shop.edda.on_event("order.paid")
        def on_paid(received: ReceivedEvent[Any]) -> None:
            sessions.append(shop.db.session())
            note(shop, received.id)

        assert said(deliver(shop, event())) == ACCEPTED
    assert sessions[0] is not sessions[1]
    assert saved_notes(database_url) == ["event-1"]
