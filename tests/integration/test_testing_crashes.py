"""``crash_everywhere`` kills at every commit, finds what comes out differently, and passes what does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, text

from edda_wsgi import RetryPolicy, UsageError, activity, sleep, wait_event, workflow
from edda_wsgi.testing import CrashError, WorkflowRunner
from tests.integration.letters import Letter, Stamp, addresses, db, letters, write

DECLARED_IN = ("tests.integration.letters",)


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    with letters(database_url) as made:
        yield made


@pytest.fixture
def runner(app: Flask) -> Iterator[WorkflowRunner]:
    with WorkflowRunner(app) as found:
        yield found


@pytest.fixture
def sqlite_runner(sqlite_url: str) -> Iterator[WorkflowRunner]:
    with letters(sqlite_url) as app, WorkflowRunner(app) as found:
        yield found


# What passes.


@activity
def stamp_letter(ctx: Any) -> int:
    """Two rows, one of which refers to the other; numbered by the database, with gaps after a crash."""
    letter = Letter(address="stamped")
    db.session.add(letter)
    db.session.flush()
    db.session.add(Stamp(letter_id=letter.id))
    return db.session.query(Stamp).count()


@activity
async def write_letter_aside(ctx: Any, address: str) -> None:
    insert = text("INSERT INTO letter (address, written_at) VALUES (:address, '2001-01-01')")
    await ctx.session.execute(insert, {"address": address})


@workflow
async def careful_letters(ctx: Any) -> list[Any]:
    await asyncio.gather(stamp_letter(ctx), write_letter_aside(ctx, "aside"))
    await sleep(ctx, timedelta(days=30))
    return [await stamp_letter(ctx), ctx.now()]


def test_what_writes_through_its_sessions_passes_every_crash(runner: WorkflowRunner) -> None:
    db.session.add(Letter(address="there before"))

    report = runner.crash_everywhere(careful_letters)

    # Two claims, three activities, the wait, the end: before and after each.
    assert len(report.kills) >= 14
    assert {kill.partition(", for the ")[0] for kill in report.kills} == {
        f"just {when} it {what}"
        for when in ("before", "after")
        for what in (
            "took up what was due",
            "saved steps, waits or ends",
            "saved what an activity wrote, with its step",
        )
    }
    assert report.not_compared == ("letter.written_at", "returned[1]")
    assert sorted(addresses()) == ["aside", "stamped", "stamped", "there before"]


@workflow
def answered_letter(ctx: Any) -> str:
    event = wait_event(ctx, "letters.answer", timeout_seconds=3600)
    return write(ctx, event.data)


def test_a_scenario_of_several_calls_passes_every_crash(sqlite_runner: WorkflowRunner) -> None:
    def scenario() -> str:
        instance_id = sqlite_runner.start(answered_letter)
        sqlite_runner.send_event("letters.answer", "yes")
        sqlite_runner.finish(instance_id)
        return addresses()[-1]

    report = sqlite_runner.crash_everywhere(scenario)

    assert len(report.kills) >= 8
    assert addresses() == ["yes"]


def test_a_workflow_that_fails_is_to_fail_alike(sqlite_runner: WorkflowRunner) -> None:
    report = sqlite_runner.crash_everywhere(failing_twice)
    assert len(report.kills) >= 6


@activity(retry_policy=RetryPolicy(max_attempts=2, initial_interval=5.0))
def fail_twice(ctx: Any) -> None:
    raise ZeroDivisionError("no")


@workflow
def failing_twice(ctx: Any) -> None:
    fail_twice(ctx)


# What is found.


@activity
def write_letter_apart(ctx: Any, address: str) -> None:
    """Through a connection of its own, which commits by itself."""
    apart = create_engine(db.engine.url)
    with apart.begin() as conn:
        conn.execute(
            text("INSERT INTO letter (address, written_at) VALUES (:address, '2001-01-01')"), {"address": address}
        )
    apart.dispose()


@workflow
def careless_letters(ctx: Any) -> None:
    write(ctx, "first")
    write_letter_apart(ctx, "apart")


def test_an_activity_that_writes_past_its_session_is_found_with_the_row_it_wrote_twice(runner: WorkflowRunner) -> None:
    with pytest.raises(CrashError) as found:
        runner.crash_everywhere(careless_letters)
    told = str(found.value)
    assert "Workflow 'careless_letters' comes to something else after a crash." in told
    assert "Its worker was killed just before it saved steps, waits or ends" in told
    assert "Recorded until then: write:1. Another worker went on" in told
    assert "letter:\n    once without the crash, twice after it:  " in told
    assert "address='apart'" in told
    assert "use ctx.idempotency_key" in told.replace("recognize", "use")


turns = Counter[str]()


@workflow
def forgetful_letters(ctx: Any) -> None:
    """It does the same in whatever order, but in another one each time it is replayed."""
    turns[ctx.instance_id] += 1
    for step in (write, do_not_write) if turns[ctx.instance_id] % 2 else (do_not_write, write):
        step(ctx, "letter")


@activity
def do_not_write(ctx: Any, address: str) -> None:
    pass


def test_a_replay_that_goes_another_way_is_found_in_the_words_of_the_engine(runner: WorkflowRunner) -> None:
    with pytest.raises(
        CrashError, match=r"history recorded 'write' \(write:1\), but the code now asks for 'do_not_write'"
    ):
        runner.crash_everywhere(lambda: runner.run(forgetful_letters), reset=turns.clear)


class Post:
    """A service outside, as a test fakes it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.sent: dict[str, str] = {}

    def send(self, address: str, *, key: str = "") -> None:
        self.asked.append(address)
        self.sent[key or str(len(self.asked))] = address

    def forget(self) -> None:
        self.asked.clear()
        self.sent.clear()


