"""Bodies of random shape that wait, retry, branch, loop and race; and what each must come to, however it got there.

A shape is a tree. Each leaf that takes time has a number of its own, and takes four to the power of it: the times of
two different ways through a shape are never the same, so it is certain who wins each race. :func:`expected` works it
out with nothing but this file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from hypothesis import strategies as st

from edda_engine import (
    RetryExhaustedError,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    activity,
    sleep,
    wait_event,
    workflow,
)

Shape = list[Any]

MOST_LEAVES = 9
_UNIT_SECONDS = 60.0
LEAVES = ("act", "act", "sleep", "flaky", "flaky", "lost", "hopeless", "never", "chance")


def seconds_of(number: int) -> float:
    return _UNIT_SECONDS * 4.0**number


# Drawing.


def _numbered(drawn: Any, numbers: Callable[[], int]) -> Any:
    match drawn:
        case str():
            return [drawn, numbers()]
        case {"first_of": branches}:
            # Each takes some time, so that no two end at once.
            return {"first_of": [[["sleep", numbers()], *_numbered(branch, numbers)] for branch in branches]}
        case dict():
            return {kind: _numbered(inner, numbers) for kind, inner in drawn.items()}
        case _:
            return [_numbered(part, numbers) for part in drawn]


def _count(shape: Any) -> int:
    match shape:
        case [str(), int()]:
            return 1
        case dict():
            return sum(_count(inner) for inner in shape.values())
        case _:
            return sum(_count(part) for part in shape)


def _two_or_three(inner: Any) -> Any:
    return st.lists(inner, min_size=2, max_size=3)


_leaves = st.lists(st.sampled_from(LEAVES), min_size=1, max_size=3)
shapes = (
    st.recursive(
        _leaves,
        lambda inner: st.lists(
            st.sampled_from(LEAVES)
            | st.fixed_dictionaries({"gather": _two_or_three(inner)})
            | st.fixed_dictionaries({"first_of": _two_or_three(inner)})
            | st.fixed_dictionaries({"twice": inner})
            | st.fixed_dictionaries({"if": st.lists(inner, min_size=2, max_size=2)}),
            min_size=1,
            max_size=3,
        ),
        max_leaves=7,
    )
    .map(lambda drawn: _numbered(drawn, lambda numbers=count(): next(numbers)))  # type: ignore[misc]
    .filter(lambda shape: _count(shape) <= MOST_LEAVES)
)


# What is run.


@activity(name="shapes.act")
async def act(ctx: WorkflowContext, number: int) -> int:
    return number


@activity(name="shapes.hopeless")
def hopeless(ctx: WorkflowContext, number: int) -> None:
    raise TerminalError(f"hopeless {number}")


tried: dict[str, int] = {}
"""How often an attempt was made, by instance, activity and number of the attempt; also of those that a kill undid."""


def _failing(number: int, *, succeeds: bool) -> Any:
    policy = RetryPolicy(
        max_attempts=2,
        initial_interval=seconds_of(number),
        max_interval=1e9,
        max_duration=None,
        backoff_coefficient=1.0,
    )

    @activity(name=f"shapes.{'flaky' if succeeds else 'lost'}_{number}", retry_policy=policy)
    def attempt(ctx: WorkflowContext, number: int) -> int:
        key = f"{ctx.instance_id} {ctx.activity_id} {ctx.attempt}"
        tried[key] = tried.get(key, 0) + 1
        if ctx.attempt < 2 or not succeeds:
            raise ConnectionError(f"attempt {ctx.attempt} of {number}")
        return number

    return attempt


flaky = [_failing(number, succeeds=True) for number in range(MOST_LEAVES * 2)]
lost = [_failing(number, succeeds=False) for number in range(MOST_LEAVES * 2)]


@workflow(name="shapes.walk")
async def walk(ctx: WorkflowContext, shape: Shape) -> Shape:
    return await _walked(ctx, shape)


async def _walked(ctx: WorkflowContext, shape: Shape) -> Shape:
    found: Shape = []
    for part in shape:
        match part:
            case {"gather": branches}:
                found.append(await asyncio.gather(*(_walked(ctx, branch) for branch in branches)))
            case {"first_of": branches}:
                index, value = await ctx.first_of(*(_walked(ctx, branch) for branch in branches))
                found.append([index, value])
            case {"twice": inner}:
                found += [await _walked(ctx, inner) for _ in range(2)]
            case {"if": ways}:
                found.append(await _walked(ctx, ways[await act(ctx, len(found)) % 2]))
            case [kind, number]:
                found.append(await _leaf(ctx, kind, number))
    return found


async def _leaf(ctx: WorkflowContext, kind: str, number: int) -> Any:
    match kind:
        case "act":
            ways = (lambda call: call, asyncio.create_task, asyncio.shield)
            return await ways[number % 3](act(ctx, number))
        case "sleep":
            await sleep(ctx, seconds_of(number))
            return "slept"
        case "flaky":
            return await flaky[number](ctx, number)
        case "lost":
            try:
                return await lost[number](ctx, number)
            except RetryExhaustedError as error:
                return f"{error.attempts} attempts, {type(error.__cause__).__name__}"
        case "hopeless":
            try:
                return await hopeless(ctx, number)
            except TerminalError as error:
                return str(error)
        case "never":
            try:
                return (await wait_event(ctx, "shapes.never", timeout_seconds=seconds_of(number))).data
            except TimeoutError:
                return "timeout"
        case _:
            # Different for each instance, and the same for each replay of one.
            return "chance" if await act(ctx, int(ctx.random() * 2) + int(ctx.uuid4().int % 2)) < 3 else ctx.now()


# What it must come to.


@dataclass
class Way:
    """A way through a shape: what it gives, and how long it takes."""

    found: Shape
    seconds: float


def expected(shape: Shape) -> Way:
    """By the meaning of the words alone."""
    way = Way([], 0.0)
    for part in shape:
        match part:
            case {"gather": branches}:
                ways = [expected(branch) for branch in branches]
                way.found.append([each.found for each in ways])
                way.seconds += max(each.seconds for each in ways)
            case {"first_of": branches}:
                ways = [expected(branch) for branch in branches]
                first = min(range(len(ways)), key=lambda index: ways[index].seconds)
                way.found.append([first, ways[first].found])
                way.seconds += ways[first].seconds
            case {"twice": inner}:
                for _ in range(2):
                    each = expected(inner)
                    way.found.append(each.found)
                    way.seconds += each.seconds
            case {"if": ways_to_go}:
                each = expected(ways_to_go[len(way.found) % 2])
                way.found.append(each.found)
                way.seconds += each.seconds
            case [kind, number]:
                way.found.append(_said(kind, number))
                way.seconds += seconds_of(number) if kind in ("sleep", "flaky", "lost", "never") else 0.0
    return way


def _said(kind: str, number: int) -> Any:
    words = {
        "sleep": "slept",
        "lost": "2 attempts, ConnectionError",
        "hopeless": f"hopeless {number}",
        "never": "timeout",
        "chance": "chance",
    }
    return words.get(kind, number)
