"""How many connections a busy process has: the application's pool, and three; and that each of them may be ended."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from edda_engine.storage.database import MOST_CONNECTIONS, Database
from edda_wsgi import RetryPolicy, SyncWorkflowContext, WorkflowContext, activity, send_event_transactional, workflow
from tests.integration.flask_apps import Note, open_shop, saved_notes
from tests.receivers import receiving
from tests.support import eventually

POOL: dict[str, Any] = {
    "pool_size": 2,
    "max_overflow": 0,
    "pool_pre_ping": True,
    "connect_args": {"application_name": "shop"},
}
ORDERS = 24


class Connections:
    """Counts a database's connections again and again, by their application's name, and remembers the most at once."""

    def __init__(self, url: str) -> None:
        self._url, self._stopping = url, threading.Event()
        self.most: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._count)

    def _count(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as conn:
            while not self._stopping.wait(0.001):
                rows = conn.execute(
                    "SELECT application_name, count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid() GROUP BY 1"
                )
                self.most |= Counter({name: number for name, number in rows if name.startswith("shop")})

    @contextmanager
    def counted(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()


def end_each(url: str, *, times: int) -> Counter[str]:
    """End every connection of the shop by itself, so often; returns whose."""
    ended: Counter[str] = Counter()
    query = "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE 'shop%' ORDER BY pid"
    with psycopg.connect(url, autocommit=True) as conn:
        for _ in range(times):
            for pid, name in conn.execute(query).fetchall():
                conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
                ended[name] += 1
    return ended


def completed(url: str) -> int:
    with psycopg.connect(url) as conn:
        (found,) = conn.execute("SELECT count(*) FROM edda_instances WHERE status = 'completed'").fetchone() or (0,)
        return int(found)


def declare_orders(shop: Any) -> Any:
    """Orders that use every kind of connection: sessions, steps without one, events, messages, and a late attempt."""

    @activity
    def write(ctx: WorkflowContext, number: int) -> None:
        send_event_transactional(ctx, "order.written", "shop", {"order": number}, ordering_key=str(number))
        shop.db.session.add(Note(text=f"order {number}"))

    @activity
    def count(ctx: WorkflowContext, number: int) -> int:
        return number + 1

    @activity(timeout_seconds=0.2, retry_policy=RetryPolicy(max_attempts=50, initial_interval=0.01))
    def be_late_once(ctx: WorkflowContext, number: int) -> None:
        shop.db.session.execute(Note.__table__.select())
        if ctx.attempt == 1:
            late.wait(1.0)

    @workflow
    def order(ctx: SyncWorkflowContext, number: int) -> int:
        write(ctx, number)
        if number % 8 == 0:
            be_late_once(ctx, number)
        return sum(ctx.gather(*[lambda: count(ctx, number)] * 3))

    late = threading.Event()
    return order


def start_one(shop: Any, order: Any, number: int) -> str:
    instance_id: str = order.start(number)
    shop.db.session.commit()
    shop.app.extensions["edda"]._notifier.notify("another service")  # as for a message to an instance of that
    return instance_id


def test_a_busy_worker_has_three_connections_beyond_the_pool_and_survives_the_end_of_each(postgres_url: str) -> None:
    connections = Connections(postgres_url)
    with (
        receiving() as broker,
        open_shop(
            postgres_url,
            config={"SQLALCHEMY_ENGINE_OPTIONS": POOL},
            outbox={"URL": broker.url},
            max_running=4,
            poll_interval_seconds=0.2,
        ) as shop,
    ):
        order = declare_orders(shop)
        shop.edda.start_worker()
        with shop.app.app_context():
            with connections.counted():
                ids = [start_one(shop, order, number) for number in range(ORDERS)]
                eventually(lambda: completed(postgres_url) >= ORDERS // 2, timeout=60)
            shop.db.session.remove()
            ended = end_each(postgres_url, times=3)
            eventually(lambda: completed(postgres_url) == ORDERS, timeout=60)
            assert [shop.edda.result(each) for each in ids] == [3 * (number + 1) for number in range(ORDERS)]
        eventually(lambda: len(set(broker.taken_ids)) == ORDERS)

    assert connections.most["shop"] >= 1
    assert 2 <= connections.most["shop edda"] <= MOST_CONNECTIONS
    assert ended["shop edda"] >= 2
    assert sorted(saved_notes(postgres_url)) == sorted(f"order {number}" for number in range(ORDERS))


@pytest.mark.parametrize("pool_size", [0, 1, 4, 24])  # 0 is SQLAlchemy's word for "without end"
def test_the_engine_has_room_for_three_and_no_more_whatever_the_pool_of_the_application(
    sqlite_url: str, pool_size: int
) -> None:
    engine = create_engine(sqlite_url, pool_size=pool_size, max_overflow=0, pool_timeout=0.01)
    database = Database(engine)
    for _ in range(2):  # also after one was lost
        held = [database.service.connect() for _ in range(MOST_CONNECTIONS)]
        with pytest.raises(PoolTimeoutError):
            database.service.connect()
        held[0].invalidate()
        for conn in held:
            conn.close()
    database.close()
    engine.dispose()


def test_a_connection_that_is_in_use_when_the_engines_own_are_closed_is_closed_after_its_use(database_url: str) -> None:
    database = Database.from_url(database_url)
    with database.service.connect() as conn:
        raw: Any = conn.connection.dbapi_connection
        database.close_service()
        assert conn.exec_driver_sql("SELECT 1").scalar() == 1
    with pytest.raises((psycopg.OperationalError, sqlite3.ProgrammingError), match="closed"):
        raw.execute("SELECT 1")
