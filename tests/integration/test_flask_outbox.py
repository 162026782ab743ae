"""The outbox from a Flask application: events of views and activities, the relay in its engine, and the commands."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import Result
from flask import current_app
from sqlalchemy import text

from edda_engine.outbox.publishers import OutgoingEvent
from edda_wsgi import (
    ConfigurationError,
    PayloadError,
    PublishRefusedError,
    UsageError,
    WorkflowContext,
    WorkflowFailedError,
    workflow,
)
from tests.integration.flask_apps import FLASK_SQLALCHEMY, KINDS, SESSIONMAKER, Note, Shop, open_shop, outside
from tests.receivers import Receiver, receiving
from tests.support import eventually


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def rows(shop: Shop) -> list[Any]:
    """The outbox as it is committed."""
    with outside(shop.database_url) as engine, engine.connect() as conn:
        return list(conn.execute(text("SELECT * FROM edda_outbox ORDER BY seq")))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != SESSIONMAKER])
def test_an_event_of_a_view_is_saved_by_its_commit_and_gone_with_its_rollback(database_url: str, kind: str) -> None:
    with open_shop(database_url, kind=kind) as shop, shop.app.app_context():
        shop.edda.start_worker()
        shop.session().add(Note(text="lost"))
        shop.edda.send_event_transactional("note.made", "shop", {"text": "lost"})
        shop.session().rollback()
        shop.session().add(Note(text="kept"))
        event_id = shop.edda.send_event_transactional(
            "note.made", "shop", {"text": "kept"}, subject="7", ordering_key="notes"
        )
        before = rows(shop)
        shop.session().commit()

        (found,) = rows(shop)
        assert before == []
        assert (found.event_id, found.type, found.source, found.subject, found.ordering_key, found.instance_id) == (
            event_id,
            "note.made",
            "shop",
            "7",
            "notes",
            None,
        )


def test_an_event_of_a_view_is_published_right_after_the_commit(database_url: str, receiver: Receiver) -> None:
    # Nobody looks by itself for a minute: the commit wakes the relay.
    with open_shop(database_url, outbox={"URL": receiver.url}, poll_interval_seconds=60.0) as shop:
        shop.edda.start_worker()

        @shop.app.post("/notes")
        def make() -> dict[str, str]:
            event_id = shop.edda.send_event_transactional("note.made", "shop", [1, "ö"])
            assert receiver.seen == []
            shop.session().commit()
            return {"event_id": event_id}

        event_id = shop.app.test_client().post("/notes").json["event_id"]

        eventually(lambda: receiver.taken_ids == [event_id])
        assert receiver.data == [[1, "ö"]]


def test_an_event_can_be_committed_at_once(database_url: str) -> None:
    with open_shop(database_url, testing=True) as shop:
        with shop.app.app_context():
            first = shop.edda.send_event_transactional("t", "s", 1, session=None)
            shop.session().rollback()
        second = shop.edda.send_event_transactional("t", "s", 2)

        assert [found.event_id for found in rows(shop)] == [first, second]


def test_an_event_of_an_activity_belongs_to_its_step(database_url: str, receiver: Receiver) -> None:
    with open_shop(database_url, outbox={"URL": receiver.url}) as shop:

        def tell(ctx: WorkflowContext, fails: bool) -> str:
            event_id = shop.edda.send_event_transactional("t", "s", fails)
            if fails:
                raise ValueError("no")
            return event_id

        with pytest.raises(WorkflowFailedError):
            shop.run(tell, True)
        event_id = shop.run(tell, False)

        eventually(lambda: receiver.taken_ids == [event_id])
        (found,) = rows(shop)
        assert found.activity_id == "tell:1"


def test_a_body_cannot_send_and_is_told_why(database_url: str) -> None:
    with open_shop(database_url) as shop:

        @workflow
        async def telling(ctx: WorkflowContext) -> None:
            shop.edda.send_event_transactional("t", "s", 1)

        shop.edda.start_worker()
        with shop.app.app_context():
            instance_id = telling.options(session=None).start()
        with pytest.raises(WorkflowFailedError) as failed:
            shop.edda.result(instance_id, timeout=30)

        assert isinstance(failed.value.__cause__, UsageError)
        assert "Call it in an @activity" in str(failed.value)
        assert rows(shop) == []


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"event_type": ""}, UsageError, "event_type"),
        ({"event_type": "x" * 256}, UsageError, "event_type"),
        ({"source": "a\0b"}, UsageError, "event_source"),
        ({"content_type": None}, UsageError, "content_type"),
        ({"subject": ""}, UsageError, "subject"),
        ({"ordering_key": "\udcff"}, UsageError, "ordering_key"),
        ({"data": object()}, PayloadError, "event 't'"),
        ({"data": "x" * 2000}, PayloadError, "MAX_PAYLOAD_BYTES"),
        ({"data": b"x" * 2000}, PayloadError, "MAX_PAYLOAD_BYTES"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is_written(
    sqlite_url: str, wrong: dict[str, Any], error: type[Exception], said: str
) -> None:
    with open_shop(sqlite_url, max_payload_bytes=1000) as shop, shop.app.app_context():
        given = {"event_type": "t", "source": "s", "data": 1} | wrong
        with pytest.raises(error, match=said):
            shop.edda.send_event_transactional(**given)


published: list[tuple[str, str, str]] = []


def publish(event: OutgoingEvent) -> None:
    """The back end of these tests: refuses what it is told to."""
    if event.data == "refuse":
        raise PublishRefusedError("not wanted")
    published.append((event.event_id, current_app.name, threading.current_thread().name.partition("_")[0]))


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    published.clear()
    outbox = {"BACKEND": "edda_engine.outbox.publishers.CallablePublisher", "FUNCTION": f"{__name__}.publish"}
    with open_shop(database_url, kind=FLASK_SQLALCHEMY, outbox=outbox, poll_interval_seconds=0.1) as opened:
        yield opened


def send(shop: Shop, data: Any = None, **options: Any) -> str:
    return shop.edda.send_event_transactional("order.placed", "shop", data, session=None, **options)


def cli(shop: Shop, *arguments: str) -> Result:
    return shop.app.test_cli_runner().invoke(args=["edda", "outbox", *arguments])


def cli_json(shop: Shop, *arguments: str) -> Any:
    done = cli(shop, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def status(shop: Shop, event_id: str) -> str:
    return next(str(found.status) for found in rows(shop) if found.event_id == event_id)


def test_a_function_publishes_inside_the_application(shop: Shop) -> None:
    shop.edda.start_worker()
    event_id = send(shop)

    eventually(lambda: status(shop, event_id) == "published")

    assert published == [(event_id, "shop", "edda-publisher")]


def dead_and_published(shop: Shop) -> tuple[str, str]:
    shop.edda.start_worker()
    dead, sent = send(shop, "refuse"), send(shop, ordering_key="k")
    eventually(lambda: (status(shop, dead), status(shop, sent)) == ("dead", "published"))
    shop.edda.shutdown()
    return dead, sent


def test_list_shows_events_and_why_they_are_not_published(shop: Shop) -> None:
    assert cli(shop, "list").output == "No events match.\n"
    dead, sent = dead_and_published(shop)
    waiting = send(shop)

    lines = cli(shop, "list").output.splitlines()

    assert [line.split()[:3] for line in lines] == [
        [waiting, "pending", "order.placed"],
        [sent, "published", "order.placed"],
        [dead, "dead", "order.placed"],
    ]
    assert lines[1].endswith("[k]  1 try")
    assert lines[2].endswith("1 try, not wanted")
    assert [event["event_id"] for event in cli_json(shop, "list", "--status", "dead")["events"]] == [dead]
    assert [event["event_id"] for event in cli_json(shop, "list", "--limit", "1")["events"]] == [waiting]
    (found,) = cli_json(shop, "list", "--status", "published")["events"]
    assert (found["attempts"], found["ordering_key"], found["last_error"]) == (1, "k", None)
    assert found["published_at"].endswith("+00:00")


def test_retry_publishes_a_dead_event_after_all(shop: Shop) -> None:
    dead, sent = dead_and_published(shop)

    assert cli_json(shop, "retry", dead) == {"events": [dead], "left": []}

    assert status(shop, dead) == "pending"
    done = cli(shop, "retry", dead, sent)  # a waiting one is due now; a published one stays so
    assert (done.exit_code, done.output) == (1, f"1 event due now.\n{sent} is published already, or being published.\n")


def test_retry_of_all_dead_ones(shop: Shop) -> None:
    dead, _ = dead_and_published(shop)

    assert cli(shop, "retry", "--all-dead").output == "1 event due now.\n"
    assert status(shop, dead) == "pending"
    assert cli(shop, "retry", "--all-dead").output == "0 events due now.\n"


def test_purge_deletes_what_is_dead_or_named(shop: Shop) -> None:
    dead, sent = dead_and_published(shop)
    waiting = send(shop)

    assert cli_json(shop, "purge", "--all-dead", "--older-than-days", "1") == {"events": [], "left": []}
    assert cli_json(shop, "purge", "--all-dead") == {"events": [dead], "left": []}
    assert cli_json(shop, "purge", waiting)["events"] == [waiting]
    assert [found.event_id for found in rows(shop)] == [sent]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["retry"], 2, "Name events by their ids, or give --all-dead"),
        (["retry", "x", "--all-dead"], 2, "Name events by their ids, or give --all-dead"),
        (["retry", "x"], 1, "Error: The outbox has no event x; nothing was changed"),
        (["purge"], 2, "Name events by their ids"),
        (["purge", "x", "--older-than-days", "1"], 2, "belongs to --all-dead"),
        (["purge", "--all-dead", "--older-than-days", "-1"], 2, "--older-than-days"),
        (["list", "--status", "lost"], 2, "--status"),
        (["list", "--limit", "0"], 2, "--limit"),
    ],
)
def test_a_command_that_makes_no_sense_says_so_in_a_line(
    sqlite_url: str, arguments: list[str], status: int, said: str
) -> None:
    with open_shop(sqlite_url) as shop:
        done = cli(shop, *arguments)

    assert done.exit_code == status
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.output


def test_check_shows_the_outbox_without_secrets_and_says_what_is_wrong(sqlite_url: str) -> None:
    outbox = {"URL": "https://me:s3cret@broker/x?key=s3cret", "HEADERS": {"Authorization": "s3cret"}}
    with open_shop(sqlite_url, outbox=outbox) as shop:
        well = shop.app.test_cli_runner().invoke(args=["edda", "check"])
    with open_shop(sqlite_url, outbox={"BACKEND": "nowhere.Publisher"}) as shop:
        ill = shop.app.test_cli_runner().invoke(args=["edda", "check"])

    assert (well.exit_code, ill.exit_code) == (0, 1)
    assert "HttpPublisher(URL=https://broker/x, HEADERS=...)" in well.output
    assert "s3cret" not in well.output
    assert "OUTBOX['BACKEND'] is 'nowhere.Publisher', which cannot be loaded" in ill.output


def test_a_wrong_outbox_setting_is_refused_at_once_or_when_the_engine_starts(sqlite_url: str) -> None:
    with pytest.raises(ConfigurationError, match="in upper case"):
        Shop(sqlite_url, outbox={"url": "http://b/"})
    with (
        open_shop(sqlite_url, outbox={"URL": "broker"}) as shop,
        pytest.raises(ConfigurationError, match="URL of Http"),
    ):
        shop.edda.start_worker()
