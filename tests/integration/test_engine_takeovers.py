"""An instance whose workers die, again and again, is blocked before it has taken all of them down."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from edda_engine import EddaApp, ResultTimeoutError, WorkflowContext, activity, workflow
from edda_engine.client import Client
from edda_engine.settings import EngineSettings
from edda_engine.storage import instances
from edda_engine.storage.database import Database
from tests.integration.engines import Gate, edda, until


class Outside:
    """Looks at instances, and takes them from workers, as siblings do."""

    def __init__(self, url: str) -> None:
        self.database = Database.from_url(url)
        self.client = Client(self.database, EngineSettings())

    async def take_from(self, app: EddaApp, instance_id: str) -> None:
        """What siblings do when a worker has died; this one only looks dead, and drops its run."""

        def take_over() -> list[str]:
            with self.database.write() as conn:
                return instances.release_worker(conn, app.worker_id)

        # Again if the worker was just writing: what is locked for a moment is left to the next look.
        taken = await until(lambda: self.client.get(instance_id).locked_by is not None and take_over())
        assert taken == [instance_id]


@pytest.fixture
def outside(database_url: str) -> Iterator[Outside]:
    found = Outside(database_url)
    yield found
    found.database.close()


def test_an_instance_that_workers_die_of_is_blocked_and_taken_up_again_on_demand(
    database_url: str, outside: Outside
) -> None:
    gate = Gate()

    @activity
    async def ends_its_process(ctx: WorkflowContext) -> str:
        await gate.hold_async()
        return "mended"

    @workflow
    async def poisonous(ctx: WorkflowContext) -> str:
        return await ends_its_process(ctx)

    async def main() -> None:
        async with edda(database_url, max_takeovers=2) as app:
            instance_id = await app.start(poisonous)
            for _ in range(3):
                await outside.take_from(app, instance_id)
            await until(lambda: outside.client.get(instance_id).is_blocked)
            found = await app.get(instance_id)
            assert found.error_summary is not None
            assert "3 workers died in a row" in found.error_summary
            assert "before its first step was recorded" in found.error_summary
            with pytest.raises(ResultTimeoutError, match="blocked"):
                await app.result(instance_id, timeout=0)

            gate.open()
            assert await app.retry(instance_id)
            assert await app.result(instance_id, timeout=20) == "mended"

    asyncio.run(main())


def test_takeovers_count_from_one_again_once_something_is_recorded(database_url: str, outside: Outside) -> None:
    gates = [Gate() for _ in range(3)]

    @activity
    async def step(ctx: WorkflowContext, number: int) -> None:
        await gates[number].hold_async()

    @workflow
    async def makes_progress(ctx: WorkflowContext) -> str:
        for number in range(3):
            await step(ctx, number)
        return "done"

    async def main() -> str:
        async with edda(database_url, max_takeovers=2) as app:
            instance_id = await app.start(makes_progress)
            for number in range(3):
                for _ in range(2):
                    await outside.take_from(app, instance_id)
                gates[number].open()
                await until(lambda number=number: len(outside.client.history(instance_id)) > number)  # type: ignore[misc]
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "done"