post = Post()


@activity
def send_blindly(ctx: Any, address: str) -> None:
    post.send(address)


@activity
def send_with_key(ctx: Any, address: str) -> None:
    post.send(address, key=ctx.idempotency_key)


@workflow
def blind_sending(ctx: Any) -> None:
    send_blindly(ctx, "Ada")


@workflow
def sighted_sending(ctx: Any) -> None:
    send_with_key(ctx, "Ada")


def sent() -> list[str]:
    return sorted(post.sent.values())


def test_a_call_that_a_service_cannot_recognize_is_found(sqlite_runner: WorkflowRunner) -> None:
    with pytest.raises(CrashError) as found:
        sqlite_runner.crash_everywhere(lambda: sqlite_runner.run(blind_sending), look=sent, reset=post.forget)
    assert "look:\n    ['Ada'] without the crash\n    ['Ada', 'Ada'] after it" in str(found.value)


def test_a_call_with_a_key_passes(sqlite_runner: WorkflowRunner) -> None:
    report = sqlite_runner.crash_everywhere(lambda: sqlite_runner.run(sighted_sending), look=sent, reset=post.forget)
    assert len(report.kills) >= 6
    assert sent() == ["Ada"]


@activity
def start_letter_apart(ctx: Any) -> None:
    answered_letter.options(session=None).start()


@workflow
def spawning_letters(ctx: Any) -> None:
    start_letter_apart(ctx)


def test_a_workflow_that_is_started_twice_is_found(sqlite_runner: WorkflowRunner) -> None:
    with pytest.raises(CrashError, match=r"workflows that were started:\n +once without the crash, twice after it"):
        sqlite_runner.crash_everywhere(spawning_letters)


# What cannot be judged.


def test_what_differs_without_a_crash_is_told_as_that(sqlite_runner: WorkflowRunner) -> None:
    turns = iter(range(1000))

    def scenario() -> None:
        for _ in range(next(turns)):
            sqlite_runner.run(uneventful)

    with pytest.raises(CrashError, match="each time, even without a crash"):
        sqlite_runner.crash_everywhere(scenario)


@workflow
def uneventful(ctx: Any) -> None:
    pass


def test_what_is_looked_at_and_is_never_the_same_is_told_as_that(sqlite_runner: WorkflowRunner) -> None:
    turns = iter(range(1000))
    with pytest.raises(CrashError, match=r"each time, even without a crash(?s:.)*look:\n +0 first\n +1 then"):
        sqlite_runner.crash_everywhere(lambda: sqlite_runner.run(uneventful), look=lambda: next(turns))


def test_a_scenario_in_which_nothing_could_be_killed_is_refused(sqlite_runner: WorkflowRunner) -> None:
    with pytest.raises(UsageError, match="nothing could be killed"):
        sqlite_runner.crash_everywhere(lambda: "written")


@pytest.mark.parametrize(
    ("what", "args"), [(write_letter_apart, ("bo",)), (lambda: None, ("bo",)), ("careless_letters", ())]
)
def test_what_is_neither_a_workflow_nor_a_scenario_is_refused(
    sqlite_runner: WorkflowRunner, what: Any, args: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match="takes a workflow with its arguments"):
        sqlite_runner.crash_everywhere(what, *args)


def test_an_error_of_the_scenario_itself_is_raised_as_it_is(sqlite_runner: WorkflowRunner) -> None:
    with pytest.raises(ZeroDivisionError):
        sqlite_runner.crash_everywhere(lambda: 1 / 0)


def test_a_column_that_does_not_exist_is_not_ignored_silently(sqlite_runner: WorkflowRunner) -> None:
    with pytest.raises(UsageError, match=r"no table has a column 'letter\.adress'"):
        sqlite_runner.crash_everywhere(lambda: sqlite_runner.run(careless_letters), ignore={"letter.adress"})


def test_a_column_can_be_left_out_and_what_is_left_is_compared(sqlite_runner: WorkflowRunner) -> None:
    with pytest.raises(CrashError) as found:
        sqlite_runner.crash_everywhere(
            lambda: sqlite_runner.run(careless_letters), ignore={"letter.address", "written_at"}
        )
    assert "once without the crash" not in str(found.value)
    assert "3 times" in str(found.value)
