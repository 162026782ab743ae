"""The server crashes before a claim, for which nobody waits, is on its disk: it was never made, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from edda_engine import EddaApp, WorkflowContext, activity, wait_event, workflow
from edda_engine.storage import migrate
from edda_engine.storage.database import Database
from tests.chaos.postgres import CRASH, PrivatePostgres
from tests.integration.engines import INSERT_NOTE, Gate, Tables, edda, until

RUNS = 2
"""The one whose claim was lost, and the other one."""
A_WHILE_SECONDS = 0.3
BOTH_ORDERS = pytest.mark.parametrize("first_to_go_on", [0, 1], ids=["the lost run first", "the other run first"])


@pytest.fixture
def postgres() -> Iterator[PrivatePostgres]:
    with PrivatePostgres() as server:
        database = Database.from_url(server.url)
        migrate.upgrade(database)
        database.close()
        tables = Tables(server.url)
        tables.make_notes()
        # What nobody waits for stays in memory until somebody waits for something.
        with tables._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql("ALTER SYSTEM SET wal_writer_delay = '10s'")
        server.stop()
        server.start()
        yield server


class Story:
    """An instance that waits for an event and then writes a note, at a gate for each time that it does."""

    def __init__(self) -> None:
        self.gates = [Gate() for _ in range(RUNS)]
        self.runs: list[str] = []

        @activity
        def note(ctx: WorkflowContext, what: str) -> str:
            number = len(self.runs)
            self.runs.append(ctx.worker_id)
            if number < RUNS:  # afterwards it is run again because its connection is from before the crash
                self.gates[number].hold()
            ctx.session.execute(INSERT_NOTE, {"id": ctx.instance_id, "note": what})
            return what

        @workflow
        async def notes(ctx: WorkflowContext) -> str:
            event = await wait_event(ctx, "come.in")
            return str(await note(ctx, event.data["who"]))

        self.workflow: Any = notes

    async def crash_after_claim(self, app: EddaApp, postgres: PrivatePostgres, *, claims_on: bool = True) -> str:
        """The instance has its event, and its activity is running, when the server crashes and starts again.

        :param claims_on: The worker goes on to claim.
        """
        tables = Tables(postgres.url)
        instance_id: str = await app.start(self.workflow)
        await until(lambda: tables.status(instance_id) == "waiting_for_event")
        before = tables.instance(instance_id)["lock_epoch"]
        await app.send_event("come.in", "/tests", {"who": "ada"}, instance_id=instance_id)
        await self.gates[0].is_reached()
        assert tables.instance(instance_id)["lock_epoch"] == before + 1
        if not claims_on:
            assert app._engine is not None
            app._engine.stop_claiming()
            await until(lambda: app._engine is not None and not app._engine.is_claiming)
        await asyncio.to_thread(postgres.stop, CRASH)
        await asyncio.to_thread(postgres.start)
        return instance_id

    async def go_on(self, first: int) -> None:
        """Both runs are at the activity, because the claim was lost; one goes on after the other."""
        await self.gates[1].is_reached()
        self.gates[first].open()
        await asyncio.sleep(A_WHILE_SECONDS)
        self.gates[1 - first].open()

    def check(self, tables: Tables, instance_id: str) -> None:
        """All that is durable was done once."""
        assert tables.notes() == ["ada"]
        history = tables.rows(
            "SELECT activity_id, event_type FROM edda_history WHERE instance_id = :id ORDER BY seq", id=instance_id
        )
        assert [row["event_type"] for row in history] == ["EventReceived", "ActivityCompleted"]
        assert tables.value("SELECT count(*) FROM edda_messages") == 0
        assert tables.value("SELECT count(*) FROM edda_waits") == 0


@BOTH_ORDERS
def test_what_was_claimed_as_the_server_crashed_is_claimed_again_by_the_same_worker(
    postgres: PrivatePostgres, first_to_go_on: int
) -> None:
    story = Story()

    async def main() -> None:
        async with edda(postgres.url) as app:
            instance_id = await story.crash_after_claim(app, postgres)
            await story.go_on(first_to_go_on)
            assert await app.result(instance_id, timeout=20) == "ada"
            story.check(Tables(postgres.url), instance_id)

    asyncio.run(main())


@BOTH_ORDERS
def test_what_was_claimed_as_the_server_crashed_is_claimed_by_another_worker(
    postgres: PrivatePostgres, first_to_go_on: int
) -> None:
    story = Story()

    async def main() -> None:
        async with edda(postgres.url) as first:
            instance_id = await story.crash_after_claim(first, postgres, claims_on=False)
            async with edda(postgres.url) as second:
                await story.go_on(first_to_go_on)
                assert await second.result(instance_id, timeout=20) == "ada"
                story.check(Tables(postgres.url), instance_id)

    asyncio.run(main())
    assert len(set(story.runs)) == RUNS  # workers
