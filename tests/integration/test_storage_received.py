"""What is remembered of events that were received, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, func, select, text

from edda_engine.storage import migrate
from edda_engine.storage.database import Database
from edda_engine.storage.received import forget_expired, is_first_delivery, key
from edda_engine.storage.schema import received_events


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database.from_url(database_url)
    migrate.upgrade(found)
    yield found
    found.close()


def remember(
    conn: Connection, number: int, *, source: str = "/till", service: str = "shop", seconds: float = 60.0
) -> bool:
    return is_first_delivery(conn, service=service, source=source, event_id=f"{number:05}", keep_seconds=seconds)


def count(database: Database) -> int:
    with database.read() as conn:
        return conn.execute(select(func.count()).select_from(received_events)).scalar_one()


def test_an_event_is_new_once(database: Database) -> None:
    with database.write() as conn:
        assert [remember(conn, 1), remember(conn, 1), remember(conn, 1, source="/web"), remember(conn, 2)] == [
            True, False, True, True
        ]  # fmt: skip
        assert [remember(conn, 1, service="billing"), remember(conn, 1, service="billing")] == [True, False]
    with database.write() as conn:
        assert remember(conn, 1) is False


def test_what_was_rolled_back_is_new_again(database: Database) -> None:
    with database.write() as conn:
        savepoint = conn.begin_nested()
        assert remember(conn, 1) is True
        savepoint.rollback()
    with database.write() as conn:
        assert remember(conn, 1) is True


def test_an_event_whose_time_is_over_is_new_again_for_as_long_as_any(database: Database) -> None:
    with database.write() as conn:
        assert remember(conn, 1, seconds=-1) is True
        assert remember(conn, 1, seconds=60) is True
        assert remember(conn, 1, seconds=60) is False


def test_expired_rows_are_deleted_in_bounded_batches(database: Database) -> None:
    with database.write() as conn:
        for number in range(25):
            remember(conn, number, seconds=-1)
        remember(conn, 99)
    with database.write() as conn:
        deleted = [forget_expired(conn, at_most=10) for _ in range(4)]
    assert deleted == [10, 10, 5, 0]
    assert count(database) == 1


def test_deleting_passes_over_rows_that_another_transaction_has_locked(postgres_url: str) -> None:
    database = Database.from_url(postgres_url)
    migrate.upgrade(database)
    with database.write() as conn:
        for number in range(3):
            remember(conn, number, seconds=-1)
    with database.write() as first:
        assert remember(first, 1) is True
        with database.write() as second:
            second.execute(text("SET LOCAL lock_timeout = '1s'"))
            assert forget_expired(second) == 2
    assert count(database) == 1
    database.close()


def test_expired_rows_are_found_by_an_index(database: Database) -> None:
    with database.write() as conn:
        statement = "SELECT source FROM edda_received_events WHERE expires_at <= '2026-01-01 00:00:00' ORDER BY expires_at LIMIT 9"
        if database.is_sqlite:
            plan = str(conn.execute(text(f"EXPLAIN QUERY PLAN {statement}")).all())
        else:
            conn.execute(text("SET LOCAL enable_seqscan = off"))
            plan = str(conn.execute(text(f"EXPLAIN {statement}")).all())
    assert "ix_edda_received_events_expires_at" in plan


def test_what_does_not_fit_its_column_is_known_by_its_digest() -> None:
    short, long = "s" * 255, "s" * 256
    assert key(short, "1") == (short, "1")
    (source, event_id) = key(long, long + "x")
    assert (len(source), len(event_id)) == (71, 71)
    assert source != event_id
    assert key(long, long + "x") == (source, event_id)
