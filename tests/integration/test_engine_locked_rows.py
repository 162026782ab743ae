"""A request has an instance's row locked for as long as it likes: nobody of the engine waits for it.

Only on PostgreSQL: SQLite has no row locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, text

from edda_engine import WorkflowContext, activity, wait_event, workflow
from edda_engine.client import cancel_with
from edda_engine.core.ports import NewInstance, OutboxEvent
from edda_engine.runtime.recovery import take_over
from edda_engine.storage import claiming, instances, outbox, workers
from edda_engine.storage.database import Database
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.workers import WorkerRecord
from tests.integration.engines import Gate, Tables, edda, run, storage, until
from tests.integration.talks import asleep

PATIENCE = 30.0
gates: list[Gate] = []
events: list[asyncio.Event] = []


@activity
async def holds_on(ctx: WorkflowContext) -> None:
    await gates[-1].hold_async()


@workflow(name="works_beside_locked_rows")
async def works(ctx: WorkflowContext) -> str:
    await holds_on(ctx)
    return "done"


@workflow
async def quick(ctx: WorkflowContext) -> str:
    return "quick"


@workflow
async def goes_on_by_itself(ctx: WorkflowContext) -> str:
    """Waits for an event, which lets it be parked, and for something that no database knows of."""

    async def other() -> None:
        await events[-1].wait()
        await holds_on(ctx)

    await asyncio.gather(other(), wait_event(ctx, "news"))
    return "done"


@contextmanager
def request_that_cancels(database: Database, instance_id: str) -> Iterator[None]:
    """A transaction of an application, open for a while, which is rolled back."""
    with database.engine.connect() as conn, conn.begin() as transaction:
        assert cancel_with(conn, instance_id, "too slow")
        yield
        transaction.rollback()


def test_a_worker_stops_while_a_request_has_a_running_instance_locked(postgres_url: str) -> None:
    gates.append(Gate())

    async def main(database: Database) -> Any:
        app = edda(postgres_url, lock_timeout_seconds=2)
        await app.initialize()
        instance_id = await app.start(works)
        await gates[-1].is_reached()
        with request_that_cancels(database, instance_id):
            async with asyncio.timeout(PATIENCE):
                await app.shutdown(timeout=0)
        gates[-1].open()
        async with edda(postgres_url) as other:
            return await other.result(instance_id, timeout=PATIENCE)

    with storage(postgres_url) as database:
        assert asyncio.run(main(database)) == "done"


def test_a_worker_claims_while_a_body_that_goes_on_by_itself_cannot_be_taken_back(postgres_url: str) -> None:
    gates.append(Gate())
    gates[-1].open()

    async def main(database: Database) -> tuple[Any, Any]:
        events.append(asyncio.Event())
        async with edda(postgres_url) as app:
            instance_id = await app.start(goes_on_by_itself)
            await asleep(Tables(postgres_url), instance_id)
            with request_that_cancels(database, instance_id):
                events[-1].set()
                meanwhile = [await app.result(await app.start(quick), timeout=PATIENCE) for _ in range(3)]
            await until(lambda: gates[-1].reached.is_set())
            await app.send_event("news", "test", 1, instance_id=instance_id)
            return meanwhile, await app.result(instance_id, timeout=PATIENCE)

    with storage(postgres_url) as database:
        assert asyncio.run(main(database)) == (["quick"] * 3, "done")


# One by one.


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """Two instances that a worker holds."""
    with storage(postgres_url) as found:

        def fill(conn: Connection) -> None:
            for instance_id in ("locked", "free"):
                insert_instance(conn, NewInstance(instance_id, "flow", "tests", "{}", "hash", 300.0))
            claimed = claiming.claim_due(conn, worker_id="dead", service="tests", names=["flow"], limit=9)
            assert len(claimed) == 2

        run(found, fill)
        yield found


def impatiently(database: Database, work: Callable[[Connection], Any]) -> Any:
    """One transaction that fails instead of waiting for a lock."""

    def with_limit(conn: Connection) -> Any:
        conn.execute(text("SET LOCAL lock_timeout = '2s'"))
        return work(conn)

    return run(database, with_limit)


def holders(database: Database) -> dict[str, str | None]:
    query = text("SELECT instance_id, locked_by FROM edda_instances")
    return run(database, lambda conn: {row[0]: row[1] for row in conn.execute(query)})


RELEASES: dict[str, Callable[[Connection], bool]] = {
    "of some": lambda conn: instances.release(conn, worker_id="dead", instance_ids=["locked", "free"]),
    "of strays": lambda conn: instances.release_strays(conn, worker_id="dead", held=["another"]),
    "of a worker": lambda conn: (
        instances.release_worker(conn, "dead") in (["free"], ["locked"]) and not instances.is_holding(conn, "dead")
    ),
}


@pytest.mark.parametrize("which", RELEASES)
def test_a_release_passes_over_what_is_locked_and_says_so(database: Database, which: str) -> None:
    with request_that_cancels(database, "locked"):
        assert impatiently(database, RELEASES[which]) is False
        assert holders(database) == {"locked": "dead", "free": None}
    assert impatiently(database, RELEASES[which]) is True
    assert holders(database) == {"locked": None, "free": None}


def test_who_cannot_be_made_due_because_it_is_locked_is_told_from_who_need_not_be(database: Database) -> None:
    run(database, RELEASES["of some"])
    run(database, lambda conn: conn.execute(text("UPDATE edda_instances SET wake_at = NULL")))

    def make_due(conn: Connection, epoch: int = 2) -> bool:
        return instances.make_due(conn, instance_id="locked", epoch=epoch)

    with request_that_cancels(database, "locked"):
        assert impatiently(database, make_due) is False
        assert run(database, lambda conn: make_due(conn, epoch=1)) is True
    assert impatiently(database, make_due) is True
    due = text("SELECT instance_id FROM edda_instances WHERE wake_at IS NOT NULL")
    assert run(database, lambda conn: conn.execute(due).scalars().all()) == ["locked"]


def test_a_dead_worker_is_forgotten_when_the_last_of_what_it_held_is_taken_over(database: Database) -> None:
    run(database, lambda conn: workers.register(conn, WorkerRecord("dead", "tests", "host", 1, "", None)))
    event = OutboxEvent("e1", "type", "source", "application/json", data_json="1")
    run(database, lambda conn: outbox.insert_events(conn, [(None, None, event)]))
    run(database, lambda conn: outbox.claim_due(conn, relay_id="dead", limit=9, lock_seconds=60))
    entries = text("SELECT count(*) FROM edda_workers")

    def look() -> tuple[Any, int]:
        released = impatiently(database, lambda conn: take_over(conn, "dead"))
        return released, run(database, lambda conn: conn.execute(entries).scalar_one())

    with request_that_cancels(database, "locked"), database.engine.connect() as conn, conn.begin():
        conn.execute(text("SELECT 1 FROM edda_outbox FOR UPDATE"))
        assert look() == (["free"], 1)
        assert look() == (None, 1)
    with database.engine.connect() as conn, conn.begin():
        conn.execute(text("SELECT 1 FROM edda_outbox FOR UPDATE"))
        assert look() == (["locked"], 1)
    assert look() == ([], 0)
    assert look() == (None, 0)
