"""Claiming: by the database's clock, by the index, each instance by one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, event, inspect, make_url, text

from edda_engine.core.ports import NewInstance
from edda_engine.storage import claiming, instances
from edda_engine.storage.claiming import Lease
from edda_engine.storage.database import Database
from edda_engine.storage.schema import metadata
from edda_engine.storage.starts import insert_instance
from tests.integration.engines import Tables, run, storage


def insert(database: Database, *ids: str, **values: Any) -> None:
    def write(conn: Connection) -> None:
        for instance_id in ids:
            options = {"lock_timeout_seconds": 60.0} | values
            insert_instance(conn, NewInstance(instance_id, "wf", "tests", "{}", "hash", **options))

    run(database, write)


def claim(database: Database, worker_id: str = "worker", limit: int = 100) -> list[Lease]:
    return run(
        database,
        lambda conn: claiming.claim_due(conn, worker_id=worker_id, service="tests", names=["wf"], limit=limit),
    )


def test_a_claim_adds_one_to_the_epoch_and_sets_the_end_of_the_lease(database: Database) -> None:
    insert(database, "a", lock_timeout_seconds=90.0)
    (lease,) = claim(database)
    row: Any = run(database, lambda conn: instances.find(conn, "a"))
    assert (lease.epoch, row["lock_epoch"], row["locked_by"], row["status"]) == (1, 1, "worker", "running")
    assert row["wake_at"] == row["lock_expires_at"]
    assert (row["lock_expires_at"] - row["started_at"]).total_seconds() == pytest.approx(90, abs=0.01)
    assert claim(database, "other") == []


def test_an_expired_lease_is_due_again_with_the_next_epoch(database: Database, database_url: str) -> None:
    insert(database, "a")
    claim(database)
    Tables(database_url).execute("UPDATE edda_instances SET wake_at = '2001-01-01 00:00:00.000'")
    (lease,) = claim(database, "other")
    assert (lease.epoch, lease.has_history) == (2, True)


def test_a_limit_takes_the_highest_priority_then_the_longest_waiting(database: Database) -> None:
    early, late = datetime(2001, 1, 1, tzinfo=UTC), datetime(2002, 1, 1, tzinfo=UTC)
    insert(database, "late", start_at=late)
    insert(database, "early", start_at=early)
    insert(database, "important", start_at=late, priority=3)
    insert(database, "future", start_at=datetime(2099, 1, 1, tzinfo=UTC), priority=9)
    taken = [[lease.instance_id for lease in claim(database, limit=1)] for _ in range(4)]
    assert taken == [["important"], ["early"], ["late"], []]


def test_two_claimers_at_once_never_get_the_same_instance(database: Database) -> None:
    insert(database, *(f"i{number:03d}" for number in range(200)))
    start_together = threading.Barrier(4)

    def take_all(worker_id: str) -> list[str]:
        start_together.wait(10)
        mine: list[str] = []
        while leases := claim(database, worker_id, limit=7):
            mine += [lease.instance_id for lease in leases]
        return mine

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(take_all, ["w1", "w2", "w3", "w4"]))
    everything = [instance_id for mine in found for instance_id in mine]
    assert sorted(everything) == [f"i{number:03d}" for number in range(200)]


def test_a_locked_row_is_skipped_not_waited_for(postgres_url: str) -> None:
    with storage(postgres_url) as database:
        insert(database, "a", "b")
        with database.engine.connect() as conn, conn.begin():
            conn.execute(text("SELECT 1 FROM edda_instances WHERE instance_id = 'a' FOR UPDATE"))
            assert [lease.instance_id for lease in claim(database)] == ["b"]


def claim_new(database: Database, limit: int = 100) -> list[Lease]:
    about: dict[str, Any] = {"worker_id": "worker", "service": "tests", "names": ["wf"], "limit": limit}
    return claiming.claim_new(database.execute_alone, **about)


def test_of_what_is_new_only_what_nobody_has_worked_on_is_taken(postgres_url: str) -> None:
    early = datetime(2001, 1, 1, tzinfo=UTC)
    tables = Tables(postgres_url)
    with storage(postgres_url) as database:
        insert(database, "known", priority=9)
        claim(database)
        tables.execute("UPDATE edda_instances SET wake_at = '2001-01-01'")
        insert(database, "late", "locked")
        insert(database, "early", start_at=early)
        insert(database, "important", priority=3)
        insert(database, "future", start_at=datetime(2099, 1, 1, tzinfo=UTC), priority=9)
        insert(database, "other service")
        tables.execute("UPDATE edda_instances SET service = 'another' WHERE instance_id = 'other service'")
        insert(database, "other workflow")
        tables.execute("UPDATE edda_instances SET workflow_name = 'another' WHERE instance_id = 'other workflow'")
        with database.engine.connect() as conn, conn.begin():
            conn.execute(text("SELECT 1 FROM edda_instances WHERE instance_id = 'locked' FOR UPDATE"))
            taken = [[lease.instance_id for lease in claim_new(database, limit=1)] for _ in range(4)]
        assert taken == [["important"], ["early"], ["late"], []]
        (lease,) = claim_new(database)
        assert (lease.epoch, lease.has_history, lease.mailbox) == (1, False, "locked")
        mine = tables.rows("SELECT * FROM edda_instances WHERE instance_id IN ('early', 'locked') ORDER BY instance_id")
        assert all(row["locked_by"] == "worker" and row["wake_at"] == row["lock_expires_at"] for row in mine)
        assert [lease.instance_id for lease in claim(database)] == ["known"]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/St_Johns"])
def test_a_session_in_another_time_zone_changes_no_instant(postgres_url: str, zone: str) -> None:
    url = make_url(postgres_url).update_query_dict({"options": f"-c timezone={zone}"})
    with storage(url.render_as_string(False)) as database:
        assert run(database, lambda conn: conn.execute(text("SHOW timezone")).scalar()) == zone
        insert(database, "now")
        insert(database, "later", delay_seconds=3600.0)
        insert(database, "noon", start_at=datetime(2099, 1, 1, 12, tzinfo=timezone(timedelta(hours=2))))
        assert [lease.instance_id for lease in claim(database)] == ["now"]
        rows: dict[str, Any] = {
            each: run(database, lambda conn, each=each: instances.find(conn, each))  # type: ignore[misc]
            for each in ("now", "later", "noon")
        }
        assert abs((rows["now"]["created_at"] - datetime.now(UTC)).total_seconds()) < 60
        assert rows["later"]["wake_at"] - rows["later"]["created_at"] == timedelta(hours=1)
        assert rows["noon"]["wake_at"] == datetime(2099, 1, 1, 10, tzinfo=UTC)
        assert {rows["noon"][name].utcoffset() for name in ("wake_at", "created_at")} == {timedelta(0)}


def test_instants_are_aware_and_in_utc_to_the_millisecond(database: Database) -> None:
    moment = datetime(2099, 6, 1, 0, 30, 0, 123000, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    insert(database, "a", start_at=moment)
    row: Any = run(database, lambda conn: instances.find(conn, "a"))
    assert row["wake_at"] == moment
    assert row["wake_at"].tzinfo is UTC


def test_a_naive_instant_never_reaches_the_database(database: Database) -> None:
    with pytest.raises(Exception, match="has no time zone"):
        insert(database, "a", start_at=datetime(2099, 6, 1))


def test_a_claim_among_thousands_that_sleep_uses_the_index(database: Database) -> None:
    def many(conn: Connection) -> None:
        wake_at = "'2099-01-01 00:00:00.000'" if database.is_sqlite else "timestamptz '2099-01-01'"
        numbers = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) SELECT i FROM n"
            if database.is_sqlite
            else "SELECT i FROM generate_series(1, 5000) AS g(i)"
        )
        columns = "workflow_name, service, input, source_hash, lock_timeout_seconds, created_at, updated_at"
        conn.execute(
            text(
                f"INSERT INTO edda_instances (instance_id, status, wake_at, {columns})"
                f" SELECT 's' || i, CASE WHEN i % 2 = 0 THEN 'completed' ELSE 'waiting_for_timer' END,"
                f" CASE WHEN i % 2 = 0 THEN NULL ELSE {wake_at} END,"
                f" 'wf', 'tests', '{{}}', 'hash', 60, {wake_at}, {wake_at} FROM ({numbers}) AS numbers"
            )
        )

    run(database, many)
    insert(database, "due")
    run(database, lambda conn: conn.execute(text("ANALYZE")))
    seen: list[tuple[str, Any]] = []

    def remember(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("WITH due"):
            seen.append((statement, parameters))

    event.listen(database.service, "before_cursor_execute", remember)
    assert [lease.instance_id for lease in claim(database)] == ["due"]
    if not database.is_sqlite:
        insert(database, "new")
        assert [lease.instance_id for lease in claim_new(database)] == ["new"]
    assert len(seen) == (1 if database.is_sqlite else 2)
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    for statement, parameters in seen:
        with database.write() as conn:
            plan = [str(row) for row in conn.exec_driver_sql(explain + statement, parameters).fetchall()]
        assert any("ix_edda_instances_due" in line for line in plan), plan
        assert not any("Seq Scan on edda_instances" in line for line in plan), plan


def test_the_index_of_due_instances_leaves_out_the_finished(database: Database) -> None:
    query = (
        "SELECT sql FROM sqlite_master WHERE name = 'ix_edda_instances_due'"
        if database.is_sqlite
        else "SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_edda_instances_due'"
    )
    definition = run(database, lambda conn: str(conn.execute(text(query)).scalar()))
    assert "WHERE" in definition
    assert "wake_at IS NOT NULL" in definition


def test_every_table_of_the_migrations_has_the_columns_of_the_code(database: Database) -> None:
    def look(conn: Connection) -> dict[str, list[str]]:
        found = inspect(conn)
        return {name: sorted(column["name"] for column in found.get_columns(name)) for name in metadata.tables}

    assert run(database, look) == {
        name: sorted(column.name for column in table.columns) for name, table in metadata.tables.items()
    }
