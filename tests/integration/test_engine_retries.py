"""Retries: how often, how soon, what is kept of them, and what the workflow sees at the end."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest

from edda_engine import (
    ActivityTimeoutError,
    RetryExhaustedError,
    RetryPolicy,
    SyncWorkflowContext,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from edda_engine.core.status import Status
from tests.integration.engines import LATER, MUCH_LATER, NEVER_AGAIN, SOON, Tables, edda, until, write_note


async def run_and_look(url: str, started: Any, **options: Any) -> tuple[Any, list[Any]]:
    """The result (or the failure) of one run, and its history."""
    async with edda(url, **options) as app:
        instance_id = await app.start(started)
        try:
            result = await app.result(instance_id, timeout=20)
        except WorkflowFailedError as failure:
            result = failure
        return result, await app.history(instance_id)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_failing_activity_is_tried_again_until_it_succeeds(database_url: str, kind: str) -> None:
    attempts: list[int] = []

    def once_more(attempt: int) -> str:
        attempts.append(attempt)
        if attempt < 3:
            raise ConnectionError(f"try {attempt}")
        return "done"

    if kind == "sync":

        @activity(retry_policy=SOON)
        def flaky(ctx: WorkflowContext) -> str:
            return once_more(ctx.attempt)
    else:

        @activity(retry_policy=SOON)
        async def flaky(ctx: WorkflowContext) -> str:
            return once_more(ctx.attempt)

    @workflow
    async def persists(ctx: WorkflowContext) -> str:
        return await flaky(ctx)

    result, _ = asyncio.run(run_and_look(database_url, persists))
    assert result == "done"
    assert attempts == [1, 2, 3]


def test_retry_metadata_of_a_success_tells_every_failed_attempt(database_url: str) -> None:
    @activity(retry_policy=SOON)
    def flaky(ctx: WorkflowContext) -> str:
        if ctx.attempt < 3:
            raise ConnectionError(f"try {ctx.attempt}")
        return "done"

    @workflow
    def persists(ctx: SyncWorkflowContext) -> str:
        return flaky(ctx)

    _, (event,) = asyncio.run(run_and_look(database_url, persists))
    metadata = event.event_data["retry_metadata"]
    assert set(event.event_data) == {"activity_name", "input", "result", "retry_metadata"}
    assert set(metadata) == {"total_attempts", "total_duration_ms", "exhausted", "last_error", "errors"}
    assert metadata["total_attempts"] == 3
    assert metadata["exhausted"] is False
    assert metadata["last_error"] == {"error_type": "ConnectionError", "message": "try 2"}
    assert [(e["attempt"], e["error_type"], e["message"]) for e in metadata["errors"]] == [
        (1, "ConnectionError", "try 1"),
        (2, "ConnectionError", "try 2"),
    ]
    assert 40 <= metadata["total_duration_ms"] < 20_000


def test_an_activity_that_succeeds_at_once_has_no_retry_metadata(database_url: str) -> None:
    @activity
    def steady(ctx: WorkflowContext) -> str:
        return "done"

    @workflow
    async def calls(ctx: WorkflowContext) -> str:
        return await steady(ctx)

    _, (event,) = asyncio.run(run_and_look(database_url, calls))
    assert event.event_data == {"activity_name": "steady", "input": {}, "result": "done"}


def test_the_last_attempt_raises_retry_exhausted_with_everything_that_went_wrong(database_url: str) -> None:
    caught: list[RetryExhaustedError] = []

    @activity(retry_policy=SOON)
    def hopeless(ctx: WorkflowContext) -> None:
        raise ConnectionError(f"try {ctx.attempt}")

    @workflow
    async def gives_up(ctx: WorkflowContext) -> None:
        try:
            await hopeless(ctx)
        except RetryExhaustedError as error:
            caught.append(error)
            raise

    failure, (event,) = asyncio.run(run_and_look(database_url, gives_up))
    (error,) = caught
    assert error.activity_name == "hopeless"
    assert error.attempts == 3
    assert error.errors == ["ConnectionError: try 1", "ConnectionError: try 2", "ConnectionError: try 3"]
    assert 0.04 <= error.duration_seconds < 20
    assert repr(error.__cause__) == "ConnectionError('try 3')"
    assert isinstance(failure.__cause__, RetryExhaustedError)
    assert repr(failure.__cause__.__cause__) == "ConnectionError('try 3')"
    assert failure.__cause__.errors == error.errors
    assert event.event_type == "ActivityFailed"
    assert event.event_data["retry_metadata"]["exhausted"] is True
    assert event.event_data["retry_metadata"]["total_attempts"] == 3
    assert event.event_data["retry_metadata"]["last_error"] == {"error_type": "ConnectionError", "message": "try 3"}


def test_a_terminal_error_is_tried_once_and_reaches_the_workflow_as_it_is(database_url: str) -> None:
    attempts: list[int] = []

    @activity(retry_policy=SOON)
    def refuse(ctx: WorkflowContext) -> None:
        attempts.append(ctx.attempt)
        raise TerminalError("card is stolen")

    @workflow
    async def stops(ctx: WorkflowContext) -> str:
        try:
            await refuse(ctx)
        except TerminalError as error:
            return str(error)
        return "no error"

    result, (event,) = asyncio.run(run_and_look(database_url, stops))
    assert result == "card is stolen"
    assert attempts == [1]
    assert "retry_metadata" not in event.event_data


def test_a_terminal_error_after_retries_keeps_their_story(database_url: str) -> None:
    @activity(retry_policy=SOON)
    def worsens(ctx: WorkflowContext) -> None:
        raise TerminalError("dead") if ctx.attempt == 2 else ConnectionError("ill")

    @workflow
    async def stops(ctx: WorkflowContext) -> str:
        try:
            await worsens(ctx)
        except TerminalError:
            return "terminal"
        return "no error"

    result, (event,) = asyncio.run(run_and_look(database_url, stops))
    assert result == "terminal"
    metadata = event.event_data["retry_metadata"]
    assert (metadata["total_attempts"], metadata["exhausted"]) == (2, False)
    assert [error["error_type"] for error in metadata["errors"]] == ["ConnectionError", "TerminalError"]


def test_a_non_retryable_type_and_its_subclasses_are_tried_once(database_url: str) -> None:
    attempts: list[str] = []

    @activity(retry_policy=RetryPolicy(non_retryable_error_types=[LookupError], initial_interval=0))
    def look_up(ctx: WorkflowContext) -> None:
        attempts.append("look_up")
        raise KeyError("missing")

    @workflow
    async def looks(ctx: WorkflowContext) -> str:
        try:
            await look_up(ctx)
        except KeyError as error:
            return repr(error)
        return "no error"

    assert asyncio.run(run_and_look(database_url, looks))[0] == "KeyError('missing')"
    assert attempts == ["look_up"]


def test_only_the_given_retryable_types_are_tried_again(database_url: str) -> None:
    attempts: list[int] = []

    @activity(retry_policy=RetryPolicy(retryable_error_types=[ConnectionError], initial_interval=0))
    def call_service(ctx: WorkflowContext) -> None:
        attempts.append(ctx.attempt)
        raise ConnectionResetError("again") if ctx.attempt < 3 else ValueError("not again")

    @workflow
    async def calls(ctx: WorkflowContext) -> str:
        try:
            await call_service(ctx)
        except ValueError as error:
            return str(error)
        return "no error"

    assert asyncio.run(run_and_look(database_url, calls))[0] == "not again"
    assert attempts == [1, 2, 3]


def test_the_applications_policy_is_for_activities_without_one(database_url: str) -> None:
    @activity
    def without_policy(ctx: WorkflowContext) -> None:
        raise ValueError("always")

    @workflow
    async def counts(ctx: WorkflowContext) -> int:
        try:
            await without_policy(ctx)
        except RetryExhaustedError as error:
            return error.attempts
        return 0

    policy = RetryPolicy(max_attempts=4, initial_interval=0)
    assert asyncio.run(run_and_look(database_url, counts, default_retry_policy=policy))[0] == 4


def test_an_activitys_policy_wins_over_the_applications(database_url: str) -> None:
    @activity(retry_policy=RetryPolicy(max_attempts=2, initial_interval=0))
    def with_policy(ctx: WorkflowContext) -> None:
        raise ValueError("always")

    @workflow
    async def counts(ctx: WorkflowContext) -> int:
        try:
            await with_policy(ctx)
        except RetryExhaustedError as error:
            return error.attempts
        return 0

    policy = RetryPolicy(max_attempts=4, initial_interval=0)
    assert asyncio.run(run_and_look(database_url, counts, default_retry_policy=policy))[0] == 2


def test_without_any_policy_the_default_waits_one_second_first(database_url: str) -> None:
    moments: list[float] = []

    @activity
    def flaky(ctx: WorkflowContext) -> int:
        moments.append(time.monotonic())
        if ctx.attempt == 1:
            raise ConnectionError("once")
        return ctx.attempt

    @workflow
    async def calls(ctx: WorkflowContext) -> int:
        return await flaky(ctx)

    assert asyncio.run(run_and_look(database_url, calls))[0] == 2
    assert 0.95 <= moments[1] - moments[0] < 3


def test_delays_grow_by_the_coefficient_up_to_the_longest(database_url: str) -> None:
    moments: list[float] = []
    policy = RetryPolicy(max_attempts=5, initial_interval=0.1, backoff_coefficient=2.0, max_interval=0.3)

    @activity(retry_policy=policy)
    def hopeless(ctx: WorkflowContext) -> None:
        moments.append(time.monotonic())
        raise ConnectionError("no")

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await hopeless(ctx)

    asyncio.run(run_and_look(database_url, calls))
    delays = [later - earlier for earlier, later in pairwise(moments)]
    assert len(delays) == 4
    for delay, least in zip(delays, [0.1, 0.2, 0.3, 0.3], strict=True):
        assert least - 0.01 <= delay < least + 1.0


def test_max_duration_ends_the_retries_of_an_otherwise_endless_policy(database_url: str) -> None:
    policy = RetryPolicy(max_attempts=None, initial_interval=0.1, backoff_coefficient=1.0, max_duration=0.35)

    @activity(retry_policy=policy)
    def hopeless(ctx: WorkflowContext) -> None:
        raise ConnectionError("no")

    @workflow
    async def counts(ctx: WorkflowContext) -> int:
        try:
            await hopeless(ctx)
        except RetryExhaustedError as error:
            return error.attempts
        return 0

    assert 1 <= asyncio.run(run_and_look(database_url, counts))[0] <= 4


def test_an_infinite_policy_goes_on_far_beyond_the_default(database_url: str) -> None:
    policy = RetryPolicy(max_attempts=None, initial_interval=0, max_duration=None)

    @activity(retry_policy=policy)
    def stubborn(ctx: WorkflowContext) -> int:
        if ctx.attempt < 80:
            raise ConnectionError(f"try {ctx.attempt}")
        return ctx.attempt

    @workflow
    async def calls(ctx: WorkflowContext) -> int:
        return await stubborn(ctx)

    result, (event,) = asyncio.run(run_and_look(database_url, calls))
    assert result == 80
    metadata = event.event_data["retry_metadata"]
    assert metadata["total_attempts"] == 80
    assert metadata["errors"][0]["message"] == "try 1"
    assert metadata["errors"][-1]["message"] == "try 79"


def test_the_error_after_very_many_attempts_numbers_those_whose_errors_were_kept(sqlite_url: str) -> None:
    @activity(retry_policy=RetryPolicy(max_attempts=53, initial_interval=0))
    def hopeless(ctx: WorkflowContext) -> None:
        raise ConnectionError(f"try {ctx.attempt}")

    @workflow
    async def tells(ctx: WorkflowContext) -> str:
        try:
            await hopeless(ctx)
        except RetryExhaustedError as error:
            return str(error)
        return ""

    told = asyncio.run(run_and_look(sqlite_url, tells))[0]
    assert "10. ConnectionError: try 10; 3 left out; 14. ConnectionError: try 14;" in told
    assert "53. ConnectionError: try 53." in told


def test_attempts_errors_and_elapsed_time_survive_a_restart(database_url: str) -> None:
    attempts: list[tuple[int, str]] = []

    @activity(retry_policy=LATER)
    def flaky(ctx: WorkflowContext) -> int:
        attempts.append((ctx.attempt, ctx.worker_id))
        if ctx.attempt < 3:
            raise ConnectionError(f"try {ctx.attempt}")
        return ctx.attempt

    @workflow
    async def calls(ctx: WorkflowContext) -> int:
        return await flaky(ctx)

    async def main() -> tuple[int, Any, list[dict[str, Any]], list[dict[str, Any]]]:
        tables = Tables(database_url)
        async with edda(database_url) as first:
            instance_id = await first.start(calls)
            kept = await until(lambda: tables.rows("SELECT attempts, first_attempt_at FROM edda_retries"))
        async with edda(database_url) as second:
            again = await until(lambda: tables.rows("SELECT * FROM edda_retries WHERE attempts = 2"))
            result = await second.result(instance_id, timeout=20)
            (event,) = await second.history(instance_id)
        assert again[0]["first_attempt_at"] == kept[0]["first_attempt_at"]
        return result, event.event_data["retry_metadata"], kept, tables.rows("SELECT * FROM edda_retries")

    result, metadata, kept, left = asyncio.run(main())
    assert result == 3
    assert [number for number, _ in attempts] == [1, 2, 3]
    assert len({worker for _, worker in attempts}) == 2
    assert kept[0]["attempts"] == 1
    assert metadata["total_attempts"] == 3
    assert [error["message"] for error in metadata["errors"]] == ["try 1", "try 2"]
    assert metadata["total_duration_ms"] >= 2900
    assert left == []


def test_max_attempts_holds_across_a_restart(database_url: str) -> None:
    attempts: list[int] = []

    @activity(retry_policy=RetryPolicy(max_attempts=2, initial_interval=1.2))
    def hopeless(ctx: WorkflowContext) -> None:
        attempts.append(ctx.attempt)
        raise ConnectionError(f"try {ctx.attempt}")

    @workflow
    async def counts(ctx: WorkflowContext) -> list[str]:
        try:
            await hopeless(ctx)
        except RetryExhaustedError as error:
            return error.errors
        return []

    async def main() -> Any:
        tables = Tables(database_url)
        async with edda(database_url) as first:
            instance_id = await first.start(counts)
            await until(lambda: tables.rows("SELECT * FROM edda_retries"))
        async with edda(database_url) as second:
            return await second.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ["ConnectionError: try 1", "ConnectionError: try 2"]
    assert attempts == [1, 2]


@pytest.mark.parametrize("max_parked", [0, 1000])
def test_a_long_delay_holds_neither_thread_nor_lease(database_url: str, max_parked: int) -> None:
    """More instances wait than there are threads and places to run, and others still go through."""

    @activity(retry_policy=MUCH_LATER)
    def unlucky(ctx: WorkflowContext) -> None:
        raise ConnectionError("no")

    @activity
    def lucky(ctx: WorkflowContext) -> str:
        return "through"

    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        await unlucky(ctx)

    @workflow
    async def passes(ctx: WorkflowContext) -> str:
        return await lucky(ctx)

    async def main() -> tuple[str, list[dict[str, Any]], list[Any]]:
        tables = Tables(database_url)
        async with edda(database_url, threads=2, max_running=3, max_parked=max_parked) as app:
            ids = [await app.start(waits) for _ in range(8)]
            await until(
                lambda: tables.value("SELECT count(*) FROM edda_instances WHERE status = 'waiting_for_timer'") == 8
            )
            result = await app.result(await app.start(passes), timeout=20)
            found = [await app.get(each) for each in ids]
            return result, [tables.instance(each) for each in ids], found

    result, rows, found = asyncio.run(main())
    assert result == "through"
    assert {(row["locked_by"], row["lock_expires_at"]) for row in rows} == {(None, None)}
    for each in found:
        assert each.status is Status.WAITING_FOR_TIMER
        assert 3500 < (each.wake_at - each.created_at).total_seconds() < 3700


@pytest.mark.parametrize("max_parked", [0, 1000])
def test_the_body_goes_on_after_a_long_delay_parked_or_replayed(database_url: str, max_parked: int) -> None:
    bodies: list[bool] = []
    steps: list[str] = []

    @activity
    def before(ctx: WorkflowContext) -> str:
        steps.append("before")
        return "kept"

    @activity(retry_policy=LATER)
    def flaky(ctx: WorkflowContext) -> str:
        steps.append(f"flaky {ctx.attempt}")
        if ctx.attempt == 1:
            raise ConnectionError("once")
        return "done"

    @workflow
    async def waits(ctx: WorkflowContext) -> list[str]:
        bodies.append(ctx.is_replaying)
        return [await before(ctx), await flaky(ctx)]

    result, _ = asyncio.run(run_and_look(database_url, waits, max_parked=max_parked))
    assert result == ["kept", "done"]
    assert steps == ["before", "flaky 1", "flaky 2"]
    assert bodies == ([False, True] if max_parked == 0 else [False])


def test_a_branch_that_waits_does_not_stop_its_sibling(database_url: str) -> None:
    @activity(retry_policy=MUCH_LATER)
    def unlucky(ctx: WorkflowContext) -> None:
        raise ConnectionError("no")

    @activity
    def lucky(ctx: WorkflowContext) -> int:
        return 1

    @workflow
    def both(ctx: SyncWorkflowContext) -> None:
        def three_steps() -> int:
            return lucky(ctx) + lucky(ctx) + lucky(ctx)

        ctx.gather(lambda: unlucky(ctx), three_steps)

    async def main() -> tuple[list[str], dict[str, Any]]:
        tables = Tables(database_url)
        async with edda(database_url) as app:
            instance_id = await app.start(both)
            await until(lambda: tables.status(instance_id) == "waiting_for_timer")
            return [event.activity_id for event in await app.history(instance_id)], tables.instance(instance_id)

    ids, row = asyncio.run(main())
    assert ids == ["2/lucky:1", "2/lucky:2", "2/lucky:3"]
    assert row["locked_by"] is None


def test_what_a_failed_attempt_wrote_is_rolled_back(database_url: str) -> None:
    tables = Tables(database_url)
    tables.make_notes()

    @activity(retry_policy=SOON)
    def writes(ctx: WorkflowContext) -> None:
        write_note(ctx, f"attempt {ctx.attempt}")
        if ctx.attempt < 3:
            raise ConnectionError("after writing")

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await writes(ctx)

    asyncio.run(run_and_look(database_url, calls))
    assert tables.notes() == ["attempt 3"]


def test_a_timed_out_attempt_is_retried_like_any_other_error(database_url: str) -> None:
    @activity(retry_policy=NEVER_AGAIN, timeout_seconds=0.05)
    async def slow(ctx: WorkflowContext) -> None:
        await asyncio.Event().wait()

    @workflow
    async def catches(ctx: WorkflowContext) -> list[str]:
        try:
            await slow(ctx)
        except RetryExhaustedError as error:
            return [type(error.__cause__).__name__, str(error.__cause__)]
        return []

    result, _ = asyncio.run(run_and_look(database_url, catches))
    assert result[0] == ActivityTimeoutError.__name__
    assert "'slow' did not end within 0.05 s" in result[1]
