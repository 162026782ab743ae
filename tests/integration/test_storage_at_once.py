"""One statement that checks leases and writes: what it writes, what it leaves, and that nobody comes in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, make_url, text

from edda_engine.core.events import EventType, StepKey
from edda_engine.core.ports import DIRECT_CHANNEL, NewInstance, OutboxEvent, OutgoingMessage, WaitKind, WaitRequest
from edda_engine.core.status import Status
from edda_engine.storage import at_once as at_once_of
from edda_engine.storage import claiming, instances
from edda_engine.storage.alone import Alone
from edda_engine.storage.at_once import is_plain, write_at_once
from edda_engine.storage.commit import commit_units
from edda_engine.storage.database import Database
from edda_engine.storage.delivery import deliver
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.retries import RetryState
from edda_engine.storage.starts import Started, insert_instance
from edda_engine.storage.units import (
    AlreadyRecorded,
    Attempt,
    BatchOutcome,
    End,
    Holder,
    Open,
    Saved,
    Start,
    Step,
    Successor,
    Take,
    Unit,
    Wait,
)
from tests.integration.engines import Tables, nodes, run, storage
from tests.support import eventually

TURN = 20261125


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    with storage(postgres_url) as made:
        yield made


@pytest.fixture
def tables(postgres_url: str) -> Tables:
    return Tables(postgres_url)


def new(instance_id: str) -> NewInstance:
    return NewInstance(instance_id, "wf", "tests", '{"n":[1,null,"ü"]}', "hash", 60.0)


def held(database: Database, *ids: str) -> list[Holder]:
    """Instances that a worker has claimed."""
    for instance_id in ids:
        run(database, lambda conn, instance_id=instance_id: insert_instance(conn, new(instance_id)))
    leases = run(
        database, lambda conn: claiming.claim_due(conn, worker_id="w", service="tests", names=["wf"], limit=100)
    )
    return sorted((Holder(lease.instance_id, "w", lease.epoch) for lease in leases), key=lambda each: each.instance_id)


def step(holder: Holder, number: int = 1, **more: Any) -> Step:
    event = '{"activity_name":"act","result":"a\\u0301 \\"quoted\\""}'
    return Step(holder, StepKey(f"act:{number}", "b", number), number, EventType.ACTIVITY_COMPLETED, event, **more)


def at_once(database: Database, *units: Unit) -> list[BatchOutcome | None]:
    return write_at_once(database.execute_alone, units)


def without_times(tables: Tables, instance_id: str) -> list[dict[str, Any]]:
    """The rows of an instance, but for what differs from one to another."""
    found = tables.rows(f"SELECT * FROM edda_instances WHERE instance_id = '{instance_id}'") + tables.rows(
        f"SELECT * FROM edda_history WHERE instance_id = '{instance_id}' ORDER BY seq"
    )
    return [
        {name: value is not None if name.endswith("_at") else value for name, value in row.items()}
        | {"instance_id": ""}
        for row in found
    ]


def test_what_it_writes_is_what_several_statements_write(database: Database, tables: Tables) -> None:
    a, b, c, d = held(database, "a", "b", "c", "d")
    failed = {"status": Status.FAILED, "error_json": '{"type":"ValueError"}'}

    slowly = run(database, lambda conn: commit_units(conn, [step(a), step(a, 2), End(a, Status.COMPLETED, '[1,"x"]')]))
    assert slowly == [Saved()] * 3
    assert at_once(database, step(b), step(b, 2), End(b, Status.COMPLETED, '[1,"x"]')) == [Saved()] * 3
    assert run(database, lambda conn: commit_units(conn, [End(c, **failed)])) == at_once(database, End(d, **failed))

    assert without_times(tables, "a") == without_times(tables, "b")
    assert without_times(tables, "c") == without_times(tables, "d")
    assert [row.get("status") for row in without_times(tables, "d")] == ["failed"]


def test_a_start_is_the_same_too_and_of_two_of_one_id_one_is_written(database: Database, tables: Tables) -> None:
    (slowly,) = run(database, lambda conn: commit_units(conn, [Start(new("a"), "w")]))
    found = at_once(database, Start(new("b"), "w"), Start(new("c")), Start(new("b"), "w"), Start(new("a")))

    assert isinstance(slowly, Started)
    assert slowly.lease is not None
    first, unclaimed, *others = found
    assert isinstance(first, Started)
    assert first.lease is not None
    assert (first.lease.instance_id, first.lease.epoch, first.lease.input_json) == ("b", 1, '{"n":[1,null,"ü"]}')
    assert first.lease.started_at.utcoffset() == slowly.lease.started_at.utcoffset()
    assert unclaimed == Started(True)
    assert others == [None, None]
    assert without_times(tables, "a") == without_times(tables, "b")


def test_it_leaves_what_is_recorded_already_what_is_lost_and_what_is_locked(database: Database, tables: Tables) -> None:
    a, b, c, d, e = held(database, "a", "b", "c", "d", "e")
    tables.take_away("b")
    run(database, lambda conn: commit_units(conn, [step(d)]))
    run(database, lambda conn: instances.request_cancel(conn, "e", "why"))

    with database.engine.begin() as other:
        other.execute(text("SELECT FROM edda_instances WHERE instance_id = 'c' FOR UPDATE"))
        found = at_once(
            database, step(a), step(b), End(b, Status.COMPLETED), step(c), step(d), step(d, 2), step(e), step(a)
        )

    assert found == [Saved(), None, None, None, None, Saved(), Saved(is_cancelled=True), None]
    written = tables.rows("SELECT instance_id, activity_id FROM edda_history ORDER BY 1, 2")
    assert [tuple(row.values()) for row in written] == [("a", "act:1"), ("d", "act:1"), ("d", "act:2"), ("e", "act:1")]
    assert tables.rows("SELECT status FROM edda_instances WHERE instance_id = 'b'")[0]["status"] == "running"


@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_late_is_not_told_that_its_workers_new_lease_has_written_it(
    database: Database, tables: Tables, is_first: bool
) -> None:
    a, b = held(database, "a", "b")
    run(database, lambda conn: instances.release_worker(conn, "w"))
    new_a, new_b = held(database)
    late: list[Unit] = [step(a), End(b, Status.COMPLETED, '"late"')]
    ours: list[Unit] = [step(new_a), End(new_b, Status.COMPLETED, '"ours"')]

    found = at_once(database, *(late + ours if is_first else ours + late))

    assert found == ([None, None, Saved(), Saved()] if is_first else [Saved(), Saved(), None, None])
    assert tables.value("SELECT CAST(output AS TEXT) FROM edda_instances WHERE instance_id = 'b'") == '"ours"'


def test_only_what_touches_nothing_else_is_plain() -> None:
    holder = Holder("a", "w", 1)
    event = OutboxEvent("event-1", "t", "s", "application/json", "{}")
    assert is_plain(step(holder))
    assert is_plain(timer(holder))
    assert is_plain(waiting(holder))
    assert is_plain(waiting(holder, kind=WaitKind.MESSAGE, name=DIRECT_CHANNEL))
    assert is_plain(End(holder, Status.COMPLETED))
    assert is_plain(End(holder, Status.FAILED, had_waits=True, had_retries=True))
    assert is_plain(Start(new("a")))
    others: list[Unit] = [
        step(holder, outbox=(event,)),
        step(holder, ends_wait=True),
        step(holder, had_retries=True),
        replace(timer(holder), is_asked_again=False),
        replace(waiting(holder), is_asked_again=False),
        waiting(holder, kind=WaitKind.MESSAGE, name="prices"),
        End(holder, Status.COMPLETED, mailbox="a"),
        End(holder, Status.RECURRED, successor=Successor("b", "{}", "hash")),
        Wait(holder, Status.WAITING_FOR_TIMER, 1.0),
    ]
    assert not any(map(is_plain, others))


def timer(holder: Holder, number: int = 1, seconds: float = 0.0) -> Take:
    """A timer that its body asks for again."""
    request = WaitRequest(WaitKind.TIMER, "", seconds=seconds)
    return Take(holder, StepKey(f"sleep:{number}", "", number), number, "sleep", holder.instance_id, request, True)


def registered(database: Database, *timers: Take, seconds: float = 5.0) -> None:
    for each in timers:
        first = replace(each, request=replace(each.request, seconds=seconds), is_asked_again=False)
        assert run(database, lambda conn, first=first: commit_units(conn, [first])) == [Open(seconds)]


def test_a_timer_whose_time_is_up_is_over_as_in_several_statements(database: Database, tables: Tables) -> None:
    a, b = held(database, "a", "b")
    registered(database, timer(a), timer(b))
    tables.execute("UPDATE edda_waits SET expires_at = now()")

    slowly = run(database, lambda conn: commit_units(conn, [timer(a)]))
    (found,) = at_once(database, timer(b))

    assert slowly == [found]
    assert isinstance(found, AlreadyRecorded)
    assert found.event.event_type == EventType.TIMER_FIRED
    assert without_times(tables, "a") == without_times(tables, "b")
    assert tables.rows("SELECT 1 FROM edda_waits") == []


def test_it_leaves_timers_that_are_not_due_not_registered_asked_to_stop_or_lost(
    database: Database, tables: Tables
) -> None:
    a, b, c, d = held(database, "a", "b", "c", "d")
    registered(database, timer(a), timer(c), timer(d))
    tables.execute("UPDATE edda_waits SET expires_at = now() WHERE instance_id <> 'a'")
    run(database, lambda conn: instances.request_cancel(conn, "c", "why"))
    tables.take_away("d")

    assert at_once(database, timer(a), timer(b), timer(c), timer(d)) == [None] * 4

    assert tables.value("SELECT count(*) FROM edda_waits") == 3
    assert tables.rows("SELECT 1 FROM edda_history") == []


def waiting(holder: Holder, number: int = 1, *, kind: WaitKind = WaitKind.EVENT, name: str = "paid") -> Take:
    """A wait that its body asks for again."""
    request = WaitRequest(kind, name, seconds=5.0)
    return Take(holder, StepKey(f"wait:{number}", "b", number), number, "wait", holder.instance_id, request, True)


def sent(database: Database, addressee: str | None, data: str | None = '"it\'s \\"here\\" ü"', **more: Any) -> None:
    """An event that has come into the inboxes of those who get it."""
    about = {"kind": "event", "name": "paid", "metadata_json": '{"source":"bänk"}', "data_json": data} | more
    message = OutgoingMessage(f"m-{addressee}", addressee=addressee, **about)
    run(database, lambda conn: insert_messages(conn, [message]))
    run(database, deliver)


def received(tables: Tables, instance_id: str) -> list[dict[str, Any]]:
    """What history says, but for what differs from one message to another."""
    rows = tables.rows(f"SELECT * FROM edda_history WHERE instance_id = '{instance_id}' ORDER BY seq")
    for row in rows:
        event = row["event_data"] = (
            json.loads(row["event_data"]) if isinstance(row["event_data"], str) else row["event_data"]
        )
        assert event["result"].pop("id") == f"m-{instance_id}"
        assert abs(datetime.now(UTC) - datetime.fromisoformat(event["result"].pop("published_at"))) < timedelta(
            minutes=5
        )
        assert event["taken"].pop("seq") > 0
        del row["instance_id"], row["created_at"]
    return rows


@pytest.mark.parametrize("more", [{}, {"data": "null"}, {"kind": "message", "name": DIRECT_CHANNEL}])
def test_what_was_sent_to_one_is_taken_as_in_several_statements(
    database: Database, tables: Tables, more: dict[str, Any]
) -> None:
    a, b = held(database, "a", "b")
    about = {"kind": WaitKind(more.get("kind", "event")), "name": more.get("name", "paid")}
    for holder in (a, b):
        registered(database, waiting(holder, **about))
        sent(database, holder.instance_id, **more)

    (slowly,) = run(database, lambda conn: commit_units(conn, [waiting(a, **about)]))
    (found,) = at_once(database, waiting(b, **about))

    assert isinstance(slowly, AlreadyRecorded)
    assert isinstance(found, AlreadyRecorded)
    kept = ("activity_id", "branch", "position", "event_type", "format")
    assert [getattr(found.event, name) for name in kept] == [getattr(slowly.event, name) for name in kept]
    assert found.event.event_data.keys() == slowly.event.event_data.keys()
    assert received(tables, "a") == received(tables, "b")
    for left in ("edda_waits", "edda_inbox", "edda_messages"):
        assert tables.rows(f"SELECT 1 FROM {left}") == []


def test_the_oldest_is_taken_first_and_one_for_each_wait(database: Database, tables: Tables) -> None:
    (a,) = held(database, "a")
    registered(database, waiting(a, 1), waiting(a, 2))
    for number in (1, 2):
        sent(database, "a", str(number))

    first, second = at_once(database, waiting(a, 1), waiting(a, 2))

    assert isinstance(first, AlreadyRecorded)
    assert (first.event.event_data["result"]["data"], second) == (1, None)
    (second,) = at_once(database, waiting(a, 2))
    assert isinstance(second, AlreadyRecorded)
    assert second.event.event_data["result"]["data"] == 2
    assert at_once(database, waiting(a, 2)) == [None]


def test_each_of_a_batch_gets_what_was_sent_to_it(database: Database, tables: Tables) -> None:
    a, b, c = held(database, "a", "b", "c")
    registered(database, waiting(a), waiting(b), waiting(c, name="shipped"))
    sent(database, "b", '"for b"')
    sent(database, "a", '"for a"')
    sent(database, "c", '"for c"', name="shipped")

    first, second, third, other = at_once(database, waiting(a), waiting(b), waiting(c, name="shipped"), step(a, 2))

    for found, data in ((first, "for a"), (second, "for b"), (third, "for c")):
        assert isinstance(found, AlreadyRecorded)
        assert found.event.event_data["result"]["data"] == data
    assert other == Saved()
    assert tables.value("SELECT count(*) FROM edda_history") == 4
    for left in ("edda_waits", "edda_inbox", "edda_messages"):
        assert tables.rows(f"SELECT 1 FROM {left}") == []


def test_it_leaves_what_was_sent_to_all_what_is_bytes_what_is_recorded_asked_to_stop_lost_or_not_registered(
    database: Database, tables: Tables
) -> None:
    everybody = held(database, *"abcdef")
    registered(database, *(waiting(holder) for holder in everybody if holder.instance_id != "f"))
    sent(database, None)
    tables.execute("DELETE FROM edda_inbox WHERE receiver <> 'a'")
    for each in "bcdef":
        more: dict[str, Any] = {"data": None, "data_binary": b"bytes"} if each == "b" else {}
        sent(database, each, **more)
    recorded = replace(step(everybody[2]), key=waiting(everybody[2]).key)
    run(database, lambda conn: commit_units(conn, [recorded]))
    run(database, lambda conn: instances.request_cancel(conn, "d", "why"))
    tables.take_away("e")
    before = tables.rows("SELECT * FROM edda_inbox ORDER BY receiver")

    assert at_once(database, *map(waiting, everybody)) == [None] * 6

    assert tables.rows("SELECT * FROM edda_inbox ORDER BY receiver") == before
    assert len(before) == 6
    assert tables.value("SELECT count(*) FROM edda_messages") == 6
    assert tables.value("SELECT count(*) FROM edda_waits") == 5
    assert tables.value("SELECT count(*) FROM edda_history") == 1


def test_an_end_leaves_no_wait_and_no_attempt_of_its_own_behind(database: Database, tables: Tables) -> None:
    a, b = held(database, "a", "b")
    registered(database, timer(a), timer(a, 2), timer(b))
    for holder in (a, b):
        unit = Attempt(holder, "act:1", RetryState(1, 0.0, 1.0))
        run(database, lambda conn, unit=unit: commit_units(conn, [unit]))

    assert at_once(database, End(a, Status.FAILED, error_json="{}", had_waits=True, had_retries=True)) == [Saved()]

    assert tables.rows("SELECT instance_id FROM edda_waits") == [{"instance_id": "b"}]
    assert tables.rows("SELECT instance_id FROM edda_retries") == [{"instance_id": "b"}]


def is_waiting(database: Database) -> bool:
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return run(database, lambda conn: conn.execute(query).scalar_one()) == 1


def test_nobody_takes_the_lease_between_its_check_and_the_step(database: Database, tables: Tables) -> None:
    (holder,) = held(database, "a")

    with ThreadPoolExecutor(1) as pool, database.engine.connect() as other:
        # A step of the same name that is being written: the statement has checked the lease when it meets it.
        _insert_step(other, "a")
        writing = pool.submit(at_once, database, step(holder))
        eventually(lambda: is_waiting(database))
        assert run(database, lambda conn: instances.release_worker(conn, "w")) == []
        other.rollback()
        assert writing.result() == [Saved()]

    assert run(database, lambda conn: instances.release_worker(conn, "w")) == ["a"]


def test_a_lease_that_is_taken_after_the_statement_began_is_lost(
    database: Database, tables: Tables, postgres_url: str
) -> None:
    (holder,) = held(database, "a")
    with (
        stopping_before_the_first_lock(database, postgres_url) as stopping,
        ThreadPoolExecutor(1) as pool,
        database.engine.connect() as other,
    ):
        other.execute(text(f"SELECT pg_advisory_xact_lock({TURN})"))
        writing = pool.submit(at_once, stopping, step(holder))
        eventually(lambda: is_waiting(database))
        assert run(database, lambda conn: instances.release_worker(conn, "w")) == ["a"]
        other.rollback()
        assert writing.result() == [None]

    assert tables.rows("SELECT 1 FROM edda_history") == []


@pytest.mark.parametrize("statement", [at_once_of._ALL, at_once_of._OFTEN, at_once_of._PURE["step"]])
@pytest.mark.parametrize("is_counted", [False, True], ids=["empty", "small"])
def test_a_plan_made_when_the_table_was_small_reads_it_at_most_once(
    database: Database, tables: Tables, statement: Alone, is_counted: bool
) -> None:
    """The server keeps it until somebody counts the rows: for a minute, in which the table may have grown large."""
    if is_counted:
        of_many(tables, 1, 40)
        tables.execute("ANALYZE edda_instances")
    written = statement._for(database.service.dialect)._numbered
    assert written is not None
    given = {"ids": [f"i{n}" for n in range(1, 301)], "leaving": []}
    with_plan = written.in_order(dict.fromkeys(written.names, "[]") | given)
    with database.service.connect() as conn:
        raw: Any = conn.connection.dbapi_connection
        cursor = psycopg.ClientCursor(raw)
        cursor.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        cursor.execute(f"PREPARE writing AS {written.sql}")
        places = ", ".join(["%s"] * len(written.names))
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE writing({places})"
        cursor.execute(explain, with_plan)
        of_many(tables, 41, 5000)
        (found,) = cursor.execute(explain, with_plan).fetchone() or ()
        raw.rollback()
        cursor.execute("DEALLOCATE writing")
    scans = [
        node
        for node in nodes(found[0]["Plan"])
        if node.get("Relation Name") == "edda_instances" and "Scan" in node["Node Type"]
    ]
    read = sum(node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) for node in scans)
    assert 0 < read < 6000
    assert all("ANY" not in node.get("Filter", "") for node in scans)


def of_many(tables: Tables, first: int, last: int) -> None:
    tables.execute(
        "INSERT INTO edda_instances (instance_id, workflow_name, service, status, source_hash, input, priority, lock_epoch,"
        " lock_timeout_seconds, takeovers, takeover_progress, mailbox, created_at, updated_at)"
        f" SELECT 'i' || n, 'wf', 'tests', 'completed', 'h', '{{}}', 0, 1, 60, 0, 0, 'i' || n, now(), now()"
        f" FROM generate_series({first}, {last}) n"
    )


@contextmanager
def stopping_before_the_first_lock(database: Database, postgres_url: str) -> Iterator[Database]:
    """Who uses this one waits where it reads an instance, with its snapshot taken and nothing locked."""
    statements = (
        "CREATE FUNCTION stop() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('edda.stops', true) = 'on' THEN"
        f" PERFORM pg_advisory_xact_lock({TURN}); END IF; RETURN true; END $$",
        "ALTER TABLE edda_instances RENAME TO of_instances",
        "CREATE VIEW edda_instances AS SELECT * FROM of_instances WHERE stop()",
    )
    for statement in statements:
        run(database, lambda conn, statement=statement: conn.execute(text(statement)))
    url = make_url(postgres_url).set(drivername="postgresql+psycopg")
    stopping = Database(create_engine(url, connect_args={"options": "-c edda.stops=on"}), owns_engine=True)
    try:
        yield stopping
    finally:
        stopping.close()


def _insert_step(conn: Connection, instance_id: str) -> None:
    conn.execute(
        text(
            "INSERT INTO edda_history (instance_id, activity_id, seq, branch, position, event_type, event_data, format,"
            f" created_at) VALUES ('{instance_id}', 'act:1', 1, '', 1, 'ActivityCompleted', '{{}}', 1, now())"
        )
    )
