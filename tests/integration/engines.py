"""What the tests of the engine share: applications that look often, gates, and a plain look at the database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from edda_engine import EddaApp, RetryPolicy
from edda_engine.storage import migrate
from edda_engine.storage.database import Database
from tests.support import eventually

T = TypeVar("T")

SERVICE = "tests"
SOON = RetryPolicy(max_attempts=3, initial_interval=0.02, backoff_coefficient=1.0)
"""Three attempts without a wait worth the name."""
LATER = RetryPolicy(max_attempts=5, initial_interval=1.5, backoff_coefficient=1.0)
"""A wait that is long enough to give the lease back, and short enough for a test."""
NEVER_AGAIN = RetryPolicy(max_attempts=1)
MUCH_LATER = RetryPolicy(max_attempts=3, initial_interval=3600.0, max_interval=3600.0, max_duration=None)


def edda(url: str, **options: Any) -> EddaApp:
    """An application that asks for work often."""
    return EddaApp(service_name=SERVICE, db_url=url, **({"poll_interval_seconds": 0.1} | options))


async def until(look: Callable[[], T], *, timeout: float = 20.0) -> T:
    """``eventually`` for coroutines: the loop goes on meanwhile."""
    return await asyncio.to_thread(eventually, look, timeout=timeout)


class Gate:
    """Where an activity waits until the test lets it go on; once open it stays open."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def hold(self) -> None:
        """Called by a sync activity."""
        self.reached.set()
        assert self._open.wait(30), "the test never opened the gate"

    async def hold_async(self) -> None:
        """Called by an async activity."""
        self.reached.set()
        assert await asyncio.to_thread(self._open.wait, 30), "the test never opened the gate"

    async def is_reached(self) -> None:
        """Called by the test: wait until the activity is there."""
        assert await asyncio.to_thread(self.reached.wait, 30), "nobody came to the gate"

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._open.set()


async def interrupted_at(gate: Gate, app: EddaApp) -> None:
    """Stop *app* while an activity is at *gate*: its step is not recorded and another worker has to do it."""
    await gate.is_reached()
    await app.shutdown(timeout=0)
    gate.open()


class Tables:
    """A plain look at a database, past the engine."""

    def __init__(self, url: str) -> None:
        made = make_url(url)
        if made.drivername == "postgresql":
            made = made.set(drivername="postgresql+psycopg")
        self.is_sqlite = made.get_backend_name() == "sqlite"
        self._engine = create_engine(made, poolclass=NullPool)

    def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """What a query answers."""
        with self._engine.connect() as conn:
            return [dict(row) for row in conn.execute(text(sql), values).mappings()]

    def value(self, sql: str, **values: Any) -> Any:
        """The first column of the first row."""
        (row,) = self.rows(sql, **values)
        return next(iter(row.values()))

    def execute(self, sql: str, **values: Any) -> int:
        """Change something, and commit."""
        with self._engine.begin() as conn:
            return conn.execute(text(sql), values).rowcount

    def instance(self, instance_id: str) -> dict[str, Any]:
        """One row of ``edda_instances``."""
        (row,) = self.rows("SELECT * FROM edda_instances WHERE instance_id = :id", id=instance_id)
        return row

    def status(self, instance_id: str) -> str:
        """How an instance stands."""
        return str(self.instance(instance_id)["status"])

    def make_notes(self) -> None:
        """A table for activities to write to. Nothing in it is unique: what is written twice shows."""
        self.execute("CREATE TABLE notes (instance_id VARCHAR(255), note VARCHAR(255))")

    def notes(self) -> list[str]:
        """What activities wrote durably."""
        return sorted(row["note"] for row in self.rows("SELECT note FROM notes"))

    def take_away(self, instance_id: str) -> None:
        """What another worker's claim of an expired lease does, with nobody going on: the lease is gone."""
        changed = self.execute(
            "UPDATE edda_instances SET locked_by = 'thief', lock_epoch = lock_epoch + 1 WHERE instance_id = :id",
            id=instance_id,
        )
        assert changed == 1

    def give_back(self, instance_id: str) -> None:
        """After :meth:`take_away`: due for anybody at once."""
        self.execute(
            "UPDATE edda_instances SET locked_by = NULL, lock_expires_at = NULL, wake_at = '2001-01-01 00:00:00.000'"
            " WHERE instance_id = :id",
            id=instance_id,
        )


INSERT_NOTE = text("INSERT INTO notes (instance_id, note) VALUES (:id, :note)")


def write_note(ctx: Any, note: str) -> None:
    """Inside a sync activity: write through its session."""
    ctx.session.execute(INSERT_NOTE, {"id": ctx.instance_id, "note": note})


async def write_note_async(ctx: Any, note: str) -> None:
    """Inside an async activity: write through its session."""
    await ctx.session.execute(INSERT_NOTE, {"id": ctx.instance_id, "note": note})


@contextmanager
def storage(url: str) -> Iterator[Database]:
    """A database with its tables, for tests of the storage layer."""
    database = Database.from_url(url)
    try:
        migrate.upgrade(database)
        yield database
    finally:
        database.close()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan that PostgreSQL has explained as JSON, and all below it."""
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


def run(database: Database, work: Callable[[Connection], T]) -> T:
    """One transaction."""
    with database.write() as conn:
        return work(conn)
