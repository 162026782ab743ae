"""Leases: renewed, expired, lost; and nothing of a worker that outlived its own."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edda_engine import ConfigurationError, WorkflowContext, activity, workflow
from edda_engine.runtime.leases import Leases
from edda_engine.storage.units import Holder
from tests.integration.engines import Gate, Tables, edda, until, write_note, write_note_async


def _instant(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return datetime.fromisoformat(value).replace(tzinfo=UTC)


def test_an_activity_longer_than_the_lock_timeout_runs_once(database_url: str) -> None:
    gate = Gate()
    runs: list[str] = []

    @activity
    def long_one(ctx: WorkflowContext) -> str:
        runs.append(ctx.worker_id)
        gate.hold()
        return "done"

    @workflow(lock_timeout_seconds=0.8)
    async def patient(ctx: WorkflowContext) -> str:
        return await long_one(ctx)

    async def main() -> tuple[str, int]:
        tables = Tables(database_url)
        async with edda(database_url) as first, edda(database_url):
            instance_id = await first.start(patient)
            await gate.is_reached()
            begun = _instant(tables.instance(instance_id)["lock_expires_at"])
            await until(
                lambda: (_instant(tables.instance(instance_id)["lock_expires_at"]) - begun).total_seconds() > 1.7
            )
            epoch = tables.instance(instance_id)["lock_epoch"]
            gate.open()
            return await first.result(instance_id, timeout=20), epoch

    assert asyncio.run(main()) == ("done", 1)
    assert len(runs) == 1


def test_the_lock_timeout_of_the_start_wins_over_the_decorators_and_the_applications(database_url: str) -> None:
    @workflow(lock_timeout_seconds=20)
    async def decorated(ctx: WorkflowContext) -> None: ...

    @workflow
    async def bare(ctx: WorkflowContext) -> None: ...

    async def main() -> list[float]:
        async with edda(database_url, lock_timeout_seconds=10) as app:
            ids = [
                await decorated.start(lock_timeout_seconds=30),
                await decorated.options(lock_timeout_seconds=40).start(),
                await decorated.start(),
                await bare.start(),
            ]
            return [(await app.get(each)).lock_timeout_seconds for each in ids]

    assert asyncio.run(main()) == [30, 40, 20, 10]


def test_the_lock_timeout_is_five_minutes_when_nobody_says_otherwise(database_url: str) -> None:
    gate = Gate()

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def bare(ctx: WorkflowContext) -> None:
        await wait_here(ctx)

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await bare.start()
            await gate.is_reached()
            found = await app.get(instance_id)
            gate.open()
            assert found.locked_by == app.worker_id
            return found

    found = asyncio.run(main())
    assert found.lock_timeout_seconds == 300
    assert found.lock_expires_at == found.wake_at
    assert 290 < (found.lock_expires_at - found.started_at).total_seconds() < 310


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), "10", True])
def test_a_lock_timeout_that_is_no_duration_is_refused(database_url: str, seconds: Any) -> None:
    @workflow
    async def bare(ctx: WorkflowContext) -> None: ...

    async def main() -> None:
        async with edda(database_url):
            await bare.start(lock_timeout_seconds=seconds)

    with pytest.raises(ConfigurationError, match="must be a number of seconds above 0"):
        asyncio.run(main())


def test_an_expired_lease_is_claimed_by_another_worker(database_url: str) -> None:
    @activity
    def step(ctx: WorkflowContext) -> str:
        return ctx.worker_id

    @workflow(lock_timeout_seconds=1)
    async def orphan(ctx: WorkflowContext) -> str:
        return await step(ctx)

    async def main() -> tuple[str, str, Any]:
        tables = Tables(database_url)
        async with edda(database_url) as app:
            instance_id = await orphan.options(delay=3600).start()
            # As a worker that is gone for good leaves it: locked, with a lease that ends in the past.
            tables.execute(
                "UPDATE edda_instances SET status = 'running', locked_by = 'gone', lock_epoch = 7,"
                " lock_expires_at = '2001-01-01 00:00:00.000', wake_at = '2001-01-01 00:00:00.000'"
            )
            result = await app.result(instance_id, timeout=20)
            return result, app.worker_id, await app.get(instance_id)

    result, worker_id, found = asyncio.run(main())
    assert result == worker_id
    assert found.lock_epoch == 8


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_worker_that_outlived_its_lease_cannot_write(database_url: str, kind: str) -> None:
    tables = Tables(database_url)
    tables.make_notes()
    gate = Gate()
    runs: list[int] = []

    if kind == "sync":

        @activity
        def writes(ctx: WorkflowContext) -> int:
            runs.append(len(runs) + 1)
            mine = runs[-1]
            if mine == 1:
                gate.hold()
            write_note(ctx, f"run {mine}")
            return mine
    else:

        @activity
        async def writes(ctx: WorkflowContext) -> int:
            runs.append(len(runs) + 1)
            mine = runs[-1]
            if mine == 1:
                await gate.hold_async()
            await write_note_async(ctx, f"run {mine}")
            return mine

    @workflow
    async def outlives(ctx: WorkflowContext) -> int:
        return await writes(ctx)

    async def main() -> tuple[list[str], int]:
        async with edda(database_url) as app:
            instance_id = await app.start(outlives)
            await gate.is_reached()
            tables.take_away(instance_id)
            gate.open()
            await until(lambda: instance_id not in app._engine.executor.held)  # type: ignore[union-attr]
            after_refusal = tables.notes()
            tables.give_back(instance_id)
            return after_refusal, await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ([], 2)
    assert tables.notes() == ["run 2"]


def test_a_lost_lease_is_noticed_at_the_next_renewal(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow(lock_timeout_seconds=0.6)
    async def loses(ctx: WorkflowContext) -> None:
        await wait_here(ctx)

    async def main() -> str:
        tables = Tables(database_url)
        async with edda(database_url) as app:
            instance_id = await app.start(loses)
            await gate.is_reached()
            tables.take_away(instance_id)
            tables.execute("UPDATE edda_instances SET wake_at = NULL")
            await until(lambda: "Lost the lease of instance" in caplog.text)
            gate.open()
            return instance_id

    instance_id = asyncio.run(main())
    assert f"Lost the lease of instance {instance_id} to another worker" in caplog.text


def test_what_could_not_be_renewed_for_a_lock_is_renewed_soon_and_not_a_third_of_the_lease_later() -> None:
    answers: list[bool | None] = [None, None, False, False]
    asked_at: list[float] = []

    class Service:
        async def write(self, _name: str, _work: Any) -> dict[str, bool | None]:
            asked_at.append(asyncio.get_running_loop().time())
            return {"busy": answers[len(asked_at) - 1]}

    run = SimpleNamespace(
        holder=Holder("busy", "worker", 1), lease=SimpleNamespace(lock_timeout_seconds=3.0), is_ending=False
    )
    executor = SimpleNamespace(held={"busy": run})

    async def main() -> None:
        renewing = asyncio.create_task(
            Leases(worker_id="worker", service=cast(Any, Service())).work(cast(Any, executor))
        )
        await until(lambda: len(asked_at) == len(answers))
        renewing.cancel()

    asyncio.run(main())
    first, second, regular = (later - earlier for earlier, later in itertools.pairwise(asked_at))
    assert max(first, second) < regular


def test_two_workers_never_do_one_instance_both(database_url: str) -> None:
    tables = Tables(database_url)
    tables.make_notes()

    @activity
    def writes(ctx: WorkflowContext, number: int) -> str:
        write_note(ctx, f"{number:03d}")
        return ctx.worker_id

    @workflow
    async def shared(ctx: WorkflowContext, number: int) -> str:
        return await writes(ctx, number)

    async def main() -> None:
        async with edda(database_url, max_running=4) as first, edda(database_url, max_running=4) as second:
            ids = [await first.start(shared, number) for number in range(40)]
            for each in ids:
                await second.result(each, timeout=30)

    asyncio.run(main())
    assert tables.notes() == [f"{number:03d}" for number in range(40)]
    assert {row["lock_epoch"] for row in tables.rows("SELECT lock_epoch FROM edda_instances")} == {1}


def test_shutdown_lets_a_running_activity_finish_and_hands_the_lease_back(database_url: str) -> None:
    gate = Gate()
    runs: list[str] = []

    @activity
    def first_step(ctx: WorkflowContext) -> None:
        runs.append("first")
        gate.hold()

    @activity
    def second_step(ctx: WorkflowContext) -> None:
        runs.append("second")

    @workflow
    async def two_steps(ctx: WorkflowContext) -> None:
        await first_step(ctx)
        await second_step(ctx)

    async def main() -> dict[str, Any]:
        app = edda(database_url)
        await app.initialize()
        instance_id = await app.start(two_steps)
        await gate.is_reached()
        stopping = asyncio.create_task(app.shutdown(timeout=10))
        await until(lambda: app._engine is None)
        gate.open()
        await stopping
        tables = Tables(database_url)
        assert [row["activity_id"] for row in tables.rows("SELECT activity_id FROM edda_history")] == ["first_step:1"]
        assert tables.rows("SELECT * FROM edda_workers") == []
        return tables.instance(instance_id)

    row = asyncio.run(main())
    assert runs == ["first"]
    assert (row["locked_by"], row["lock_expires_at"]) == (None, None)
    assert row["wake_at"] is not None
