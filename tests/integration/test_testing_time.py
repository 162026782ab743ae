"""``WorkflowRunner`` skips time: the workflow's, the event loop's and the database's, in the order of what is due."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from edda_wsgi import (
    ConfigurationError,
    EventTimeoutError,
    RetryPolicy,
    UsageError,
    WorkflowFailedError,
    activity,
    send_event_transactional,
    sleep,
    sleep_until,
    wait_event,
    workflow,
)
from edda_wsgi.testing import StuckError, WorkflowRunner
from tests.integration.letters import Letter, addresses, db, edda, knock, letters, write

DECLARED_IN = ("tests.integration.letters",)

DAY = timedelta(days=1)
PATIENCE = RetryPolicy(max_attempts=30, initial_interval=0.9, backoff_coefficient=1.0, max_duration=None)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """On SQLite, one for all: each test has instances of its own."""
    with letters(f"sqlite:///{tmp_path_factory.mktemp('letters') / 'letters.db'}") as made:
        yield made


@pytest.fixture
def runner(app: Flask) -> Iterator[WorkflowRunner]:
    with WorkflowRunner(app) as found:
        yield found


@pytest.fixture
def own_runner(database_url: str) -> Iterator[WorkflowRunner]:
    """On both databases, with tables of its own."""
    with letters(database_url) as app, WorkflowRunner(app) as found:
        yield found


def test_time_goes_forward_only(runner: WorkflowRunner) -> None:
    with pytest.raises(UsageError, match=r"-86400 seconds cannot pass"):
        runner.advance(days=-1)


@workflow
def sent_in_a_month(ctx: Any) -> list[Any]:
    first, begun_at = write(ctx, "now"), ctx.now()
    sleep(ctx, timedelta(days=30))
    second = write(ctx, "in a month")
    return [first, begun_at, ctx.now(), second]


def test_thirty_days_pass_for_the_workflow_its_activities_and_the_database(own_runner: WorkflowRunner) -> None:
    before = own_runner.now()

    first, begun_at, ended_at, second = own_runner.run(sent_in_a_month)

    month = timedelta(days=30)
    assert month <= datetime.fromisoformat(ended_at) - datetime.fromisoformat(begun_at) < month + DAY
    assert month <= datetime.fromisoformat(second) - datetime.fromisoformat(first) < month + DAY
    assert month <= own_runner.now() - before < month + DAY
    recorded = own_runner.step("write:2").created_at - own_runner.step("write:1").created_at
    assert month <= recorded < month + DAY
    assert addresses() == ["now", "in a month"]


@workflow
def visit_house(ctx: Any) -> int:
    return knock(ctx)


def test_pauses_between_attempts_are_skipped_and_count_as_having_passed(own_runner: WorkflowRunner) -> None:
    assert own_runner.run(visit_house) == 4
    metadata = own_runner.step("knock:1").event_data["retry_metadata"]
    assert (metadata["total_attempts"], metadata["total_duration_ms"] // 3_600_000) == (4, 3)


@workflow
def sent_after_days(ctx: Any, days: int) -> str:
    sleep(ctx, timedelta(days=days))
    return write(ctx, f"day {days}")


def test_timers_fire_in_their_order_each_at_its_own_time(own_runner: WorkflowRunner) -> None:
    begun_at = own_runner.now()
    started = {days: own_runner.start(sent_after_days, days) for days in (3, 1, 2)}

    own_runner.advance(days=4)

    assert addresses() == ["day 1", "day 2", "day 3"]
    fired = {days: datetime.fromisoformat(own_runner.finish(instance_id)) for days, instance_id in started.items()}
    assert {days: (moment - begun_at).days for days, moment in fired.items()} == {1: 1, 2: 2, 3: 3}


@activity(retry_policy=PATIENCE)
def open_at_last(ctx: Any) -> int:
    if ctx.attempt < 30:
        raise ConnectionError
    return int(ctx.attempt)


@workflow(lock_timeout_seconds=10.0)
def impatient_letter(ctx: Any) -> int:
    return open_at_last(ctx)


def test_short_pauses_with_the_lease_held_are_skipped_and_the_lease_is_kept(database_url: str) -> None:
    with letters(database_url) as app, WorkflowRunner(app, timeout=15) as runner:  # the pauses alone are 26 seconds
        assert runner.run(impatient_letter) == 30
        assert runner.get().lock_epoch == 1


@workflow
async def paid_letter(ctx: Any) -> str:
    try:
        event = await wait_event(ctx, "letters.paid", timeout_seconds=86_400)
    except EventTimeoutError:
        return "late"
    return f"{event.data} at {event.time}"


def test_the_deadline_of_an_event_that_nobody_sends_passes_at_once(runner: WorkflowRunner) -> None:
    assert runner.run(paid_letter) == "late"
    assert runner.steps() == ["wait_event:1"]


def test_an_event_is_sent_once_the_workflow_waits_for_it_and_at_the_runners_time(runner: WorkflowRunner) -> None:
    runner.start(paid_letter)
    runner.send_event("letters.paid", "seven")
    said, _, moment = runner.finish().partition(" at ")
    assert said == "seven"
    assert abs(datetime.fromisoformat(moment) - runner.now()) < timedelta(minutes=5)


@workflow
def sent_at_once(ctx: Any) -> datetime:
    return ctx.now()  # type: ignore[no-any-return]


def test_a_delayed_start_is_due_after_its_delay(runner: WorkflowRunner) -> None:
    begun_at = runner.now()
    assert runner.run(sent_at_once.options(delay=2 * DAY)) - begun_at >= 2 * DAY


def test_a_start_at_a_moment_is_due_then(runner: WorkflowRunner) -> None:
    moment = runner.now() + 3 * DAY
    assert moment <= runner.run(sent_at_once.options(start_at=moment)) < moment + DAY


@workflow
def sent_until(ctx: Any, moment: datetime) -> datetime:
    sleep_until(ctx, moment)
    return ctx.now()  # type: ignore[no-any-return]


def test_a_sleep_until_a_moment_ends_then(runner: WorkflowRunner) -> None:
    moment = runner.now() + 400 * DAY
    assert moment <= runner.run(sent_until, moment) < moment + DAY


def test_advancing_stops_at_its_time_and_leaves_what_is_due_later(runner: WorkflowRunner) -> None:
    begun_at = runner.now()
    instance_id = runner.start(sent_after_days, 2)

    runner.advance(days=1, hours=1)

    assert runner.get(instance_id).status == "waiting_for_timer"
    assert DAY <= runner.now() - begun_at < 2 * DAY
    runner.advance(days=1)
    assert runner.get(instance_id).status == "completed"


def test_settling_does_what_can_be_done_now_and_lets_no_time_pass(runner: WorkflowRunner) -> None:
    begun_at = runner.now()
    instance_id = runner.start(sent_in_a_month)

    runner.settle()

    assert runner.steps(instance_id) == ["write:1", "ctx.now:1"]
    assert runner.now() - begun_at < timedelta(minutes=5)


@workflow
async def sent_in_time(ctx: Any) -> str:
    try:
        async with asyncio.timeout(86_400):
            await wait_event(ctx, "letters.never")
    except TimeoutError:
        return await write(ctx, "given up")
    return "came"


def test_a_timeout_of_the_body_itself_is_skipped_too(runner: WorkflowRunner) -> None:
    begun_at = runner.now()
    given_up_at = datetime.fromisoformat(runner.run(sent_in_time))
    assert DAY <= given_up_at - begun_at < 2 * DAY


@workflow
async def sent_hourly(ctx: Any, left: int) -> int:
    await sleep(ctx, 3590)
    return ctx.recur(left=left - 1) if left > 1 else 0


def test_what_else_is_due_meanwhile_is_done_meanwhile(runner: WorkflowRunner) -> None:
    ticking = runner.start(sent_hourly, 40)
    runner.run(sent_after_days, 1)
    chain = edda.find_instances(workflow_name="sent_hourly", limit=100).instances
    assert len([found for found in chain if found.status == "recurred"]) == 24
    runner.finish(ticking)


@activity
def fail_once(ctx: Any) -> None:
    raise ZeroDivisionError("no")


@workflow
def failing_letter(ctx: Any) -> None:
    fail_once(ctx)


def test_a_failure_is_raised_with_its_cause(runner: WorkflowRunner) -> None:
    with pytest.raises(WorkflowFailedError) as failed:
        runner.run(failing_letter)
    assert "ZeroDivisionError: no" in str(failed.value)


@workflow
def waiting_letter(ctx: Any) -> None:
    write(ctx, "first")
    wait_event(ctx, "letters.never")


def test_a_workflow_that_time_does_not_help_is_named_with_what_it_waits_for(runner: WorkflowRunner) -> None:
    with pytest.raises(StuckError) as stuck:
        runner.run(waiting_letter)
    assert "waits for the event 'letters.never' (wait_event:1)" in str(stuck.value)
    assert "recorded: write:1" in str(stuck.value)


turns = iter(range(100))


@workflow
def fickle_letter(ctx: Any) -> None:
    if next(turns) % 2:
        write(ctx, "odd")
    else:
        visit_letters(ctx)
    sleep(ctx, DAY)


@activity
def visit_letters(ctx: Any) -> None:
    pass


def test_a_blocked_workflow_is_named_with_the_reason(runner: WorkflowRunner) -> None:
    runner.start(fickle_letter)
    runner.settle()
    runner.kill()
    with pytest.raises(StuckError, match="history recorded 'visit_letters'"):
        runner.finish()


@workflow
async def napping_letter(ctx: Any) -> None:
    await asyncio.sleep(60)


def test_what_only_real_time_brings_ends_with_an_explanation_and_keeps_nobody_else(app: Flask) -> None:
    with WorkflowRunner(app, timeout=2) as runner:
        napping_id = runner.start(napping_letter)
        assert isinstance(runner.run(sent_at_once), datetime)
        with pytest.raises(StuckError, match=r"'napping_letter' is running; .* something else than edda's sleep"):
            runner.finish(napping_id)
        edda.cancel(napping_id, session=None)


def test_what_the_test_has_in_its_session_is_saved_first_and_read_afresh(runner: WorkflowRunner) -> None:
    known = Letter(address="of the test")
    db.session.add(known)
    assert runner.run(counting_letters) == db.session.query(Letter).count()
    db.session.rollback()
    runner.run(renaming_letter, known.id)
    assert known.address == "renamed"


@activity
def count_all_letters(ctx: Any) -> int:
    return db.session.query(Letter).count()


@workflow
def counting_letters(ctx: Any) -> int:
    return count_all_letters(ctx)


@activity
def rename_letter(ctx: Any, letter_id: int) -> None:
    db.session.get_one(Letter, letter_id).address = "renamed"


@workflow
def renaming_letter(ctx: Any, letter_id: int) -> None:
    rename_letter(ctx, letter_id)


def test_a_killed_worker_is_replaced_and_its_work_goes_on(own_runner: WorkflowRunner) -> None:
    own_runner.start(sent_in_a_month)
    own_runner.settle()
    worker_id = edda.start_worker()

    own_runner.kill()

    assert len(own_runner.finish()) == 4
    assert addresses() == ["now", "in a month"]
    assert edda.start_worker() != worker_id


published: list[str] = []
refusals: list[str] = []


def publish_to_list(event: Any) -> None:
    """The publisher of the application below; refuses as long as it is to."""
    if refusals:
        raise ConnectionError(refusals.pop())
    published.append(event.type)


@activity
def announce_letters(ctx: Any) -> None:
    send_event_transactional(ctx, "letters.announced", "/letters", {})


@workflow
def announcing_letters(ctx: Any) -> None:
    announce_letters(ctx)


def test_what_is_to_be_published_is_published_before_a_call_returns_and_again_as_time_passes(sqlite_url: str) -> None:
    publisher = {"BACKEND": "edda_engine.outbox.publishers.CallablePublisher", "FUNCTION": publish_to_list}
    with letters(sqlite_url, EDDA={"OUTBOX": publisher}) as app, WorkflowRunner(app) as runner:
        runner.run(announcing_letters)
        assert published == ["letters.announced"]
        refusals.append("not today")
        runner.run(announcing_letters)
        assert published == ["letters.announced"]
        runner.advance(minutes=10)
        assert published == ["letters.announced"] * 2


# What is refused.


def test_an_application_that_is_not_under_test_is_refused(sqlite_url: str) -> None:
    told = pytest.raises(ConfigurationError, match="set TESTING")
    with letters(sqlite_url, TESTING=False) as app, told, WorkflowRunner(app):
        pass


def test_an_application_without_edda_is_refused() -> None:
    app = Flask("bare")
    app.testing = True
    with pytest.raises(ConfigurationError, match="has no edda"):
        WorkflowRunner(app)


def test_an_application_that_runs_by_the_real_clock_is_refused(sqlite_url: str) -> None:
    with letters(sqlite_url) as app:
        edda.start_worker()
        with pytest.raises(UsageError, match="Leave start_worker"), WorkflowRunner(app):
            pass


def test_there_is_one_time_for_all_and_one_runner(runner: WorkflowRunner, sqlite_url: str) -> None:
    with letters(sqlite_url) as app, pytest.raises(UsageError, match="Another WorkflowRunner"), WorkflowRunner(app):
        pass


def test_missing_tables_that_may_not_be_made_are_told(bare_sqlite_url: str) -> None:
    told = pytest.raises(ConfigurationError, match="flask edda upgrade")
    with letters(bare_sqlite_url, EDDA={"AUTO_MIGRATE": False}) as app, WorkflowRunner(app) as runner, told:
        runner.run(sent_at_once)


def test_what_is_no_workflow_and_what_was_never_started_are_refused(app: Flask, runner: WorkflowRunner) -> None:
    with pytest.raises(UsageError, match="@workflow is needed"):
        runner.run(write, "letter")
    with pytest.raises(UsageError, match="say which instance"):
        runner.finish()
    with pytest.raises(UsageError, match="in its block"):
        WorkflowRunner(app).run(sent_at_once)


def test_a_step_that_is_not_recorded_is_answered_with_those_that_are(runner: WorkflowRunner) -> None:
    runner.run(sent_at_once)
    assert runner.step("ctx.now:1").event_type == "ValueRecorded"
    with pytest.raises(AssertionError, match=r"there are: ctx\.now:1"):
        runner.step("never:1")
