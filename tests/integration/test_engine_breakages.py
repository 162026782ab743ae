"""What once broke the engine when somebody tried to: each way again, and what happens instead."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, field_validator
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from edda_engine import (
    ConfigurationError,
    EddaApp,
    HooksBase,
    PayloadError,
    RetryPolicy,
    SyncWorkflowContext,
    UsageError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from edda_engine.core.status import Status
from tests.integration.engines import Gate, Tables, edda, interrupted_at, storage, until, write_note

PARKED = RetryPolicy(max_attempts=3, initial_interval=1.1, backoff_coefficient=1.0)
"""A wait just long enough to give the lease back."""
QUITS = RetryPolicy(max_attempts=3, initial_interval=0.05, non_retryable_error_types=(SystemExit,))


@activity
def single_step(ctx: WorkflowContext) -> int:
    return 1


LEFT_UNAWAITED: list[Any] = []


@pytest.fixture(autouse=True)
def close_what_was_left_unawaited() -> Iterator[None]:
    yield
    while LEFT_UNAWAITED:
        LEFT_UNAWAITED.pop().close()


@workflow
async def well_behaved(ctx: WorkflowContext) -> int:
    return await single_step(ctx)


async def blocked(app: EddaApp, instance_id: str) -> str:
    """Wait until the instance is blocked, and return what it is blocked for."""
    async with asyncio.timeout(20):
        while not (found := await app.get(instance_id)).is_blocked:
            assert found.status is not Status.COMPLETED, found
            await asyncio.sleep(0.02)
    return str(found.error_summary)


async def others_still_complete(app: EddaApp) -> bool:
    """Whether this very worker still runs another workflow."""
    return bool(await app.result(await app.start(well_behaved), timeout=15) == 1)


# Bodies that wait, end and loop.


def test_now_in_one_branch_while_another_waits_for_its_retry(database_url: str) -> None:
    @activity(retry_policy=PARKED)
    def flaky(ctx: WorkflowContext) -> int:
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return ctx.attempt

    async def timed(ctx: WorkflowContext) -> str:
        await single_step(ctx)
        return ctx.now().isoformat()

    @workflow
    async def flow(ctx: WorkflowContext) -> list[Any]:
        attempt, moment = await asyncio.gather(flaky(ctx), timed(ctx))
        return [attempt, len(moment) > 0, await single_step(ctx)]

    async def life() -> Any:
        async with edda(database_url) as app:
            return await app.result(await app.start(flow), timeout=15)

    assert asyncio.run(life()) == [2, True, 1]


@activity(retry_policy=QUITS)
def quits(ctx: WorkflowContext) -> int:
    sys.exit(3)


async def _leave() -> None:
    sys.exit(4)


@workflow
async def quits_in_a_gathered_helper(ctx: WorkflowContext) -> None:
    await asyncio.gather(_leave(), single_step(ctx))


@workflow
def quits_in_a_branch_of_a_plain_body(ctx: SyncWorkflowContext) -> None:
    ctx.gather(lambda: sys.exit(5), lambda: single_step(ctx))


@workflow
async def quits_in_a_gathered_activity(ctx: WorkflowContext) -> None:
    await asyncio.gather(quits(ctx), single_step(ctx))


@workflow
async def quits_in_an_awaited_activity(ctx: WorkflowContext) -> None:
    await quits(ctx)


@pytest.mark.parametrize(
    "quitting",
    [
        quits_in_a_gathered_helper,
        quits_in_a_branch_of_a_plain_body,
        quits_in_a_gathered_activity,
        quits_in_an_awaited_activity,
    ],
    ids=lambda quitting: quitting.name,
)
def test_a_system_exit_fails_its_workflow_and_no_other(database_url: str, quitting: Any) -> None:
    async def life() -> tuple[bool, Status]:
        async with edda(database_url) as app:
            instance_id = await app.start(quitting)
            with pytest.raises(WorkflowFailedError):
                await app.result(instance_id, timeout=15)
            return await others_still_complete(app), (await app.get(instance_id)).status

    assert asyncio.run(life()) == (True, Status.FAILED)


@pytest.mark.parametrize("is_parked", [True, False], ids=["retry_is_parked", "attempt_is_under_way"])
def test_a_call_that_was_given_up_in_time_stays_given_up_after_a_restart(database_url: str, is_parked: bool) -> None:
    charging, later = Gate(), Gate()
    runs: list[str] = []

    @activity(retry_policy=PARKED)
    async def charge(ctx: WorkflowContext) -> str:
        runs.append("charge")
        if is_parked:
            raise ValueError("down")
        await charging.hold_async()
        return "charged"

    @activity
    def fall_back(ctx: WorkflowContext) -> str:
        runs.append("fall_back")
        return "fell back"

    @activity
    async def finish(ctx: WorkflowContext) -> int:
        await later.hold_async()
        return 1

    @workflow
    async def flow(ctx: WorkflowContext) -> str:
        try:
            found = await asyncio.wait_for(charge(ctx), 0.4)
        except TimeoutError:
            found = await fall_back(ctx)
        await finish(ctx)
        return found

    async def lives() -> Any:
        first = edda(database_url)
        await first.initialize()
        instance_id = await first.start(flow)
        await later.is_reached()
        assert runs == ["charge", "fall_back"]
        charging.open()
        await interrupted_at(later, first)
        async with edda(database_url) as second:
            found = await second.result(instance_id, timeout=15)
            return found, [(step.activity_id, step.event_type) for step in await second.history(instance_id)]

    found, steps = asyncio.run(lives())
    assert found == "fell back"
    assert sorted(steps) == [
        ("charge:1", "ActivityCancelled"),
        ("fall_back:1", "ActivityCompleted"),
        ("finish:1", "ActivityCompleted"),
    ]
    assert runs == ["charge", "fall_back"]


async def run_with_other_arguments(url: str, arguments: list[str], others: list[str]) -> tuple[str, Any]:
    """Run a body that sends *arguments*, one call each; after a restart its code sends *others*."""
    gate = Gate()
    sending = list(arguments)

    @activity
    def send(ctx: WorkflowContext, to: str) -> str:
        return f"sent to {to}"

    @activity
    def finish(ctx: WorkflowContext) -> int:
        gate.hold()
        return 1

    @workflow
    async def flow(ctx: WorkflowContext) -> list[str]:
        sent = [await send(ctx, to) for to in sending]
        await finish(ctx)
        return sent

    first = edda(url)
    await first.initialize()
    instance_id = await first.start(flow)
    await gate.is_reached()
    sending[:] = others
    await interrupted_at(gate, first)
    async with edda(url) as second:
        if sorted(arguments) == sorted(others):
            return "blocked", await blocked(second, instance_id)
        return "completed", await second.result(instance_id, timeout=15)


def test_two_calls_that_changed_places_are_not_given_each_others_results(database_url: str) -> None:
    outcome, why = asyncio.run(run_with_other_arguments(database_url, ["ann", "bob"], ["bob", "ann"]))
    assert outcome == "blocked"
    assert "the calls have changed places" in why


def test_an_argument_that_merely_changed_is_answered_from_history(database_url: str) -> None:
    outcome, sent = asyncio.run(run_with_other_arguments(database_url, ["ann", "bob"], ["ann", "robert"]))
    assert (outcome, sent) == ("completed", ["sent to ann", "sent to bob"])


def test_a_body_that_catches_everything_around_a_mismatch_does_not_keep_the_loop(database_url: str) -> None:
    gate = Gate()
    is_edited = False
    turns = 0

    @activity
    def before(ctx: WorkflowContext) -> int:
        return 1

    @activity
    def finish(ctx: WorkflowContext) -> int:
        gate.hold()
        return 1

    @workflow
    async def stubborn(ctx: WorkflowContext) -> int:
        nonlocal turns
        while turns < 100_000:
            try:
                if is_edited:
                    turns += 1
                    return await single_step(ctx)
                await before(ctx)
                return await finish(ctx)
            except Exception:
                continue
        return 0

    async def lives() -> tuple[bool, str]:
        nonlocal is_edited
        first = edda(database_url)
        await first.initialize()
        instance_id = await first.start(stubborn)
        await gate.is_reached()
        is_edited = True
        await interrupted_at(gate, first)
        async with edda(database_url) as second:
            return await others_still_complete(second), await blocked(second, instance_id)

    completes, why = asyncio.run(lives())
    assert completes
    assert "before" in why
    assert turns < 1_000  # a few refusals, then it is left waiting


# What an activity may not do.


@activity(retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.05))
def commits_the_connection(ctx: Any) -> None:
    write_note(ctx, f"attempt {ctx.attempt}")
    ctx.session.connection().commit()


@activity(retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.05))
def says_commit(ctx: Any) -> None:
    write_note(ctx, f"attempt {ctx.attempt}")
    ctx.session.execute(text("COMMIT"))


@pytest.mark.parametrize("committing", [commits_the_connection, says_commit], ids=lambda given: given.name)
def test_an_activity_that_commits_its_transaction_is_refused_once(database_url: str, committing: Any) -> None:
    tables = Tables(database_url)
    tables.make_notes()

    @workflow
    async def flow(ctx: WorkflowContext) -> None:
        await committing(ctx)

    async def life() -> tuple[BaseException | None, list[dict[str, Any]]]:
        async with edda(database_url) as app:
            instance_id = await app.start(flow)
            with pytest.raises(WorkflowFailedError) as caught:
                await app.result(instance_id, timeout=15)
            return caught.value.__cause__, [step.event_data for step in await app.history(instance_id)]

    cause, steps = asyncio.run(life())
    assert isinstance(cause, UsageError)
    assert "committed with its history row" in str(cause)
    assert tables.notes() == []
    assert len(steps) == 1
    assert "retry_metadata" not in steps[0]


@pytest.mark.parametrize(
    "wrong", ["\ud800", "", "x" * 256, 5, "n\0ul"], ids=["surrogate", "empty", "long", "int", "nul"]
)
def test_an_activity_id_that_cannot_be_stored_is_refused_at_the_call(database_url: str, wrong: Any) -> None:
    @workflow
    async def flow(ctx: WorkflowContext) -> str:
        try:
            await single_step(ctx, activity_id=wrong)
        except UsageError as error:
            return str(error)
        return "taken"

    async def life() -> tuple[str, bool]:
        async with edda(database_url) as app:
            said = await app.result(await app.start(flow), timeout=15)
            return said, await others_still_complete(app)

    said, completes = asyncio.run(life())
    assert said.startswith("activity_id must be a text of 1 to 255 characters")
    assert completes


# The end of a workflow.


def test_a_gather_that_failed_fast_ends_the_same_after_the_lease_was_lost_before_the_end(database_url: str) -> None:
    tables = Tables(database_url)
    bad_one = Gate()
    ends: list[str] = []

    def lose_the_lease_once(point: str) -> None:
        if point == "end.before_commit":
            ends.append(point)
            if len(ends) == 1:
                tables.take_away("fails-fast")

    @activity
    def bad(ctx: WorkflowContext) -> int:
        bad_one.hold()
        return 0

    async def fails(ctx: WorkflowContext) -> None:
        await bad(ctx)
        raise ValueError("business says no")

    async def good(ctx: WorkflowContext) -> None:
        for _ in range(6):
            await asyncio.gather(single_step(ctx), single_step(ctx))
        await single_step(ctx)
        bad_one.open()

    @workflow
    async def flow(ctx: WorkflowContext) -> None:
        await asyncio.gather(fails(ctx), good(ctx))

    async def lives() -> Status:
        async with edda(database_url, probe=lose_the_lease_once):
            await flow.options(instance_id="fails-fast").start()
            await until(lambda: ends)
        tables.give_back("fails-fast")
        async with edda(database_url) as second:
            with pytest.raises(WorkflowFailedError, match="business says no"):
                await second.result("fails-fast", timeout=15)
            return (await second.get("fails-fast")).status

    assert asyncio.run(lives()) is Status.FAILED


def test_an_error_of_the_engine_itself_at_the_end_is_not_the_failure_of_the_workflow(database_url: str) -> None:
    errors: list[str] = []

    def break_once(point: str) -> None:
        if point == "end.before_commit" and not errors:
            errors.append(point)
            raise RuntimeError("an error of the engine")

    async def lives() -> Any:
        first = edda(database_url, probe=break_once)
        await first.initialize()
        instance_id = await first.start(well_behaved)
        await until(lambda: errors)
        await first.shutdown(timeout=0)
        async with edda(database_url) as second:
            return await second.result(instance_id, timeout=15)

    assert asyncio.run(lives()) == 1


class Checked(BaseModel):
    """A model whose validator breaks when the stored result is read back."""

    number: int

    @field_validator("number")
    @classmethod
    def look_up(cls, number: int) -> int:
        if number < 0:
            raise KeyError("no such number")
        return number


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "row_of_breakages"

    id: Mapped[int] = mapped_column(primary_key=True)


@workflow
async def returns_what_a_validator_breaks_on(ctx: WorkflowContext) -> Checked:
    return Checked.model_construct(number=-1)


@workflow
async def returns_a_coroutine(ctx: WorkflowContext) -> Any:
    LEFT_UNAWAITED.append(well_behaved.function(ctx))
    return LEFT_UNAWAITED[-1]


@workflow
async def returns_a_generator(ctx: WorkflowContext) -> Any:
    return (number for number in range(3))


@workflow
async def returns_an_orm_object(ctx: WorkflowContext) -> Any:
    return Row(id=1)


class Failures(HooksBase):
    """Remembers what failed workflows failed with."""

    def __init__(self) -> None:
        self.seen: list[BaseException] = []

    def on_workflow_failed(self, instance_id: str, workflow_name: str, error: BaseException) -> None:
        self.seen.append(error)


@pytest.mark.parametrize(
    ("returning", "says"),
    [
        (returns_what_a_validator_breaks_on, "no such number"),
        (returns_a_coroutine, "is a coroutine"),
        (returns_a_generator, "is a generator"),
        (returns_an_orm_object, "Row"),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_result_that_cannot_be_stored_fails_the_workflow_and_hooks_learn_why(
    database_url: str, returning: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = Failures()

    async def life() -> tuple[BaseException | None, Status]:
        async with edda(database_url, hooks=failures) as app:
            instance_id = await app.start(returning)
            with pytest.raises(WorkflowFailedError) as caught:
                await app.result(instance_id, timeout=15)
            return caught.value.__cause__, (await app.get(instance_id)).status

    cause, status = asyncio.run(life())
    assert (type(cause), status) == (PayloadError, Status.FAILED)
    assert says in str(cause)
    assert [type(error) for error in failures.seen] == [PayloadError]
    assert says in caplog.text


# Many at once, and others beside.


def test_parked_bodies_that_find_no_place_in_memory_complete_by_replay(database_url: str) -> None:
    @activity(retry_policy=PARKED)
    def flaky(ctx: WorkflowContext, number: int) -> int:
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return number

    @workflow
    async def flow(ctx: WorkflowContext, number: int) -> list[int]:
        return [await single_step(ctx), *await asyncio.gather(*(flaky(ctx, number + more) for more in range(3)))]

    @workflow
    def plain_flow(ctx: SyncWorkflowContext, number: int) -> list[int]:
        return [single_step(ctx), *ctx.gather(*(lambda more=more: flaky(ctx, number + more) for more in range(3)))]

    async def life() -> list[Any]:
        async with edda(database_url, max_parked=2) as app:
            ids = [await app.start(started, number) for number in (0, 10, 20, 30) for started in (flow, plain_flow)]
            return [await app.result(instance_id, timeout=20) for instance_id in ids]

    expected = [[1, number, number + 1, number + 2] for number in (0, 10, 20, 30) for _ in range(2)]
    assert asyncio.run(life()) == expected


def test_a_slow_transaction_that_cancels_stalls_no_other_workflow(postgres_url: str) -> None:
    from edda_engine.client import cancel_with

    gate = Gate()

    @activity
    def wait(ctx: WorkflowContext) -> int:
        gate.hold()
        return 1

    @workflow(lock_timeout_seconds=1.0)
    async def cancelled_in_vain(ctx: WorkflowContext) -> int:
        return await wait(ctx) + await single_step(ctx)

    async def life() -> tuple[bool, Any]:
        async with edda(postgres_url) as app:
            instance_id = await app.start(cancelled_in_vain)
            await gate.is_reached()
            with storage(postgres_url) as database, database.engine.connect() as slow_request:
                assert cancel_with(slow_request, instance_id, None) is True
                gate.open()  # its step is to be saved now, and its row is locked
                async with asyncio.timeout(5):
                    completes = await others_still_complete(app)
                slow_request.rollback()
            return completes, await app.result(instance_id, timeout=15)

    assert asyncio.run(life()) == (True, 2)


def test_without_listen_an_expired_lease_is_taken_up_by_another_worker(postgres_url: str) -> None:
    gate = Gate()
    runs: list[str] = []
    tables = Tables(postgres_url)

    @activity
    def wait(ctx: WorkflowContext) -> int:
        runs.append("wait")
        if len(runs) == 1:
            gate.hold()
        return len(runs)

    @workflow(lock_timeout_seconds=1.0)
    async def flow(ctx: WorkflowContext) -> int:
        return await wait(ctx)

    async def lives() -> Any:
        async with edda(postgres_url, listen=False) as first:
            instance_id = await first.start(flow)
            await gate.is_reached()
            tables.execute(
                "UPDATE edda_instances SET locked_by = 'gone', lock_epoch = lock_epoch + 1,"
                " wake_at = now() AT TIME ZONE 'UTC' + interval '1 second',"
                " lock_expires_at = now() AT TIME ZONE 'UTC' + interval '1 second' WHERE instance_id = :id",
                id=instance_id,
            )
            async with edda(postgres_url, listen=False) as second:
                found = await second.result(instance_id, timeout=15)
                gate.open()
                return found

    assert asyncio.run(lives()) == 2
    assert runs == ["wait", "wait"]


# Settings and calls that are wrong.


def test_a_worker_without_auto_migrate_says_what_to_do_and_works_after_the_upgrade(
    bare_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def life() -> bool:
        app = edda(bare_database_url, auto_migrate=False)
        starting = asyncio.create_task(app.initialize())
        await until(lambda: "No work is claimed until then" in caplog.text)
        with storage(bare_database_url):  # upgrades the tables
            pass
        await starting
        try:
            return await others_still_complete(app)
        finally:
            await app.shutdown()

    assert asyncio.run(life())
    assert "flask edda upgrade" in caplog.text
    assert [record.levelno for record in caplog.records if "need an upgrade" in record.message] == [logging.ERROR]


def test_a_setting_that_is_misspelt_is_one_line_that_names_the_right_one(sqlite_url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        edda(sqlite_url, thredds=3)
    assert "Did you mean threads?" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_start_takes_no_name(sqlite_url: str) -> None:
    async def life() -> None:
        async with edda(sqlite_url) as app:
            with pytest.raises(UsageError, match="start"):
                await app.start("well_behaved")  # type: ignore[arg-type]

    asyncio.run(life())


@pytest.mark.parametrize("call", ["cancel", "retry", "result"])
def test_requests_about_instances_are_refused_in_a_body(database_url: str, call: str) -> None:
    apps: list[EddaApp] = []

    @workflow
    async def flow(ctx: WorkflowContext) -> str:
        try:
            await getattr(apps[0], call)(ctx.instance_id)
        except UsageError as error:
            return str(error)
        return "done"

    async def life() -> Any:
        async with edda(database_url) as app:
            apps.append(app)
            return await app.result(await app.start(flow), timeout=15)

    assert asyncio.run(life()).startswith(f"{call}() was called in the body of workflow 'flow'")
