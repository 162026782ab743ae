"""``assert_replays`` repeats a recorded run with the code of today, executes nothing, and fails when it goes another way."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from edda_wsgi import (
    InstanceNotFoundError,
    RetryExhaustedError,
    RetryPolicy,
    UsageError,
    WorkflowFailedError,
    activity,
    send_to,
    sleep,
    wait_event,
    workflow,
)
from edda_wsgi.testing import ReplayError, WorkflowRunner
from tests.integration.letters import addresses, letters, write

DECLARED_IN = ("tests.integration.letters",)

ran: list[str] = []
"""Which activities were really run."""
version: dict[str, Any] = {}
"""What the code of the day does; changed by tests, and nothing that a body should ask."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    with letters(f"sqlite:///{tmp_path_factory.mktemp('letters') / 'letters.db'}") as made:
        yield made


@pytest.fixture
def runner(app: Flask) -> Iterator[WorkflowRunner]:
    ran.clear()
    version.clear()
    with WorkflowRunner(app) as found:
        yield found


@activity
def replay_one(ctx: Any, what: Any = "") -> str:
    ran.append("replay_one")
    return f"replay_one {what}"


@activity
def replay_two(ctx: Any, what: Any = "") -> str:
    ran.append("replay_two")
    return f"replay_two {what}"


@activity(retry_policy=RetryPolicy(max_attempts=2, initial_interval=0.01))
def replayed_never_well(ctx: Any) -> None:
    raise ConnectionError("not today")


@workflow
async def replayed_everything(ctx: Any, days: int) -> dict[str, Any]:
    """Whatever a body can do that is recorded."""
    moment = ctx.now()
    both = await asyncio.gather(replay_one(ctx, str(ctx.uuid4())), replay_two(ctx, ctx.random()))
    try:
        await replayed_never_well(ctx)
    except RetryExhaustedError as error:
        both.append(type(error.__cause__).__name__)
    index, _ = await ctx.first_of(sleep(ctx, days * 86_400), wait_event(ctx, "letters.never"))
    try:
        async with asyncio.timeout(3600):
            await wait_event(ctx, "letters.never")
    except TimeoutError:
        both.append("given up")
    await send_to(ctx, ctx.instance_id, "to myself")
    return {"both": both, "index": index, "moment": moment, "said": await replayed_in_between(ctx)}


@workflow
async def replayed_in_between(ctx: Any) -> str:
    event = await wait_event(ctx, "letters.said", timeout_seconds=86_400)
    return str(event.data)


def test_a_body_that_asks_only_what_is_recorded_replays_at_every_stage_and_runs_nothing(database_url: str) -> None:
    with letters(database_url) as app, WorkflowRunner(app) as runner:
        ran.clear()
        instance_id = runner.start(replayed_everything, 30)
        runner.settle()
        runner.assert_replays()
        runner.advance(days=30, hours=2)
        runner.assert_replays(instance_id)
        runner.send_event("letters.said", "word")
        runner.finish()
        runs, steps = list(ran), runner.steps()

        runner.assert_replays()

        assert (ran, runner.steps()) == (runs, steps)
        assert sorted(ran) == ["replay_one", "replay_two"]


@workflow
def replayed_by_the_clock(ctx: Any) -> str:
    return replay_one(ctx) if datetime.now().year > 2000 else replay_two(ctx)


@workflow
async def replayed_by_the_day(ctx: Any) -> str:
    await replay_one(ctx, len(str(date.today())))
    return "done"


@workflow
def replayed_by_seconds(ctx: Any) -> str:
    return replay_one(ctx) if time.time() else ""


@workflow
def replayed_by_dice(ctx: Any) -> str:
    return replay_one(ctx) if random.random() < 2 else ""


@workflow
def replayed_by_choice(ctx: Any) -> str:
    return replay_one(ctx, random.choice(["a"]))


@workflow
def replayed_by_id(ctx: Any) -> str:
    return replay_one(ctx, len(uuid.uuid4().hex))


