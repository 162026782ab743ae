"""However many wait and however much was sent, a look for work asks the indexes: read from the databases' own plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select, text

from edda_engine.channels import channel_message
from edda_engine.core.events import EventType, StepKey
from edda_engine.core.ports import NewInstance, WaitKind, WaitRequest
from edda_engine.core.status import Status
from edda_engine.events import event_message
from edda_engine.storage import claiming, delivery, history, retries, waits
from edda_engine.storage.at_once import write_at_once
from edda_engine.storage.claim_at_once import Claimed, claim_at_once
from edda_engine.storage.database import Database
from edda_engine.storage.keys import among
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.retention import prune_messages
from edda_engine.storage.schema import inbox
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.units import End, Holder, Start, Step, Take, Unit
from edda_engine.storage.waits import Ask
from tests.integration.engines import run, storage

MANY = 8_000
"""Enough for both planners to know that reading everything is the worst way."""
_LIMIT = 1_000_000

_NUMBERS = {
    "sqlite": f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {MANY})",
    "postgresql": f"WITH numbers(n) AS (SELECT generate_series(1, {MANY}))",
}
_FILLED = (
    """INSERT INTO edda_instances (instance_id, workflow_name, service, status, input, source_hash, wake_at,
        lock_timeout_seconds, created_at, updated_at)
    {numbers} SELECT 'i' || n, 'wf', 'tests', 'waiting_for_event', '{{}}', 'hash',
        CASE WHEN n % 2 = 0 THEN '2099-01-01 00:00:00.000' END {timestamp}, 60, {now}, {now} FROM numbers""",
    """INSERT INTO edda_waits (instance_id, activity_id, mailbox, kind, name, is_competing, expires_at, created_at)
    {numbers} SELECT 'i' || n, 'wait_event:1', 'i' || n, CASE WHEN n % 2 = 0 THEN 'event' ELSE 'message' END,
        'name' || (n % 1000), {false}, NULL, {now} FROM numbers""",
    """INSERT INTO edda_messages (message_id, kind, name, data, metadata, is_new, published_at)
    {numbers} SELECT 'm' || n, 'event', 'name' || (n % 1000), '{{}}', '{{}}', {false}, {now} FROM numbers""",
    """INSERT INTO edda_inbox (receiver, kind, name, seq, is_queued, is_new)
    {numbers} SELECT 'i' || (n % 5000), 'event', 'name' || (n % 1000), n, {false}, {false} FROM numbers""",
    """INSERT INTO edda_subscriptions (mailbox, channel, mode, created_at)
    {numbers} SELECT 'i' || n, 'name' || (n % 1000), 'broadcast', {now} FROM numbers""",
    """INSERT INTO edda_history (instance_id, activity_id, seq, branch, position, event_type, event_data, format, created_at)
    {numbers} SELECT 'i' || n, 'sleep:1', 1, '', 1, 'TimerFired', '{{}}', 1, {now} FROM numbers""",
    """INSERT INTO edda_retries (instance_id, activity_id, attempts, first_attempt_at, next_attempt_at, errors)
    {numbers} SELECT 'i' || n, 'a:1', 1, {now}, {now}, '[]' FROM numbers""",
    """INSERT INTO edda_channels (channel, mode, created_at)
    {numbers} SELECT 'name' || n, 'broadcast', {now} FROM numbers""",
)


@pytest.fixture
def crowded(database_url: str) -> Iterator[Database]:
    """A database in which very many wait, and as many messages lie unread."""
    with storage(database_url) as database:
        words = {
            "numbers": _NUMBERS[database.dialect],
            "now": "'2024-01-01 00:00:00.000'" if database.is_sqlite else "now()",
            "false": "0" if database.is_sqlite else "false",
            "timestamp": "" if database.is_sqlite else "::timestamptz",
        }

        def fill(conn: Connection) -> None:
            for statement in _FILLED:
                conn.execute(text(statement.format(**words)))

        run(database, fill)
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql("ANALYZE")
        yield database


def plans(database: Database, work: Callable[[Connection], Any]) -> list[str]:
    """How the database goes about each statement of *work*, one line a step."""
    seen: list[tuple[str, Any]] = []

    def remember(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        is_lock = statement.startswith("SELECT pg_")
        if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "WITH", "INSERT")) and not is_lock:
            seen.append((statement, parameters))

    event.listen(database.service, "before_cursor_execute", remember)
    run(database, work)
    event.remove(database.service, "before_cursor_execute", remember)
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "

    def look(conn: Connection) -> list[str]:
        found = []
        for statement, parameters in seen:
            first = parameters[0] if isinstance(parameters, list) else parameters
            rows = conn.exec_driver_sql(explain + statement, first).fetchall()
            found += [str(row[-1]) if database.is_sqlite else str(row[0]) for row in rows]
        return found

    return run(database, look)


def reads_everything(line: str) -> bool:
    """Whether a step of a plan looks at each row of one of the large tables; workers are few."""
    if "edda_workers" in line:
        return False
    is_sqlite_scan = line.startswith("SCAN edda_") and "USING" not in line
    return "Seq Scan on edda_" in line or is_sqlite_scan or (line.startswith("SCAN edda_") and "autoindex" in line)


def due(conn: Connection) -> None:
    insert_instance(conn, NewInstance("due", "wf", "tests", "{}", "hash", lock_timeout_seconds=60))


def test_a_claim_among_very_many_that_wait_reads_the_index_of_what_is_due(crowded: Database) -> None:
    run(crowded, due)
    claimed: list[str] = []

    def claim(conn: Connection) -> None:
        found = claiming.claim_due(conn, worker_id="w", service="tests", names=["wf"], limit=64)
        claimed.extend(lease.instance_id for lease in found)

    found = plans(crowded, claim)
    assert claimed == ["due"]
    assert any("ix_edda_instances_due" in line for line in found), found
    assert not any(map(reads_everything, found)), found


def test_a_look_whether_something_is_new_reads_the_indexes_of_what_is_new(crowded: Database) -> None:
    found = plans(crowded, delivery.take_turn)
    assert any("ix_edda_messages_new" in line for line in found), found
    assert any("ix_edda_inbox_new" in line for line in found), found
    assert not any(map(reads_everything, found)), found


def test_a_delivery_reads_no_table_as_a_whole(crowded: Database) -> None:
    sent = [
        event_message("name2", "test", 1, max_payload_bytes=_LIMIT),
        event_message("name4", "test", 1, instance_id="i2", max_payload_bytes=_LIMIT),
        channel_message("name1", 1, None, max_payload_bytes=_LIMIT),
        channel_message("nobody knows it", 1, None, max_payload_bytes=_LIMIT),
    ]
    for message in sent:
        run(crowded, lambda conn, message=message: insert_messages(conn, [message]))
        found = plans(crowded, delivery.deliver)
        assert found
        assert [line for line in found if reads_everything(line)] == [], message.name


def test_asking_for_waits_reads_no_table_as_a_whole(crowded: Database) -> None:
    for kind in WaitKind:
        request = WaitRequest(kind, "" if kind is WaitKind.TIMER else "name2", seconds=5.0)
        asks = [Ask("i2", "another", "i2", request), Ask("i4", "wait_event:1", "i4", request)]
        found = plans(crowded, lambda conn, asks=asks: waits.settle(conn, asks))
        assert found
        assert [line for line in found if reads_everything(line)] == [], kind


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has no such statement
def test_a_batch_of_plain_units_reads_no_table_as_a_whole(crowded: Database) -> None:
    holders = [Holder(f"i{number}", "w", 0) for number in (2, 4, 6)]
    request = WaitRequest(WaitKind.TIMER, "", seconds=0.0)
    units: list[Unit] = [
        Step(holders[0], StepKey("act:1", "", 1), 1, EventType.ACTIVITY_COMPLETED, "{}"),
        Take(holders[1], StepKey("sleep:1", "", 1), 1, "sleep", "i4", request, is_asked_again=True),
        End(holders[2], Status.COMPLETED, "1", had_waits=True, had_retries=True),
        Start(NewInstance("new", "wf", "tests", "{}", "hash", lock_timeout_seconds=60)),
    ]
    found = plans(crowded, lambda _: write_at_once(crowded.execute_alone, units))
    assert any("edda_waits" in line for line in found)
    assert [line for line in found if reads_everything(line)] == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has no such statement
@pytest.mark.parametrize("is_known_to_the_planner", [True, False])
def test_a_claim_in_one_statement_reads_no_table_as_a_whole(crowded: Database, is_known_to_the_planner: bool) -> None:
    """Also when all wait for events of one name, and nobody has analyzed the tables since they were empty."""

    def be_of_one_name(conn: Connection) -> None:
        conn.execute(text("UPDATE edda_waits SET kind = 'event', name = 'name2'"))
        if not is_known_to_the_planner:
            conn.execute(text("DELETE FROM pg_statistic WHERE starelid::regclass::text LIKE 'edda\\_%'"))

    run(crowded, be_of_one_name)
    for number in range(2, 12):
        message = event_message("name2", "test", number, instance_id=f"i{number}", max_payload_bytes=1000)
        run(crowded, lambda conn, message=message: insert_messages(conn, [message]))
    run(crowded, due)
    claimed: list[Claimed] = []

    def claim(_: Connection) -> None:
        about = {"worker_id": "w", "service": "tests"}
        claimed.append(claim_at_once(crowded.execute_alone, names=["wf"], limit=64, **about))

    found = plans(crowded, claim)

    assert len(claimed[0].leases) == 11
    assert not claimed[0].has_mail
    assert [line for line in found if reads_everything(line)] == []
    assert [line for line in found if "ix_edda_waits_name" in line] == []


def test_looking_for_mail_of_held_instances_reads_no_table_as_a_whole(crowded: Database) -> None:
    found = plans(crowded, lambda conn: waits.with_mail(conn, ["i2", "i4"]))
    assert not any(map(reads_everything, found)), found


def test_pruning_looks_for_the_reader_of_each_message_by_an_index(crowded: Database) -> None:
    found = plans(crowded, lambda conn: prune_messages(conn, retention_seconds=86_400.0))
    looks = [line for line in found if "edda_instances" in line]
    assert any("ix_edda_instances_mailbox" in line for line in looks), found
    assert [line for line in looks if reads_everything(line)] == []


def test_several_steps_are_found_by_their_keys(crowded: Database) -> None:
    looks: list[Callable[[Connection], Any]] = [
        lambda conn: history.load_steps(conn, [("i2", "sleep:1"), ("i4", "sleep:1"), ("i6", "another")]),
        lambda conn: retries.forget(conn, [("i2", "a:1"), ("i4", "a:1")]),
        lambda conn: waits.forget(conn, [("i2", "wait_event:1"), ("i3", "wait_event:1")]),
    ]
    for look in looks:
        found = plans(crowded, look)
        assert found
        assert [line for line in found if reads_everything(line)] == []


def test_keys_of_several_columns_find_their_rows_and_no_others(database_url: str) -> None:
    keys = [("a", 1), ("b", 2), ('it\'s "quoted" é\u2028', 3)]
    with storage(database_url) as database:

        def look(conn: Connection) -> list[tuple[str, int]]:
            for receiver, seq in [*keys, ("a", 2), ("b", 1)]:
                row = {
                    "receiver": receiver,
                    "kind": "event",
                    "name": "n",
                    "seq": seq,
                    "is_queued": False,
                    "is_new": False,
                }
                conn.execute(insert(inbox), row)
            columns = (inbox.c.receiver, inbox.c.seq)
            found = conn.execute(select(*columns).where(among(conn, columns, keys)).order_by(inbox.c.seq))
            return [(row[0], row[1]) for row in found]

        assert run(database, look) == keys
        assert (
            run(database, lambda conn: conn.execute(select(inbox).where(among(conn, (inbox.c.kind,), []))).all()) == []
        )
