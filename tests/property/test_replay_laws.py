"""Laws of replay over random workflow shapes, on the pure core.

A shape is a tree: calls in sequence, and gathers of branches that are such sequences themselves. It is run as an
event loop would: tasks start in the order in which they are made, a recorded answer is there at once, and what is
not recorded ends in whatever order the timing (drawn too) says.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edda_engine.core.events import EventType, Recorded, StepKey
from edda_engine.core.replay import Branch, Replay
from edda_engine.errors import NonDeterminismError


@dataclass(frozen=True)
class Call:
    name: str
    number: int = 0
    """Which call of the shape this is, whatever it is named: its answer must be its own."""
    has_manual_id: bool = False


@dataclass(frozen=True)
class Gather:
    branches: tuple[tuple[Call | Gather, ...], ...]


Shape = tuple[Call | Gather, ...]

calls = st.builds(Call, st.sampled_from("abc"), has_manual_id=st.booleans())
shapes = st.recursive(
    st.lists(calls, max_size=4).map(tuple),
    lambda inner: st.lists(
        calls | st.builds(Gather, st.lists(inner, max_size=3).map(tuple)), min_size=1, max_size=4
    ).map(tuple),
    max_leaves=10,
).map(lambda shape: numbered(shape, iter(range(1000))))
timings = st.integers(0, 2**32)


def numbered(shape: Shape, numbers: object) -> Shape:
    counter = iter(numbers)  # type: ignore[call-overload]

    def walk(part: Call | Gather) -> Call | Gather:
        if isinstance(part, Call):
            return replace(part, number=next(counter))
        return Gather(tuple(tuple(walk(inner) for inner in branch) for branch in part.branches))

    return tuple(walk(part) for part in shape)


def calls_of(shape: Shape) -> list[Call]:
    return [
        call
        for part in shape
        for call in ([part] if isinstance(part, Call) else [c for branch in part.branches for c in calls_of(branch)])
    ]


def renamed(shape: Shape, number: int, name: str) -> Shape:
    def walk(part: Call | Gather) -> Call | Gather:
        if isinstance(part, Call):
            return replace(part, name=name) if part.number == number else part
        return Gather(tuple(tuple(walk(inner) for inner in branch) for branch in part.branches))

    return tuple(walk(part) for part in shape)


@dataclass
class Simulation:
    """One run of a shape against a history; *in_flight* is what it waits for when nothing can go on."""

    shape: Shape
    past: tuple[Recorded, ...] = ()
    recorded: list[Recorded] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)
    in_flight: dict[StepKey, tuple[Task, Call]] = field(default_factory=dict)
    in_flight_after: list[frozenset[StepKey]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replay = Replay("shape", "i-1", self.past)
        self.ready: deque[Task] = deque()
        self.ready.append(Task(self, self.shape, Branch(), None))
        self.go_on()

    def go_on(self) -> None:
        """Run everything that can run."""
        while self.ready:
            self.ready.popleft().advance()
        self.in_flight_after.append(frozenset(self.in_flight))

    def end_one(self, timing: random.Random) -> None:
        """One of the activities in flight ends and is recorded."""
        key = timing.choice(list(self.in_flight))
        task, call = self.in_flight.pop(key)
        event = {"activity_name": call.name, "result": call.number}
        self.recorded.append(Recorded(key.activity_id, key.branch, key.position, EventType.ACTIVITY_COMPLETED, event))
        self.answered[key.activity_id] = call.number
        self.ready.append(task)
        self.go_on()

    def run(self, timing: int) -> Simulation:
        """To the end."""
        chance = random.Random(timing)
        while self.in_flight:
            self.end_one(chance)
        self.replay.finish()
        return self


class Task:
    def __init__(self, simulation: Simulation, shape: Shape, branch: Branch, parent: Task | None) -> None:
        self.simulation, self.branch, self.parent = simulation, branch, parent
        self.children = 0
        self.steps = self.walk(shape)

    def advance(self) -> None:
        try:
            next(self.steps)
        except StopIteration:
            if self.parent is not None:
                self.parent.children -= 1
                if self.parent.children == 0:
                    self.simulation.ready.append(self.parent)

    def walk(self, shape: Shape) -> Generator[None]:
        for part in shape:
            if isinstance(part, Gather):
                self.children = len(part.branches)
                for inner in part.branches:
                    self.simulation.ready.append(Task(self.simulation, inner, self.branch.child(), self))
                if part.branches:
                    yield
                continue
            key = self.branch.take(part.name, f"manual-{part.number}" if part.has_manual_id else None)
            answer = self.simulation.replay.ask(key, part.name)
            if answer is None:
                self.simulation.in_flight[key] = self, part
                yield
            else:
                assert answer.event_data["activity_name"] == part.name
                self.simulation.answered[key.activity_id] = answer.event_data["result"]


def test_the_simulation_runs_a_known_shape_as_an_event_loop_would() -> None:
    shape = numbered((Call("a"), Gather(((Call("b"), Call("c")), (Call("b"),))), Call("a")), range(10))
    done = Simulation(shape).run(timing=1)
    assert done.answered == {"a:1": 0, "1/b:1": 1, "1/c:1": 2, "2/b:1": 3, "a:2": 4}


@given(shapes, timings)
def test_every_call_is_recorded_once_under_an_id_of_its_own(shape: Shape, timing: int) -> None:
    done = Simulation(shape).run(timing)
    assert sorted(done.answered.values()) == [call.number for call in calls_of(shape)]
    assert len({event.activity_id for event in done.recorded}) == len(calls_of(shape))


@given(shapes, timings, timings)
def test_ids_and_places_do_not_depend_on_timing(shape: Shape, one: int, other: int) -> None:
    first, second = Simulation(shape).run(one), Simulation(shape).run(other)
    assert {(event.activity_id, event.branch, event.position) for event in first.recorded} == {
        (event.activity_id, event.branch, event.position) for event in second.recorded
    }
    assert first.answered == second.answered


@given(shapes, timings)
def test_a_whole_history_answers_everything_and_asks_for_nothing(shape: Shape, timing: int) -> None:
    done = Simulation(shape).run(timing)
    again = Simulation(shape, tuple(done.recorded))
    again.replay.finish()
    assert again.in_flight == {}
    assert again.answered == done.answered
    assert not again.replay.is_replaying


@given(shapes, timings, timings, st.data())
def test_any_prefix_of_a_history_replays_to_where_it_stops_and_goes_on_to_the_same_end(
    shape: Shape, timing: int, other: int, data: st.DataObject
) -> None:
    done = Simulation(shape).run(timing)
    length = data.draw(st.integers(0, len(done.recorded)), label="recorded before the crash")
    again = Simulation(shape, tuple(done.recorded[:length]))
    assert set(again.answered) == {event.activity_id for event in done.recorded[:length]}
    assert frozenset(again.in_flight) == done.in_flight_after[length]
    assert not again.replay.is_replaying
    again.run(other)
    assert again.answered == done.answered


@given(shapes, timings, st.data())
def test_any_order_of_rows_replays_the_same(shape: Shape, timing: int, data: st.DataObject) -> None:
    done = Simulation(shape).run(timing)
    length = data.draw(st.integers(0, len(done.recorded)))
    prefix = done.recorded[:length]
    shuffled = data.draw(st.permutations(prefix))
    one, other = Simulation(shape, tuple(prefix)), Simulation(shape, tuple(shuffled))
    assert one.answered == other.answered
    assert list(one.in_flight) == list(other.in_flight)


@given(shapes, timings, st.data())
def test_replaying_twice_decides_the_same(shape: Shape, timing: int, data: st.DataObject) -> None:
    done = Simulation(shape).run(timing)
    prefix = tuple(done.recorded[: data.draw(st.integers(0, len(done.recorded)))])
    first, second = Simulation(shape, prefix), Simulation(shape, prefix)
    assert first.answered == second.answered
    assert list(first.in_flight) == list(second.in_flight)


@given(shapes, timings, timings, st.data())
def test_several_crashes_in_a_row_end_as_one_run_without_any(
    shape: Shape, timing: int, other: int, data: st.DataObject
) -> None:
    done = Simulation(shape).run(timing)
    past: tuple[Recorded, ...] = ()
    chance = random.Random(other)
    for _ in range(4):
        alive = Simulation(shape, past)
        for _ in range(data.draw(st.integers(0, 3), label="steps until the next crash")):
            if alive.in_flight:
                alive.end_one(chance)
        past += tuple(alive.recorded)
    assert Simulation(shape, past).run(other).answered == done.answered


@given(shapes, timings, st.data())
def test_a_recorded_call_that_is_renamed_is_never_answered_silently(
    shape: Shape, timing: int, data: st.DataObject
) -> None:
    assume(calls_of(shape))
    done = Simulation(shape).run(timing)
    victim = data.draw(st.sampled_from(calls_of(shape)))
    changed = renamed(shape, victim.number, "renamed")
    with pytest.raises(NonDeterminismError) as caught:
        Simulation(changed, tuple(done.recorded)).run(timing)
    assert "renamed" in str(caught.value)


@given(shapes, timings)
def test_a_call_taken_from_the_end_is_noticed_when_the_body_ends(shape: Shape, timing: int) -> None:
    longer = (*shape, Call("last", number=999))
    done = Simulation(longer).run(timing)
    with pytest.raises(NonDeterminismError, match="ended without this step"):
        Simulation(shape, tuple(done.recorded)).run(timing)


@given(shapes, timings)
def test_a_call_added_at_the_end_is_simply_done(shape: Shape, timing: int) -> None:
    done = Simulation(shape).run(timing)
    longer = Simulation((*shape, Call("added", number=999)), tuple(done.recorded))
    assert [key.activity_id for key in longer.in_flight] == ["added:1"]
    assert longer.run(timing).answered == {**done.answered, "added:1": 999}
