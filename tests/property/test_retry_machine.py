"""Retries, as a machine that hypothesis drives: several activities fail by plan while hours pass and workers are killed.

The engine is the real one, its time is skipped. Beside it stands a model: when each attempt is due, by the words of the
policy. Whatever happens in between, an attempt is made when it is due and not before, once, and the last one when the
policy says so. Hours are whole in policies and never in what passes, so that no attempt is due just now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from edda_engine import (
    EddaApp,
    RetryExhaustedError,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from edda_engine.testing import WorkflowRunner
from tests.integration.engines import Tables
from tests.support import eventually

HOUR = 3600.0


class NotRetriedError(Exception):
    """One that no policy here tries again."""


@dataclass(frozen=True)
class Words:
    """A policy in hours, as the documentation words it."""

    attempts: int | None
    first: float
    times: float
    longest: float
    in_all: float | None

    def policy(self) -> RetryPolicy:
        return RetryPolicy(
            max_attempts=self.attempts,
            initial_interval=self.first * HOUR,
            backoff_coefficient=self.times,
            max_interval=self.longest * HOUR,
            max_duration=None if self.in_all is None else self.in_all * HOUR,
            non_retryable_error_types=(NotRetriedError,),
        )


POLICIES = {
    "steady": Words(4, 2, 1, 100, None),
    "growing": Words(6, 1, 2, 5, None),
    "hasty": Words(3, 0, 1, 100, None),
    "once": Words(1, 1, 1, 100, None),
    "until tomorrow": Words(None, 3, 2, 9, 24.5),
    "both": Words(5, 1, 3, 100, 13.5),
}
FAILS, WORKS, IS_TERMINAL, IS_NOT_RETRIED = "fails", "works", "is terminal", "is not retried"
ERRORS = {FAILS: ConnectionError, IS_TERMINAL: TerminalError, IS_NOT_RETRIED: NotRetriedError}


@dataclass
class Case:
    """One activity: what its attempts come to, when they were made, and whether it was cancelled."""

    words: Words
    outcomes: list[str]
    made: list[tuple[int, datetime]] = field(default_factory=list)
    cancelled_after: int | None = None

    def outcome(self, attempt: int) -> str:
        return self.outcomes[attempt - 1] if attempt <= len(self.outcomes) else WORKS

    def planned(self) -> tuple[list[float], str]:
        """In which hours after the first one attempts are made, and what the last one comes to."""
        hours, now = [0.0], 0.0
        while (outcome := self.outcome(len(hours))) == FAILS:
            delay = min(self.words.first * self.words.times ** (len(hours) - 1), self.words.longest)
            if self.words.attempts is not None and len(hours) >= self.words.attempts:
                return hours, "is exhausted"
            if self.words.in_all is not None and now + delay > self.words.in_all:
                return hours, "is exhausted"
            now += delay
            hours.append(now)
        return hours, outcome


class Clock:
    """Where an activity finds the time that is skipped, and its case."""

    runner: WorkflowRunner
    cases: dict[str, Case]


def declared(name: str, words: Words) -> Any:
    @activity(name=f"retries.{name}", retry_policy=words.policy())
    def attempt(ctx: WorkflowContext) -> int:
        case = Clock.cases[ctx.instance_id]
        case.made.append((ctx.attempt, Clock.runner.now()))
        if (outcome := case.outcome(ctx.attempt)) != WORKS:
            raise ERRORS[outcome](f"attempt {ctx.attempt}")
        return ctx.attempt

    return attempt


ACTIVITIES = {name: declared(name, words) for name, words in POLICIES.items()}


@workflow(name="retries.flow")
async def flow(ctx: WorkflowContext, name: str) -> int:
    return int(await ACTIVITIES[name](ctx))


class Retries(RuleBasedStateMachine):
    runner: WorkflowRunner
    app: EddaApp
    tables: Tables

    def __init__(self) -> None:
        super().__init__()
        Clock.runner, Clock.cases = self.runner, {}

    @property
    def waiting(self) -> list[str]:
        return [
            instance_id
            for instance_id, case in Clock.cases.items()
            if case.cancelled_after is None and len(case.made) < len(case.planned()[0])
        ]

    @precondition(lambda self: len(Clock.cases) < 5)
    @rule(
        name=st.sampled_from(sorted(POLICIES)),
        fails=st.integers(0, 7),
        then=st.sampled_from([WORKS, WORKS, IS_TERMINAL, IS_NOT_RETRIED]),
    )
    def start(self, name: str, fails: int, then: str) -> None:
        instance_id = f"{id(self)}-{len(Clock.cases)}-{self.runner.now():%s%f}"
        Clock.cases[instance_id] = Case(POLICIES[name], [FAILS] * fails + [then])
        self.runner.start(flow.options(instance_id=instance_id), name)

    @precondition(lambda self: Clock.cases)
    @rule(hours=st.integers(0, 6))
    def hours_pass(self, hours: int) -> None:
        self.runner.advance(hours=hours, minutes=7)

    @precondition(lambda self: self.waiting)
    @rule()
    def the_worker_is_killed(self) -> None:
        self.runner.kill()

    @precondition(lambda self: len(self.waiting) > 1)
    @rule(data=st.data())
    def one_is_cancelled(self, data: st.DataObject) -> None:
        instance_id = data.draw(st.sampled_from(self.waiting))
        self.runner.settle()
        case = Clock.cases[instance_id]
        if len(case.made) < len(case.planned()[0]):
            assert self.app._client.cancel(instance_id)
            case.cancelled_after = len(case.made)
            eventually(lambda: self.runner.get(instance_id).status == "cancelled")

    @invariant()
    def whatever_is_due_was_done_and_nothing_else(self) -> None:
        self.runner.settle()
        for instance_id, case in Clock.cases.items():
            assert [number for number, _ in case.made] == list(range(1, len(case.made) + 1)), "again, or left out"
            began = case.made[0][1]
            hours = case.planned()[0][: case.cancelled_after]
            elapsed = (self.runner.now() - began).total_seconds() / HOUR
            assert len(case.made) == len([hour for hour in hours if hour <= elapsed]), "too few, or too many"
            for hour, (_, moment) in zip(hours, case.made, strict=False):
                assert hour * HOUR <= (moment - began).total_seconds() + 0.01, "too early"
            self.compare_rows(instance_id, case)

    def compare_rows(self, instance_id: str, case: Case) -> None:
        rows = self.tables.rows("SELECT attempts FROM edda_retries WHERE instance_id = :id", id=instance_id)
        is_between = 0 < len(case.made) < len(case.planned()[0]) and case.cancelled_after is None
        assert [row["attempts"] for row in rows] == ([len(case.made)] if is_between else [])

    def teardown(self) -> None:
        self.runner.advance(days=30)
        for instance_id, case in Clock.cases.items():
            hours, end = case.planned()
            assert len(case.made) == len(hours[: case.cancelled_after])
            if case.cancelled_after is None:
                self.judge(instance_id, len(hours), end)
            else:
                assert self.runner.get(instance_id).status == "cancelled"
        assert self.tables.rows("SELECT * FROM edda_retries") == []

    def judge(self, instance_id: str, count: int, end: str) -> None:
        (step,) = self.runner.history(instance_id)
        metadata = step.event_data.get("retry_metadata")
        if end == WORKS:
            assert self.runner.finish(instance_id) == count
        else:
            with pytest.raises(WorkflowFailedError) as caught:
                self.runner.finish(instance_id)
            cause = caught.value.__cause__
            assert type(cause) is (RetryExhaustedError if end == "is exhausted" else ERRORS[end])
        if count > 1 or end == "is exhausted":
            assert metadata is not None
            assert metadata["total_attempts"] == count
            assert len(metadata["errors"]) == (count if end != WORKS else count - 1)
        else:
            assert metadata is None


@pytest.fixture
def runner(database_url: str) -> Iterator[tuple[WorkflowRunner, EddaApp]]:
    app = EddaApp(service_name="retries", db_url=database_url)
    with WorkflowRunner(app, timeout=60) as found:
        yield found, app


def test_attempts_are_made_when_they_are_due_and_counted_whatever_dies_meanwhile(
    runner: tuple[WorkflowRunner, EddaApp], database_url: str
) -> None:
    found, app = runner
    machine = type("Retries", (Retries,), {"runner": found, "app": app, "tables": Tables(database_url)})
    found.start(flow.options(instance_id="first", delay=10_000 * 24 * HOUR), "once")  # makes the tables
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=6, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
