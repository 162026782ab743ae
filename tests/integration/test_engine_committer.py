"""Group commit, and what must not disturb it: a row the database refuses, a hook that raises."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edda_engine import (
    PayloadError,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    sleep,
    workflow,
)
from tests.integration.engines import Tables, edda, until, write_note

HOOKS = (
    "on_workflow_start",
    "on_workflow_complete",
    "on_workflow_failed",
    "on_workflow_cancelled",
    "on_activity_start",
    "on_activity_complete",
    "on_activity_retry",
    "on_activity_failed",
)


class RecordingHooks:
    """Writes down what it is told, and then raises if asked to."""

    def __init__(self, *, raises: bool) -> None:
        self.told: list[tuple[str, tuple[Any, ...]]] = []
        self._raises = raises

    def __getattr__(self, name: str) -> Any:
        if name not in HOOKS:
            raise AttributeError(name)

        def hook(instance_id: str, *details: Any) -> None:
            self.told.append((name, details))
            if self._raises:
                raise RuntimeError(f"{name} is broken")

        return hook


def refuse_results_with(tables: Tables, word: str) -> None:
    """Make the database refuse completed steps that contain *word*."""
    if tables.is_sqlite:
        tables.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON edda_history WHEN NEW.event_type = 'ActivityCompleted'"
            f" AND NEW.event_data LIKE '%{word}%' BEGIN SELECT RAISE(ABORT, 'this row is refused'); END"
        )
        return
    tables.execute(
        "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN IF NEW.event_type = 'ActivityCompleted'"
        f" AND NEW.event_data::text LIKE '%{word}%' THEN RAISE EXCEPTION 'this row is refused'; END IF;"
        " RETURN NEW; END $$ LANGUAGE plpgsql"
    )
    tables.execute("CREATE TRIGGER refuse BEFORE INSERT ON edda_history FOR EACH ROW EXECUTE FUNCTION refuse()")


def test_steps_of_many_workflows_share_few_transactions(database_url: str) -> None:
    @activity
    async def step(ctx: WorkflowContext, number: int) -> int:
        return number + 1

    @workflow
    async def five_steps(ctx: WorkflowContext) -> int:
        number = 0
        for _ in range(5):
            number = await step(ctx, number)
        return number

    async def main() -> tuple[list[int], int, int]:
        async with edda(database_url) as app:
            assert app._engine is not None
            committer = app._engine.committer
            ids = [await app.start(five_steps) for _ in range(60)]
            results = [await app.result(each, timeout=30) for each in ids]
            return results, committer.transactions, committer.units

    results, transactions, units = asyncio.run(main())
    assert results == [5] * 60
    assert units == 60 * 7  # starts and ends as well
    assert transactions < units / 2


def test_a_row_that_the_database_refuses_does_no_harm_to_the_others_in_its_batch(database_url: str) -> None:
    """All steps are ready at the same moment, so they are written together, the bad one among them."""
    runs: list[int] = []

    @activity
    async def step(ctx: WorkflowContext, number: int) -> str:
        runs.append(number)
        await everybody.wait()
        return "poisonous" if number == 7 else f"good {number}"

    @workflow
    async def one_step(ctx: WorkflowContext, number: int) -> str:
        return await step(ctx, number)

    everybody = asyncio.Event()

    async def main() -> list[Any]:
        tables = Tables(database_url)
        async with edda(database_url) as app:
            refuse_results_with(tables, "poisonous")
            ids = [await app.start(one_step, number) for number in range(15)]
            await until(lambda: len(runs) == 15)
            everybody.set()
            return await asyncio.gather(*(app.result(each, timeout=20) for each in ids), return_exceptions=True)

    results = asyncio.run(main())
    failure = results.pop(7)
    assert results == [f"good {number}" for number in range(15) if number != 7]
    assert isinstance(failure, WorkflowFailedError)
    assert isinstance(failure.__cause__, PayloadError)
    assert "was refused by the database: this row is refused" in str(failure)
    assert sorted(runs) == list(range(15))


def test_the_failure_of_a_refused_row_does_not_hold_what_was_refused(database_url: str) -> None:
    """Else the record of the failure would be refused in its turn."""

    @activity
    def step(ctx: WorkflowContext) -> str:
        return "poisonous"

    @workflow
    async def one_step(ctx: WorkflowContext) -> str:
        return await step(ctx)

    async def main() -> Any:
        async with edda(database_url) as app:
            refuse_results_with(Tables(database_url), "poisonous")
            instance_id = await app.start(one_step)
            with pytest.raises(WorkflowFailedError):
                await app.result(instance_id, timeout=20)
            return await app.history(instance_id)

    (event,) = asyncio.run(main())
    assert event.event_type == "ActivityFailed"
    assert "poisonous" not in str(event.event_data)


def test_a_row_that_the_database_refuses_is_terminal_for_a_step_with_a_session_too(database_url: str) -> None:
    tables = Tables(database_url)
    tables.make_notes()
    runs: list[int] = []

    @activity(retry_policy=RetryPolicy(max_attempts=3, initial_interval=0))
    def step(ctx: WorkflowContext) -> str:
        runs.append(ctx.attempt)
        write_note(ctx, "never")
        return "poisonous"

    @workflow
    async def one_step(ctx: WorkflowContext) -> str:
        return await step(ctx)

    async def main() -> None:
        async with edda(database_url) as app:
            refuse_results_with(tables, "poisonous")
            await app.result(await app.start(one_step), timeout=20)

    with pytest.raises(WorkflowFailedError):
        asyncio.run(main())
    assert tables.notes() == []
    assert runs == [1]


@pytest.mark.parametrize("raises", [False, True], ids=["quiet", "raising"])
def test_hooks_are_told_what_happened_and_change_nothing_when_they_raise(
    database_url: str, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[str] = []
    hooks = RecordingHooks(raises=raises)

    @activity(retry_policy=RetryPolicy(max_attempts=2, initial_interval=0))
    def flaky(ctx: WorkflowContext) -> str:
        runs.append(f"flaky {ctx.attempt}")
        if ctx.attempt == 1:
            raise ConnectionError("once")
        return "fine"

    @activity
    def refuse(ctx: WorkflowContext) -> None:
        runs.append("refuse")
        raise TerminalError("no")

    @workflow
    async def mixed(ctx: WorkflowContext) -> str:
        try:
            await refuse(ctx)
        except TerminalError:
            return await flaky(ctx)
        return "not reached"

    async def main() -> str:
        async with edda(database_url, hooks=hooks) as app:
            instance_id = await app.start(mixed)
            result: str = await app.result(instance_id, timeout=20)
            await until(lambda: hooks.told[-1][0] == "on_workflow_complete")
            return result

    assert asyncio.run(main()) == "fine"
    assert runs == ["refuse", "flaky 1", "flaky 2"]
    assert [(name, *details[:2]) for name, details in hooks.told] == [
        ("on_workflow_start", "mixed"),
        ("on_activity_start", "refuse:1", "refuse"),
        ("on_activity_failed", "refuse:1", "refuse"),
        ("on_activity_start", "flaky:1", "flaky"),
        ("on_activity_retry", "flaky:1", "flaky"),
        ("on_activity_start", "flaky:1", "flaky"),
        ("on_activity_complete", "flaky:1", "flaky"),
        ("on_workflow_complete", "mixed"),
    ]
    assert ("nothing is changed by that" in caplog.text) is raises


def test_a_database_that_takes_steps_but_not_by_one_statement_is_wondered_at_once(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    @activity
    def count(ctx: WorkflowContext, number: int) -> int:
        return number

    @workflow
    async def counts(ctx: WorkflowContext) -> int:
        return await count(ctx, 1) + await count(ctx, 2)

    async def main() -> list[int]:
        async with edda(postgres_url) as app:
            # PostgreSQL does not let a WITH change what has such a rule.
            rule = "CREATE RULE also AS ON DELETE TO edda_retries DO ALSO DELETE FROM edda_waits WHERE false"
            Tables(postgres_url).execute(rule)
            return [await app.result(await app.start(counts), timeout=20) for _ in range(3)]

    assert asyncio.run(main()) == [3, 3, 3]
    assert [record.message for record in caplog.records if "one statement" in record.message] == [
        "The database refuses to write a batch of steps by one statement, and takes it by several, which is slower:"
        " (psycopg.errors.FeatureNotSupported) DO ALSO rules are not supported for data-modifying statements in WITH"
    ]


def test_a_database_that_does_not_let_one_statement_claim_is_asked_by_several(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    @workflow
    async def sleeps(ctx: WorkflowContext, number: int) -> int:
        await sleep(ctx, 1.2)
        return number

    async def main() -> list[int]:
        async with edda(postgres_url, poll_interval_seconds=60) as app:
            # PostgreSQL does not let a WITH change what has such a rule.
            rule = "CREATE RULE also AS ON UPDATE TO edda_messages DO ALSO DELETE FROM edda_waits WHERE false"
            Tables(postgres_url).execute(rule)
            started = [await app.start(sleeps, number) for number in range(3)]
            return [await app.result(instance_id, timeout=20) for instance_id in started]

    assert asyncio.run(main()) == [0, 1, 2]
    told = [record.message for record in caplog.records if "one statement" in record.message]
    assert len(told) == 1
    assert told[0].startswith(
        "The database refuses to claim instances by one statement, and is asked by several from now on"
    )


def test_the_committer_keeps_no_connection_while_it_has_nothing_to_write(postgres_url: str) -> None:
    @workflow
    async def quick(ctx: WorkflowContext) -> None: ...

    async def main() -> None:
        async with edda(postgres_url) as app:
            assert app._engine is not None
            committer = app._engine.committer
            await app.result(await app.start(quick), timeout=20)
            await until(lambda: committer.transactions > 0 and committer._kept._pooled is None)

    asyncio.run(main())


def test_a_worker_whose_committer_has_ended_says_so(database_url: str) -> None:
    async def main() -> None:
        async with edda(database_url) as app:
            assert app._engine is not None
            assert await app._engine.problems() == []
            await app._engine.committer.stop()
            assert await app._engine.problems() == ["Its committer has ended: no step is saved any more."]

    asyncio.run(main())
