"""A claim in one statement: it takes what several statements take, and touches nothing that it should not decide about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, event, make_url, text, update

from edda_engine.core.events import StepKey
from edda_engine.core.ports import ChannelMode, NewInstance, OutgoingMessage, WaitKind, WaitRequest
from edda_engine.core.status import Status
from edda_engine.storage import channels, claiming, instances, waits
from edda_engine.storage.claim_at_once import Claimed, claim_at_once
from edda_engine.storage.commit import AlreadyRecorded, Holder, Take, Wait, commit_units
from edda_engine.storage.database import Database
from edda_engine.storage.delivery import deliver
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.schema import instances as table
from edda_engine.storage.serial import serialize_delivery
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.waits import Ask
from tests.integration.engines import Tables, run, storage
from tests.support import eventually

PAID = WaitRequest(WaitKind.EVENT, "paid")
NAMES = ["wf", "other"]


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """One in which who waits for a lock of another transaction fails: nobody here may."""
    with storage(with_options(postgres_url, "-c lock_timeout=5000")) as found:
        yield found


@pytest.fixture
def tables(postgres_url: str) -> Tables:
    return Tables(postgres_url)


def with_options(url: str, options: str) -> str:
    return make_url(url).update_query_dict({"options": options}).render_as_string(hide_password=False)


def inserted(conn: Connection, instance_id: str, *, name: str = "wf", service: str = "tests") -> None:
    insert_instance(conn, NewInstance(instance_id, name, service, '{"n":[1,null,"ü"]}', "hash", 60.0))


def waiting(conn: Connection, instance_id: str, *requests: WaitRequest, **about: Any) -> None:
    """An instance that waits, and is held by nobody."""
    inserted(conn, instance_id, **about)
    for number, request in enumerate(requests or (PAID,), 1):
        waits.settle(conn, [Ask(instance_id, f"wait:{number}", instance_id, request)])
    is_it = table.c.instance_id == instance_id
    conn.execute(update(table).where(is_it).values(wake_at=None, status=Status.WAITING_FOR_EVENT, lock_epoch=1))


def waits_for_paid(database: Database, *ids: str) -> None:
    for instance_id in ids:
        run(database, lambda conn, instance_id=instance_id: waiting(conn, instance_id))


def sent(
    database: Database, addressee: str | None, data: str = "1", *, kind: str = "event", name: str = "paid"
) -> None:
    message = OutgoingMessage(f"m-{data}", kind, name, "{}", addressee, data)
    run(database, lambda conn: insert_messages(conn, [message]))


def claim(database: Database, *, limit: int = 10) -> Claimed:
    return claim_at_once(database.execute_alone, worker_id="w", service="tests", names=NAMES, limit=limit)


def ids(claimed: Claimed) -> list[str]:
    return sorted(lease.instance_id for lease in claimed.leases)


def everything(tables: Tables) -> dict[str, list[dict[str, Any]]]:
    order = {
        "instances": "instance_id",
        "messages": "seq",
        "inbox": "receiver, seq",
        "waits": "instance_id, activity_id",
    }
    return {name: tables.rows(f"SELECT * FROM edda_{name} ORDER BY {by}") for name, by in order.items()}


def test_what_is_due_is_claimed_as_by_several_statements(database: Database, tables: Tables) -> None:
    for instance_id in ("a", "b"):
        run(database, lambda conn, instance_id=instance_id: inserted(conn, instance_id))
    tables.execute("UPDATE edda_instances SET lock_epoch = 3, locked_by = 'dead', takeovers = 1, takeover_progress = 7")
    tables.execute("UPDATE edda_instances SET wake_at = NULL WHERE instance_id = 'b'")
    (slowly,) = run(
        database,
        lambda conn: claiming.claim_due(conn, worker_id="w", service="tests", names=NAMES, limit=10),
    )
    tables.execute("UPDATE edda_instances SET wake_at = now() WHERE instance_id = 'b'")

    found = claim(database)

    assert not found.has_mail
    (lease,) = found.leases
    assert replace(lease, instance_id="", started_at=slowly.started_at, mailbox="") == replace(
        slowly, instance_id="", mailbox=""
    )
    assert (lease.instance_id, lease.mailbox, lease.started_at.tzinfo) == ("b", "b", slowly.started_at.tzinfo)
    a, b = everything(tables)["instances"]
    assert a.keys() == b.keys()
    assert {name for name in a if a[name] != b[name] and not name.endswith("_at")} == {"instance_id"}
    assert all((a[name] is None) == (b[name] is None) for name in a)
    assert b["wake_at"] == b["lock_expires_at"]
    assert claim(database) == Claimed((), has_mail=False)


def test_of_more_than_it_may_take_the_urgent_and_then_the_longest_waiting_are_claimed(
    database: Database, tables: Tables
) -> None:
    for instance_id in "abcd":
        run(database, lambda conn, instance_id=instance_id: inserted(conn, instance_id))
    tables.execute("UPDATE edda_instances SET wake_at = now() - interval '1 h' WHERE instance_id = 'c'")
    tables.execute("UPDATE edda_instances SET priority = 5 WHERE instance_id = 'd'")
    assert ids(claim(database, limit=2)) == ["c", "d"]
    assert ids(claim(database, limit=2)) == ["a", "b"]


def test_who_waits_for_what_was_sent_to_it_is_claimed_and_finds_it_in_its_inbox(
    database: Database, tables: Tables
) -> None:
    waits_for_paid(database, "a", "b", "c")
    for addressee, data in (("a", "1"), ("b", "2"), ("a", "3")):
        sent(database, addressee, data)
    sent(database, "a", "4", kind="message", name="elsewhere")

    found = claim(database)

    assert (ids(found), found.has_mail) == (["a", "b"], False)
    assert {lease.epoch for lease in found.leases} == {2}
    assert [(row["receiver"], row["name"], row["is_new"]) for row in everything(tables)["inbox"]] == [
        ("a", "paid", False),
        ("a", "paid", False),
        ("a", "elsewhere", False),
        ("b", "paid", False),
    ]
    assert not any(row["is_new"] for row in everything(tables)["messages"])
    (taken,) = run(database, lambda conn: commit_units(conn, [asking(Holder("a", "w", 2))]))
    assert isinstance(taken, AlreadyRecorded)
    assert taken.event.event_data["result"]["data"] == 1
    assert run(database, deliver).woken == frozenset()


def asking(holder: Holder) -> Take:
    key = StepKey("wait:1", "", 1)
    return Take(holder, key, 1, "wait", holder.instance_id, PAID, is_asked_again=True)


def test_with_little_room_who_is_due_has_a_place_too(database: Database) -> None:
    waits_for_paid(database, "a", "b", "c")
    for each in "abc":
        sent(database, each)
    run(database, lambda conn: inserted(conn, "due"))

    first = claim(database, limit=2)

    assert (len(first.leases), first.has_mail, "due" in ids(first)) == (2, True, True)
    second = claim(database, limit=2)
    third = claim(database, limit=2)
    assert (second.has_mail, third.has_mail) == (True, False)
    assert sorted([*ids(first), *ids(second), *ids(third)]) == ["a", "b", "c", "due"]


def is_held(conn: Connection) -> None:
    conn.execute(update(table).values(locked_by="v", status=Status.RUNNING))


def is_blocked(conn: Connection) -> None:
    conn.execute(update(table).values(error="{}"))


def is_cancelled(conn: Connection) -> None:
    assert instances.request_cancel(conn, "a", None)


def has_failed(conn: Connection) -> None:
    conn.execute(update(table).values(status=Status.FAILED))


def has_recurred(conn: Connection) -> None:
    conn.execute(update(table).values(mailbox="the-first-run"))


def is_of_another_service(conn: Connection) -> None:
    conn.execute(update(table).values(service="theirs"))


def is_of_an_unknown_workflow(conn: Connection) -> None:
    conn.execute(update(table).values(workflow_name="gone"))


def waits_for_something_else(conn: Connection) -> None:
    conn.execute(text("UPDATE edda_waits SET name = 'shipped'"))


def competes(conn: Connection) -> None:
    conn.execute(text("UPDATE edda_waits SET is_competing = true"))


def something_for_all_is_new(conn: Connection) -> None:
    insert_messages(conn, [OutgoingMessage("for-all", "event", "shipped", "{}", None, "1")])


def something_is_to_be_seen(conn: Connection) -> None:
    conn.execute(
        text("INSERT INTO edda_inbox VALUES ('x', 'event', 'paid', 1000, false, true)"),
    )


def a_stranger_has_mail(conn: Connection) -> None:
    conn.execute(text("UPDATE edda_messages SET addressee = 'nobody'"))


@pytest.mark.parametrize(
    "makes",
    [
        is_held, is_blocked, is_cancelled, has_failed, has_recurred, is_of_another_service, is_of_an_unknown_workflow,
        waits_for_something_else, competes, something_for_all_is_new, something_is_to_be_seen, a_stranger_has_mail,
    ],
)  # fmt: skip
def test_what_it_cannot_decide_it_leaves_as_it_is(
    database: Database, tables: Tables, makes: Callable[[Connection], None]
) -> None:
    waits_for_paid(database, "a")
    sent(database, "a")
    run(database, makes)
    before = everything(tables)
    assert claim(database) == Claimed((), has_mail=True)
    assert everything(tables) == before


@contextmanager
def doing(database: Database, work: Callable[[Connection], object]) -> Iterator[None]:
    """Somebody else is in the middle of it."""
    with database.engine.connect() as conn, conn.begin() as transaction:
        work(conn)
        yield
        transaction.rollback()


@pytest.mark.parametrize(
    "work",
    [
        serialize_delivery,
        lambda conn: conn.execute(text("SELECT 1 FROM edda_instances FOR UPDATE")),
        lambda conn: conn.execute(text("SELECT 1 FROM edda_messages FOR UPDATE")),
    ],
    ids=["delivers", "has locked the instance", "has locked the message"],
)
def test_nobody_who_is_in_the_middle_of_something_is_waited_for(
    database: Database, tables: Tables, work: Callable[[Connection], object]
) -> None:
    waits_for_paid(database, "a")
    sent(database, "a")
    before = everything(tables)
    with doing(database, work):
        assert claim(database) == Claimed((), has_mail=True)
    assert everything(tables) == before
    assert ids(claim(database)) == ["a"]


def test_nothing_overtakes_a_message_that_somebody_has_locked(database: Database, tables: Tables) -> None:
    waits_for_paid(database, "a")
    sent(database, "a", "1")
    sent(database, "a", "2")
    before = everything(tables)
    oldest = "SELECT 1 FROM edda_messages WHERE seq = (SELECT min(seq) FROM edda_messages) FOR SHARE"
    with doing(database, lambda conn: conn.execute(text(oldest))):
        assert claim(database) == Claimed((), has_mail=True)
    assert everything(tables) == before


# What others have done since the statement began.

_SLOW_TURN = (
    "CREATE SCHEMA slow; CREATE FUNCTION slow.pg_try_advisory_xact_lock(integer) RETURNS boolean LANGUAGE sql VOLATILE AS"
    " $$ SELECT pg_advisory_lock(1), pg_advisory_unlock(1), true; SELECT true $$"
)


@pytest.fixture
def slow(database: Database, postgres_url: str) -> Iterator[Database]:
    """A database whose turn of delivery, once the statement has begun, is given when the lock 1 is let go."""
    run(database, lambda conn: conn.execute(text(_SLOW_TURN)))
    with storage(with_options(postgres_url, "-c search_path=slow,public")) as found:
        yield found


def claimed_while(slow: Database, tables: Tables, work: Callable[[], None]) -> Claimed:
    """A claim whose statement sees the database as it was before *work*, and locks afterwards."""
    with slow.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as gate, ThreadPoolExecutor(1) as pool:
        gate.execute(text("SELECT pg_advisory_lock(1)"))
        try:
            found = pool.submit(lambda: claim(slow))
            eventually(lambda: tables.value(_IS_AT_THE_TURN))
            work()
        finally:
            gate.execute(text("SELECT pg_advisory_unlock(1)"))
        return found.result(20)


_IS_AT_THE_TURN = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def test_what_somebody_else_has_delivered_meanwhile_is_not_delivered_again(
    database: Database, slow: Database, tables: Tables
) -> None:
    waits_for_paid(database, "a")
    sent(database, "a")

    def deliver_and_take() -> None:
        run(database, deliver)
        holder = held(database, "v")
        (taken,) = run(database, lambda conn: commit_units(conn, [asking(holder)]))
        assert isinstance(taken, AlreadyRecorded)
        run(database, lambda conn: waits.settle(conn, [Ask("a", "wait:2", "a", PAID)]))
        run(database, lambda conn: commit_units(conn, [Wait(holder, Status.WAITING_FOR_EVENT, None, frozenset())]))

    found = claimed_while(slow, tables, deliver_and_take)

    assert found.leases == ()
    assert everything(tables)["inbox"] == []


def held(database: Database, worker_id: str) -> Holder:
    (lease,) = run(
        database,
        lambda conn: claiming.claim_due(conn, worker_id=worker_id, service="tests", names=NAMES, limit=10),
    )
    return Holder("a", worker_id, lease.epoch)


def test_who_was_held_meanwhile_and_waits_for_something_else_now_is_left(
    database: Database, slow: Database, tables: Tables
) -> None:
    waits_for_paid(database, "a")
    sent(database, "a")

    def be_held_and_wait_again() -> None:
        tables.execute("UPDATE edda_instances SET wake_at = now()")
        holder = held(database, "v")
        tables.execute("DELETE FROM edda_waits")
        run(database, lambda conn: waits.settle(conn, [Ask("a", "wait:2", "a", WaitRequest(WaitKind.EVENT, "other"))]))
        run(database, lambda conn: commit_units(conn, [Wait(holder, Status.WAITING_FOR_EVENT, None, frozenset())]))

    found = claimed_while(slow, tables, be_held_and_wait_again)

    assert found == Claimed((), has_mail=True)
    assert everything(tables)["inbox"] == []
    assert run(database, deliver).woken == frozenset()
    assert [row["receiver"] for row in everything(tables)["inbox"]] == ["a"]


@pytest.mark.parametrize("makes", [is_held, is_blocked, is_cancelled])
def test_who_cannot_go_on_any_more_is_left(
    database: Database, slow: Database, tables: Tables, makes: Callable[[Connection], None]
) -> None:
    waits_for_paid(database, "a")
    sent(database, "a")
    found = claimed_while(slow, tables, lambda: run(database, makes))
    assert found == Claimed((), has_mail=True)
    assert everything(tables)["inbox"] == []


def test_a_message_to_a_channel_by_address_is_found_by_who_waits_there(database: Database, tables: Tables) -> None:
    def subscribed(conn: Connection) -> None:
        inserted(conn, "a")
        channels.subscribe(conn, mailbox="a", channel="news", mode=ChannelMode.DIRECT)
        waits.settle(conn, [Ask("a", "receive:1", "a", WaitRequest(WaitKind.MESSAGE, "news"))])
        conn.execute(update(table).values(wake_at=None, status=Status.WAITING_FOR_MESSAGE))

    run(database, subscribed)
    sent(database, "a", kind="message", name="news")
    assert claim(database).leases[0].instance_id == "a"
    assert [row["name"] for row in everything(tables)["inbox"]] == ["news"]


def test_it_is_given_to_the_driver_unless_somebody_listens(database: Database) -> None:
    """Both ways are one: the other tests of the claim go the driver's."""

    waits_for_paid(database, "a", "b")
    sent(database, "a")
    quietly = claim(database)
    sent(database, "b")
    seen: list[str] = []
    listener = lambda *args: seen.append(args[2])  # noqa: E731
    event.listen(database.service, "before_cursor_execute", listener)
    try:
        heard = claim(database)
    finally:
        event.remove(database.service, "before_cursor_execute", listener)
    assert len(seen) == 1
    (first,), (second,) = quietly.leases, heard.leases
    assert replace(first, instance_id="", mailbox="", started_at=second.started_at) == replace(
        second, instance_id="", mailbox=""
    )
