"""A receiver goes in a transaction that is open while a delivery hands it a message: another receiver gets it.

Only on PostgreSQL: SQLite admits one writer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import Connection, func, insert, make_url, select, text, update

from edda_engine.channels import channel_message
from edda_engine.core.events import EventType, StepKey, event_json
from edda_engine.core.ports import DIRECT_CHANNEL, ChannelMode, NewInstance, OutgoingMessage, WaitKind, WaitRequest
from edda_engine.core.status import Status
from edda_engine.storage import channels, delivery, instances, waits, waking
from edda_engine.storage.commit import Block, End, Holder, PutBack, Step, commit_units
from edda_engine.storage.database import Database
from edda_engine.storage.history import insert_steps
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.retention import prune_messages
from edda_engine.storage.schema import inbox, messages
from edda_engine.storage.schema import instances as table
from edda_engine.storage.serial import serialize_delivery
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.taking import put_back
from edda_engine.storage.waits import Ask, StillOpen, Taken
from tests.integration.engines import run, storage
from tests.support import eventually

JOB = WaitRequest(WaitKind.MESSAGE, "jobs")


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """One in which who waits for a lock of another transaction fails: nobody here may."""
    impatient = make_url(postgres_url).update_query_dict({"options": "-c lock_timeout=5000"})
    with storage(impatient.render_as_string(hide_password=False)) as found:
        yield found


def waits_for_a_job(conn: Connection, instance_id: str) -> None:
    """An instance that has subscribed, waits, and is held by nobody."""
    insert_instance(conn, NewInstance(instance_id, "flow", "tests", "{}", "hash", 300.0))
    channels.subscribe(conn, mailbox=instance_id, channel="jobs", mode=ChannelMode.COMPETING)
    waits.settle(conn, [Ask(instance_id, "receive:1", instance_id, JOB)])
    conn.execute(update(table).values(wake_at=None, status=Status.WAITING_FOR_MESSAGE))


def publish(conn: Connection, channel: str = "jobs", data: object = "work") -> None:
    insert_messages(conn, [channel_message(channel, data, None, max_payload_bytes=1000)])


def direct_message(addressee: str) -> OutgoingMessage:
    return OutgoingMessage("m1", "message", DIRECT_CHANNEL, "{}", addressee, "1")


def waits_for_an_answer(conn: Connection) -> None:
    insert_instance(conn, NewInstance("first", "flow", "tests", "{}", "hash", 300.0))
    waits.settle(conn, [Ask("first", "receive:1", "first", WaitRequest(WaitKind.MESSAGE, DIRECT_CHANNEL))])
    conn.execute(update(table).values(wake_at=None, status=Status.WAITING_FOR_MESSAGE))


def is_cancelled(conn: Connection) -> None:
    assert instances.request_cancel(conn, "first", None)


def is_held(conn: Connection) -> Holder:
    conn.execute(update(table).where(_ID == "first").values(locked_by="w", lock_epoch=1))
    return Holder("first", "w", 1)


def ends(conn: Connection) -> None:
    commit_units(conn, [End(is_held(conn), Status.COMPLETED, "1", had_waits=True, mailbox="first")])


def is_blocked(conn: Connection) -> None:
    commit_units(conn, [Block(is_held(conn), "{}")])


def gives_up_the_wait(conn: Connection) -> None:
    """What a withdrawn wait does, under the lock of its instance."""
    conn.execute(select(_ID).where(_ID == "first").with_for_update())
    waits.forget(conn, [("first", "receive:1")])


_ID = table.c.instance_id


def deliver_all(database: Database) -> None:
    for _ in range(10):
        if not run(database, delivery.deliver).is_unfinished:
            return
    raise AssertionError("delivery never comes to an end")


def receivers(database: Database) -> list[tuple[str, bool]]:
    """To whom messages are handed, and whether that one is due by it."""
    query = text(
        "SELECT receiver, wake_at IS NOT NULL FROM edda_inbox LEFT JOIN edda_instances ON instance_id = receiver"
        " ORDER BY seq"
    )
    return run(database, lambda conn: [(row[0], row[1]) for row in conn.execute(query)])


@pytest.mark.parametrize("goes", [is_cancelled, ends, is_blocked, gives_up_the_wait])
@pytest.mark.parametrize("is_seen_by_the_delivery", [True, False])
def test_a_job_handed_to_a_receiver_that_goes_is_handed_to_another_one(
    database: Database, goes: Callable[[Connection], None], is_seen_by_the_delivery: bool
) -> None:
    for instance_id in ("first", "second"):
        run(database, lambda conn, instance_id=instance_id: waits_for_a_job(conn, instance_id))
    run(database, publish)

    with database.engine.connect() as going, going.begin() as transaction:
        goes(going)
        with database.write() as conn:
            serialize_delivery(conn)
            delivery.distribute(conn)
            delivery.assign_queued(conn)
            if is_seen_by_the_delivery:
                transaction.commit()
            assert waking.wake_receivers(conn).is_unfinished
        if not is_seen_by_the_delivery:
            transaction.commit()
    deliver_all(database)

    assert receivers(database) == [("second", True)]


def test_a_job_goes_back_to_the_queue_when_nobody_else_wants_it(database: Database) -> None:
    run(database, lambda conn: waits_for_a_job(conn, "first"))
    run(database, publish)
    with database.engine.connect() as going, going.begin():
        gives_up_the_wait(going)
        assert run(database, delivery.deliver).is_unfinished
    deliver_all(database)

    assert receivers(database) == [("", False)]


def test_news_for_a_subscriber_that_is_being_cancelled_is_dropped(database: Database) -> None:
    run(database, lambda conn: waits_for_a_job(conn, "first"))
    run(database, lambda conn: channels.subscribe(conn, mailbox="first", channel="news", mode=ChannelMode.BROADCAST))
    run(database, lambda conn: publish(conn, "news"))
    with database.engine.connect() as going, going.begin():
        is_cancelled(going)
        assert run(database, delivery.deliver).is_unfinished
    deliver_all(database)

    assert receivers(database) == []
    assert run(database, lambda conn: conn.execute(select(messages.c.seq)).all()) == []


def test_who_is_started_and_waits_while_something_for_it_is_delivered_is_woken(database: Database) -> None:
    """A body may send to an instance whose start is not committed."""
    run(database, lambda conn: insert_messages(conn, [direct_message("first")]))
    with database.write() as conn:
        assert delivery.deliver(conn).is_unfinished
        run(database, waits_for_an_answer)
    deliver_all(database)

    assert receivers(database) == [("first", True)]


def test_what_is_for_nobody_is_kept_and_looked_at_no_more(database: Database) -> None:
    run(database, lambda conn: insert_messages(conn, [direct_message("nobody")]))
    assert run(database, delivery.deliver).is_unfinished
    deliver_all(database)

    assert receivers(database) == [("nobody", False)]
    assert run(database, delivery.take_turn).is_ours is None


def test_what_one_of_two_waits_of_an_instance_gave_up_goes_to_another_instance(database: Database) -> None:
    run(database, lambda conn: waits_for_a_job(conn, "first"))
    run(database, lambda conn: waits.settle(conn, [Ask("first", "receive:2", "first", JOB)]))
    run(database, publish)
    run(database, publish)
    with database.engine.connect() as going, going.begin():
        gives_up_the_wait(going)
        assert run(database, delivery.deliver).is_unfinished
    run(database, lambda conn: waits_for_a_job(conn, "second"))
    deliver_all(database)

    assert sorted(receivers(database)) == [("first", True), ("second", True)]
    assert run(database, lambda conn: conn.execute(select(inbox.c.seq).where(inbox.c.is_new)).all()) == []


def next_job(conn: Connection, activity_id: str) -> waits.Answer:
    """What an instance gets that asks, under its lock, for a job."""
    conn.execute(select(_ID).where(_ID == "first").with_for_update())
    return waits.settle(conn, [Ask("first", activity_id, "first", JOB)])[0]


def test_a_job_handed_to_a_wait_that_is_given_up_comes_before_the_next_one(database: Database) -> None:
    run(database, lambda conn: waits_for_a_job(conn, "first"))
    run(database, lambda conn: publish(conn, "jobs", 1))
    run(database, lambda conn: publish(conn, "jobs", 2))

    with ThreadPoolExecutor(1) as pool, database.write() as delivering:
        with database.engine.begin() as conn:
            gives_up_the_wait(conn)
            delivery.deliver(delivering)  # sees the wait, and hands the first job over
        asking = pool.submit(run, database, lambda conn: next_job(conn, "receive:2"))
        eventually(lambda: is_waiting_for_its_turn(database))
        delivering.commit()
        answer = asking.result()

    assert isinstance(answer, Taken)
    assert json.loads(answer.message_json)["data"] == 1


def test_a_job_that_is_put_back_comes_before_one_handed_over_meanwhile(database: Database) -> None:
    run(database, lambda conn: waits_for_a_job(conn, "first"))
    for number in (1, 2):
        run(database, lambda conn, number=number: publish(conn, "jobs", number))
    run(database, gives_up_the_wait)
    run(database, delivery.deliver)
    # As a delivery leaves it that began before the wait was given up.
    run(database, lambda conn: conn.execute(update(inbox).where(_SECOND).values(receiver="first")))

    answer = run(database, lambda conn: next_job(conn, "receive:2"))

    assert isinstance(answer, Taken)
    assert json.loads(answer.message_json)["data"] == 1


_SECOND = inbox.c.seq == select(func.max(messages.c.seq)).scalar_subquery()


def is_waiting_for_its_turn(database: Database) -> bool:
    query = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    return run(database, lambda conn: conn.execute(query).scalar_one()) == 1


def test_a_message_that_is_being_put_back_is_not_pruned(database: Database) -> None:
    old = "2001-01-01T00:00:00+00:00"
    run(
        database,
        lambda conn: conn.execute(
            insert(messages).values(
                seq=7, message_id="m1", kind="message", name="news", data="1", metadata="{}", is_new=False,
                published_at=datetime.fromisoformat(old),
            )
        ),
    )  # fmt: skip
    step = Step(Holder("first", "w", 1), StepKey("receive:1", "", 1), 1, EventType.WAIT_WITHDRAWN, "{}")
    message = {"id": "m1", "name": "news", "data": 1, "metadata": {}, "published_at": old}
    received = event_json(
        "receive",
        result_json=json.dumps(message),
        taken_json=json.dumps({"kind": "message", "name": "news", "seq": 7, "is_queued": False}),
    )
    run(database, lambda conn: insert_steps(conn, [replace(step, event_json=received).as_row()]))

    with database.engine.connect() as conn, conn.begin() as transaction:
        put_back(conn, PutBack(step, "first"))
        assert run(database, lambda conn: prune_messages(conn, retention_seconds=60)) == 0
        transaction.commit()

    assert receivers(database) == [("first", False)]
    assert run(database, lambda conn: conn.execute(select(messages.c.seq)).scalars().all()) == [7]


def test_what_leads_to_a_message_that_is_gone_is_passed_over(database: Database) -> None:
    run(database, waits_for_an_answer)
    lost = {"receiver": "first", "kind": "message", "name": DIRECT_CHANNEL, "is_queued": False, "is_new": False}
    run(database, lambda conn: conn.execute(insert(inbox), [{**lost, "seq": seq} for seq in (-2, -1)]))
    asks = [Ask("first", "receive:1", "first", WaitRequest(WaitKind.MESSAGE, DIRECT_CHANNEL))]
    assert isinstance(run(database, lambda conn: waits.settle(conn, asks))[0], StillOpen)

    run(database, lambda conn: conn.execute(insert(inbox), {**lost, "seq": -1}))
    run(database, lambda conn: insert_messages(conn, [direct_message("first")]))
    deliver_all(database)
    (answer,) = run(database, lambda conn: waits.settle(conn, asks))
    assert isinstance(answer, Taken)
    assert json.loads(answer.message_json)["id"] == "m1"
    assert receivers(database) == []


def test_what_was_sent_to_an_instance_that_is_started_while_it_is_delivered_is_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(database, lambda conn: insert_messages(conn, [direct_message("late")]))
    assert run(database, delivery.deliver).is_unfinished  # nobody is there yet
    live_among = waking.live_among

    def started_just_then(conn: Connection, boxes: Collection[str]) -> set[str]:
        found = live_among(conn, boxes)
        run(database, lambda other: insert_instance(other, NewInstance("late", "flow", "tests", "{}", "hash", 300.0)))
        return found

    monkeypatch.setattr(waking, "live_among", started_just_then)
    run(database, delivery.deliver)

    with database.engine.connect() as conn:
        assert conn.execute(select(func.count()).select_from(inbox).where(inbox.c.receiver == "late")).scalar() == 1
        assert conn.execute(select(func.count()).select_from(messages)).scalar() == 1
