"""Laws of replay over random shapes, on the real engine: killed anywhere, it comes to the same; any prefix replays.

Time is skipped, so that a race of days and retries of months take milliseconds. What a body must come to is worked
out beforehand (see ``shapes``), so nothing depends on a run that may itself be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edda_engine import EddaApp
from edda_engine.core.events import GIVEN_UP
from edda_engine.core.status import Status
from edda_engine.runtime.environment import PlainEnvironment
from edda_engine.testing import WorkflowRunner
from edda_engine.testing.recordings import Recording, recording_of
from edda_engine.testing.replaying import Replayed, _on_a_thread, _replay
from tests.property.shapes import Shape, expected, shapes, tried, walk

DECLARED_IN = ("tests.property.shapes",)

TWO_WAYS = [{"first_of": [[["sleep", 0], ["flaky", 1]], [["sleep", 2], ["act", 3]]]}, ["lost", 4]]
RETRIES_SIDE_BY_SIDE = [{"gather": [[["flaky", 0], ["act", 1]], [["never", 2], ["flaky", 3]], [["hopeless", 4]]]}]
LOOP_OF_RACES = [{"twice": [{"first_of": [[["sleep", 0], ["never", 1]], [["sleep", 2], ["lost", 3]]]}, ["chance", 4]]}]
NESTED = [{"gather": [[{"first_of": [[["sleep", 0], ["act", 1]], [["sleep", 2]]]}, ["sleep", 3]], [["flaky", 4]]]}]

kills = st.lists(st.tuples(st.integers(0, 9), st.floats(0.1, 3.9)), max_size=3)
"""After so much time, in powers of four as the leaves take it, the worker is killed."""

few = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def app(database_url: str) -> EddaApp:
    return EddaApp(service_name="shapes", db_url=database_url, max_parked=2)


@pytest.fixture
def runner(app: EddaApp) -> Iterator[WorkflowRunner]:
    with WorkflowRunner(app, timeout=60) as found:
        yield found


@few
@given(shapes, kills)
@example(TWO_WAYS, [(0, 0.5), (1, 1.5)])
@example(RETRIES_SIDE_BY_SIDE, [(0, 0.5), (2, 2.0), (3, 0.5)])
@example(LOOP_OF_RACES, [(0, 1.5), (3, 0.1)])
@example(NESTED, [(2, 0.5)])
def test_a_body_that_is_killed_anywhere_comes_to_what_it_must_and_replays_from_every_step(
    app: EddaApp, runner: WorkflowRunner, shape: Shape, deaths: list[tuple[int, float]]
) -> None:
    way = expected(shape)
    tried.clear()
    began = runner.now()
    instance_id = runner.start(walk, shape)
    for power, fraction in deaths:
        runner.advance(seconds=60.0 * 4.0**power * fraction)
        runner.kill()
    result = runner.finish(instance_id)

    assert result == way.found
    if not deaths:
        assert way.seconds <= (runner.now() - began).total_seconds()
    recording = recording_of(app._database, instance_id)
    assert len({step.activity_id for step in recording.steps}) == len(recording.steps)
    assert all(times == 1 for times in tried.values()), "an attempt that was recorded was made again"
    judge_prefixes(app, recording)


def judge_prefixes(app: EddaApp, recording: Recording) -> None:
    """What a worker would find after a crash behind each of the steps."""
    for length in range(len(recording.steps) + 1):
        prefix = replace(recording, steps=recording.steps[:length], status=Status.RUNNING, output=None)
        first, again = replayed(app, prefix), replayed(app, prefix)
        assert told(first) == told(again), "replaying twice decides differently"
        assert first.mismatch is None
        assert first.changed == [], "it calls with other arguments"
        known = {step.activity_id for step in prefix.steps}
        asked = {call.rpartition("(")[2].rstrip(")") for call in first.beyond}
        assert asked.isdisjoint(known), "it asks for what is recorded"
        if first.has_ended:
            assert (first.error, first.value) == (None, recording.output)
        else:
            assert first.left == [], "what is recorded is behind the point where it stops"
            following = recording.steps[length : length + 1]
            # A race that is not decided yet is where it stops, with whatever was under way in it.
            races = {call for call in asked if "ctx.first_of" in call}
            if following and following[0].event_type not in GIVEN_UP:
                assert races or following[0].activity_id in asked, "it stops before the step that came next"
    assert first.has_ended
    assert first.beyond == []


def replayed(app: EddaApp, recording: Recording) -> Replayed:
    return _on_a_thread(lambda: _replay(recording, database=app._database, environment=PlainEnvironment()))


def told(found: Replayed) -> tuple[Any, ...]:
    return found.has_ended, found.value, found.beyond, [step.activity_id for step in found.left]