@pytest.mark.parametrize(
    ("body", "read", "instead"),
    [
        (replayed_by_the_clock, "datetime.now", "ctx.now()"),
        (replayed_by_the_day, "date.today", "ctx.now()"),
        (replayed_by_seconds, "time.time", "ctx.now()"),
        (replayed_by_dice, "random.random", "ctx.random()"),
        (replayed_by_choice, "random.choice", "ctx.random()"),
        (replayed_by_id, "uuid.uuid4", "ctx.uuid4()"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_body_that_reads_what_differs_between_runs_is_found_although_it_goes_the_same_way(
    body: Any, read: str, instead: str, runner: WorkflowRunner
) -> None:
    runner.run(body)
    with pytest.raises(ReplayError) as found:
        runner.assert_replays()
    assert f"calls {read}() at {__file__}:" in str(found.value)
    assert f"use {instead}" in str(found.value)
    runner.assert_replays(may_read={read})


@workflow
def replayed_seeded(ctx: Any) -> str:
    return replay_one(ctx, random.Random(7).choice([1, 2, 3]))


def test_dice_of_the_bodys_own_with_a_fixed_seed_are_no_dice(runner: WorkflowRunner) -> None:
    runner.run(replayed_seeded)
    runner.assert_replays()


@workflow
def replayed_passing_on(ctx: Any) -> str:
    return replay_one(ctx, version["stamp"]())


@workflow
def replayed_returning(ctx: Any) -> Any:
    replay_one(ctx)
    return version["stamp"]()


@workflow
def replayed_raising(ctx: Any) -> None:
    replay_one(ctx)
    raise ValueError(version["stamp"]())


@workflow
def replayed_steps(ctx: Any) -> str:
    return " ".join(step(ctx) for step in version["steps"])


def counting() -> Callable[[], int]:
    return iter(range(1000)).__next__


def test_other_arguments_are_a_failure_unless_they_are_meant(runner: WorkflowRunner) -> None:
    version["stamp"] = counting()
    runner.run(replayed_passing_on)
    with pytest.raises(
        ReplayError, match=r"calls 'replay_one' \(replay_one:1\) with {'what': 1}; recorded is {'what': 0}"
    ):
        runner.assert_replays()
    runner.assert_replays(compares_arguments=False)


def test_another_result_is_a_failure(runner: WorkflowRunner) -> None:
    version["stamp"] = counting()
    runner.run(replayed_returning)
    with pytest.raises(ReplayError, match="returned 0, but the code of today returns 1"):
        runner.assert_replays()


def test_another_error_is_a_failure_and_the_same_one_is_not(runner: WorkflowRunner) -> None:
    version["stamp"] = lambda: "no"
    with pytest.raises(WorkflowFailedError):
        runner.run(replayed_raising)
    runner.assert_replays()
    version["stamp"] = lambda: "another"
    with pytest.raises(
        ReplayError, match="failed with ValueError: no, but the code of today raises ValueError: another"
    ):
        runner.assert_replays()


def test_steps_in_another_order_are_told_as_an_engine_would_tell_it(runner: WorkflowRunner) -> None:
    version["steps"] = [replay_one, replay_two]
    runner.run(replayed_steps)
    version["steps"] = [replay_two, replay_one]
    with pytest.raises(
        ReplayError, match=r"history recorded 'replay_one' \(replay_one:1\), but the code now asks for 'replay_two'"
    ):
        runner.assert_replays()


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (
            [replay_one, replay_two, replay_one],
            r"it goes on: it asks for 'replay_one' \(replay_one:2\), which is not recorded",
        ),
        ([replay_one], r"history recorded 'replay_two' \(replay_two:1\), but the code now asks for nothing"),
    ],
)
def test_a_step_more_or_less_than_a_finished_run_has_is_a_failure(
    steps: list[Any], told: str, runner: WorkflowRunner
) -> None:
    version["steps"] = [replay_one, replay_two]
    runner.run(replayed_steps)
    version["steps"] = steps
    with pytest.raises(ReplayError, match=told):
        runner.assert_replays()


@workflow
def replayed_wait(ctx: Any) -> str:
    said = replay_one(ctx)
    if version["waits"]:
        wait_event(ctx, "letters.never")
    return said


def test_a_run_that_waits_must_come_to_where_it_waits(runner: WorkflowRunner) -> None:
    version["waits"] = True
    runner.start(replayed_wait)
    runner.settle()
    runner.assert_replays()
    version["waits"] = False
    with pytest.raises(ReplayError, match="is waiting_for_event, but with the code of today it ends there"):
        runner.assert_replays()


def test_a_recording_outlives_its_database(runner: WorkflowRunner, app: Flask, tmp_path: Path) -> None:
    path = tmp_path / "recordings" / "steps.json"
    version["steps"] = [replay_one, replay_two]
    runner.run(replayed_steps)

    runner.save_recording(path)

    elsewhere = WorkflowRunner(app)
    elsewhere.assert_replays(path)
    version["steps"] = [replay_two]
    with pytest.raises(ReplayError, match="history recorded 'replay_one'"):
        elsewhere.assert_replays(path)


def test_what_is_no_recording_is_refused(runner: WorkflowRunner, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"format": 2}')
    with pytest.raises(UsageError, match="this version reads 1"):
        runner.assert_replays(path)
    with pytest.raises(InstanceNotFoundError):
        runner.assert_replays("nobody")


def test_activities_of_a_replay_write_nothing(runner: WorkflowRunner) -> None:
    runner.run(replayed_write)
    before = addresses()
    runner.assert_replays()
    assert addresses() == before


@workflow
def replayed_write(ctx: Any) -> str:
    return write(ctx, "once")
