"""One look at what is due now and next: what it sees, and that it reads no table for it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, event

from edda_engine.core.ports import NewInstance
from edda_engine.storage import claiming
from edda_engine.storage.database import Database
from edda_engine.storage.outlook import Next, Outlook, look
from edda_engine.storage.starts import insert_instance
from tests.integration.engines import Tables, run

PAST, FUTURE = "2001-01-01 00:00:00.000", "2099-01-01 00:00:00.000"


def insert(
    database: Database, instance_id: str, *, delay: float = 0.0, name: str = "wf", service: str = "tests"
) -> None:
    new = NewInstance(instance_id, name, service, "{}", "hash", lock_timeout_seconds=60.0, delay_seconds=delay)

    def write(conn: Connection) -> None:
        insert_instance(conn, new)

    run(database, write)


def seen(database: Database, *names: str) -> Outlook:
    with database.autocommitting() as conn:
        return look(conn, service="tests", names=names or ["wf"])


def test_an_empty_database_has_nothing_to_do(database: Database) -> None:
    found = seen(database)
    assert found == Outlook(has_due=False, has_messages=False, next=None)
    assert not found.has_work


def test_what_is_due_is_seen_by_those_who_know_its_workflow(database: Database) -> None:
    insert(database, "a", name="known")
    assert seen(database, "known", "other").has_due
    assert not seen(database, "other").has_due


def test_what_is_due_for_another_service_is_not_seen(database: Database) -> None:
    insert(database, "a", service="others")
    insert(database, "b", service="others", delay=60)
    assert seen(database) == Outlook(has_due=False, has_messages=False, next=None)


def test_the_next_instance_is_told_with_its_seconds_by_the_databases_clock(database: Database) -> None:
    insert(database, "later", delay=90)
    insert(database, "next", delay=30, name="of whatever workflow")
    insert(database, "now")
    found = seen(database).next
    assert found is not None
    assert (found.instance_id, found.is_waiting) == ("next", False)
    assert 20 < found.seconds <= 30.01


@pytest.mark.parametrize("status", ["waiting_for_timer", "waiting_for_event", "waiting_for_message"])
def test_an_instance_that_waits_may_have_its_body_somewhere(database: Database, tables: Tables, status: str) -> None:
    insert(database, "a", delay=60)
    tables.execute("UPDATE edda_instances SET status = :status", status=status)
    found = seen(database).next
    assert isinstance(found, Next)
    assert found.is_waiting


def test_the_end_of_a_lease_is_what_is_due_next(database: Database) -> None:
    insert(database, "a")
    run(
        database,
        lambda conn: claiming.claim_due(conn, worker_id="worker", service="tests", names=["wf"], limit=1),
    )
    found = seen(database)
    assert not found.has_due
    assert found.next is not None
    assert 50 < found.next.seconds <= 60.01


def test_a_message_that_is_not_delivered_is_work_for_every_service(database: Database, tables: Tables) -> None:
    tables.execute(
        "INSERT INTO edda_messages (message_id, kind, name, data, metadata, is_new, published_at)"
        f" VALUES ('m', 'event', 'paid', '1', '{{}}', :is_new, '{PAST}')",
        is_new=True,
    )
    assert seen(database) == Outlook(has_due=False, has_messages=True, next=None)
    tables.execute("UPDATE edda_messages SET is_new = :is_new", is_new=False)
    assert not seen(database).has_work


def test_a_delivered_message_whose_receiver_is_still_to_be_woken_is_work(database: Database, tables: Tables) -> None:
    tables.execute(
        "INSERT INTO edda_inbox (receiver, kind, name, seq, is_queued, is_new) VALUES ('a', 'event', 'paid', 1, :no, :yes)",
        no=False,
        yes=True,
    )
    assert seen(database).has_messages


def test_a_look_among_many_reads_no_table_from_end_to_end(database: Database, tables: Tables) -> None:
    many = "WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 20000)"
    tables.execute(
        "INSERT INTO edda_instances (instance_id, workflow_name, service, status, input, source_hash, wake_at,"
        " lock_timeout_seconds, created_at, updated_at, priority, lock_epoch)"
        f" {many} SELECT 'i' || n, 'wf', 'tests', 'pending', '{{}}', 'h', '{PAST}', 60, '{PAST}', '{PAST}', 0, 0 FROM many"
    )
    tables.execute(
        "INSERT INTO edda_messages (message_id, kind, name, data, metadata, is_new, published_at)"
        f" {many} SELECT 'm' || n, 'event', 'paid', '1', '{{}}', :is_new, '{PAST}' FROM many",
        is_new=True,
    )
    if not tables.is_sqlite:
        # All were due when the statistics were made, which tempts the planner to read the table for "is any due".
        tables.execute("ANALYZE")
    tables.execute(f"UPDATE edda_instances SET wake_at = '{FUTURE}'")
    tables.execute("UPDATE edda_messages SET is_new = :is_new", is_new=False)
    plan = _plan(database)
    assert "ix_edda_instances_due" in plan
    assert "ix_edda_messages_new" in plan
    scans = "SCAN edda_instances\n" if database.is_sqlite else "Seq Scan on edda_instances"
    assert scans not in plan
    assert scans.replace("instances", "messages") not in plan


def _plan(database: Database) -> str:
    statements: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    with database.engine.connect() as conn:
        event.listen(conn, "before_cursor_execute", note)
        look(conn, service="tests", names=["wf"])
        ((statement, parameters),) = list(statements)
        return "".join(f"{row[-1]}\n" for row in conn.exec_driver_sql(explain + statement, parameters))
