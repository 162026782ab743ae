"""After a restart the body is repeated against its history: the same answers, and nothing done twice."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, TypedDict
from uuid import UUID

import pytest
from pydantic import BaseModel

from edda_engine import (
    PayloadError,
    RetryExhaustedError,
    RetryPolicy,
    SyncWorkflowContext,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from edda_engine.errors import ActivityTimeoutError
from tests.integration.engines import NEVER_AGAIN, SOON, Gate, Tables, edda, interrupted_at, until


class Line(BaseModel):
    sku: str
    price: Decimal


@dataclass
class Stock:
    sku: str
    left: int


class Colour(Enum):
    RED = "red"


class Address(TypedDict):
    street: str


class OutOfStock(Exception):
    def __init__(self, sku: str) -> None:
        super().__init__(sku)
        self.sku, self.code, self.price, self.reply = sku, None, Decimal("1.50"), object()


async def run_in_two_lives(url: str, gate: Gate, started: Any, *args: Any) -> Any:
    """Start *started*, stop the worker at the gate, let a second one finish; returns the result."""
    first = edda(url)
    await first.initialize()
    instance_id = await first.start(started, *args)
    await interrupted_at(gate, first)
    async with edda(url) as second:
        return await second.result(instance_id, timeout=20)


def test_activities_recorded_before_a_restart_are_not_run_again(database_url: str) -> None:
    runs: list[str] = []
    gate = Gate()

    @activity
    def first_step(ctx: WorkflowContext) -> str:
        runs.append("first")
        return "one"

    @activity
    def second_step(ctx: WorkflowContext) -> str:
        runs.append("second")
        gate.hold()
        return "two"

    @workflow
    async def two_steps(ctx: WorkflowContext) -> list[str]:
        return [await first_step(ctx), await second_step(ctx)]

    assert asyncio.run(run_in_two_lives(database_url, gate, two_steps)) == ["one", "two"]
    assert runs == ["first", "second", "second"]


def test_a_plain_body_is_replayed_too(database_url: str) -> None:
    runs: list[str] = []
    gate = Gate()

    @activity
    def first_step(ctx: WorkflowContext) -> str:
        runs.append("first")
        return "one"

    @activity
    async def second_step(ctx: WorkflowContext) -> str:
        runs.append("second")
        await gate.hold_async()
        return "two"

    @workflow
    def two_steps(ctx: SyncWorkflowContext) -> list[str]:
        return [first_step(ctx), second_step(ctx)]

    assert asyncio.run(run_in_two_lives(database_url, gate, two_steps)) == ["one", "two"]
    assert runs == ["first", "second", "second"]


def test_a_worker_that_lost_its_lease_in_the_middle_leaves_the_rest_to_another(database_url: str) -> None:
    tables = Tables(database_url)
    gate = Gate()
    attempts: list[str] = []

    @activity
    def before(ctx: WorkflowContext) -> int:
        attempts.append("before")
        return 1

    @activity
    def at_the_gate(ctx: WorkflowContext) -> str:
        attempts.append(ctx.worker_id)
        gate.hold()
        return ctx.worker_id

    @workflow
    async def interrupted(ctx: WorkflowContext) -> str:
        await before(ctx)
        return await at_the_gate(ctx)

    async def main() -> tuple[str, str, str]:
        async with edda(database_url, max_running=1) as first:
            instance_id = await first.start(interrupted)
            await gate.is_reached()
            tables.take_away(instance_id)
            async with edda(database_url) as second:
                # The first one has no room until it notices, so the second one takes it.
                tables.give_back(instance_id)
                await until(lambda: len(attempts) == 3)
                gate.open()
                return await second.result(instance_id, timeout=20), first.worker_id, second.worker_id

    result, first_id, second_id = asyncio.run(main())
    assert result == second_id
    assert attempts == ["before", first_id, second_id]


def test_now_uuid4_and_random_are_the_same_on_replay(database_url: str) -> None:
    seen: list[tuple[datetime, UUID, float, datetime]] = []
    gate = Gate()

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def values(ctx: WorkflowContext) -> None:
        found = (ctx.now(), ctx.uuid4(), ctx.random(), ctx.now())
        seen.append(found)
        await wait_here(ctx)

    asyncio.run(run_in_two_lives(database_url, gate, values))
    live, replayed = seen
    assert replayed == live
    assert live[0].tzinfo is UTC


def test_two_values_of_one_run_and_of_two_instances_differ(database_url: str) -> None:
    @workflow
    async def values(ctx: WorkflowContext) -> list[str]:
        return [str(ctx.uuid4()), str(ctx.uuid4()), str(ctx.random()), str(ctx.random())]

    async def main() -> list[str]:
        async with edda(database_url) as app:
            ids = [await values.start(), await values.start()]
            return [value for each in ids for value in await app.result(each, timeout=20)]

    found = asyncio.run(main())
    assert len(set(found)) == 8
    assert UUID(found[0]).version == 4
    assert 0 <= float(found[2]) < 1


def test_is_replaying_is_true_only_while_answers_come_from_history(database_url: str) -> None:
    seen: list[list[bool]] = []
    gate = Gate()

    @activity
    def quick(ctx: WorkflowContext) -> bool:
        return ctx.is_replaying

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def watches(ctx: WorkflowContext) -> bool:
        flags: list[bool] = []
        seen.append(flags)
        flags.append(ctx.is_replaying)
        in_activity = await quick(ctx)
        flags.append(ctx.is_replaying)
        await wait_here(ctx)
        flags.append(ctx.is_replaying)
        return in_activity

    assert asyncio.run(run_in_two_lives(database_url, gate, watches)) is False
    assert seen == [[False, False], [True, False, False]]


def test_the_logger_of_a_body_is_silent_while_replaying(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="edda.workflow.talks")
    gate = Gate()

    @activity
    def wait_here(ctx: WorkflowContext, hold: bool) -> None:
        if hold:
            gate.hold()

    @workflow
    async def talks(ctx: WorkflowContext) -> str:
        ctx.logger.info("begun")
        await wait_here(ctx, False)
        ctx.logger.info("half way")
        await wait_here(ctx, True)
        ctx.logger.info("done")
        return ctx.instance_id

    instance_id = asyncio.run(run_in_two_lives(database_url, gate, talks))
    told = [record for record in caplog.records if record.name == "edda.workflow.talks"]
    # "half way" is said by the first life after its last answer, and by the second one when its answers have ended.
    assert [record.getMessage() for record in told] == ["begun", "half way", "half way", "done"]
    assert {vars(record)["instance_id"] for record in told} == {instance_id}


def test_exceptions_are_caught_by_the_same_type_after_replay(database_url: str) -> None:
    gate = Gate()
    seen: list[list[str]] = []

    @activity(retry_policy=NEVER_AGAIN)
    def fail(ctx: WorkflowContext, how: str) -> None:
        raise {"terminal": TerminalError("final"), "own": OutOfStock("A1"), "value": ValueError("bad")}[how]

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def catches(ctx: WorkflowContext) -> None:
        caught: list[str] = []
        seen.append(caught)
        try:
            await fail(ctx, "terminal")
        except TerminalError as error:
            caught.append(repr(error))
        for how in ("own", "value"):
            try:
                await fail(ctx, how)
            except RetryExhaustedError as error:
                caught.append(f"{error.attempts} {error.errors} {error.__cause__!r}")
                if isinstance(error.__cause__, OutOfStock):
                    caught.append(repr(vars(error.__cause__)))
        await wait_here(ctx)

    asyncio.run(run_in_two_lives(database_url, gate, catches))
    live, replayed = seen
    assert replayed == live
    assert live == [
        "TerminalError('final')",
        "1 ['OutOfStock: A1'] OutOfStock('A1')",
        "{'sku': 'A1', 'code': None, 'price': Decimal('1.50'), 'reply': <object>}",
        "1 ['ValueError: bad'] ValueError('bad')",
    ]


def test_a_non_retryable_error_keeps_its_type_after_replay(database_url: str) -> None:
    gate = Gate()
    seen: list[str] = []

    @activity(retry_policy=RetryPolicy(non_retryable_error_types=[OutOfStock]))
    def reserve(ctx: WorkflowContext) -> None:
        raise OutOfStock("B2")

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    def catches(ctx: SyncWorkflowContext) -> None:
        try:
            reserve(ctx)
        except OutOfStock as error:
            seen.append(error.sku)
        wait_here(ctx)

    asyncio.run(run_in_two_lives(database_url, gate, catches))
    assert seen == ["B2", "B2"]


def test_a_timeout_is_caught_as_a_timeout_after_replay(database_url: str) -> None:
    gate = Gate()
    seen: list[tuple[type, str]] = []

    @activity(retry_policy=NEVER_AGAIN, timeout_seconds=0.05)
    async def slow(ctx: WorkflowContext) -> None:
        await asyncio.Event().wait()

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def catches(ctx: WorkflowContext) -> None:
        try:
            await slow(ctx)
        except RetryExhaustedError as error:
            seen.append((type(error.__cause__), str(error.__cause__)))
        await wait_here(ctx)

    asyncio.run(run_in_two_lives(database_url, gate, catches))
    live, replayed = seen
    assert live[0] is ActivityTimeoutError
    assert replayed == live


@pytest.mark.parametrize("finishes_first", [1, 2])
def test_gather_gives_each_call_its_own_answer_whichever_finished_first(database_url: str, finishes_first: int) -> None:
    gate = Gate()
    runs: list[int] = []

    @activity
    def number(ctx: WorkflowContext, which: int) -> int:
        runs.append(which)
        if which != finishes_first:
            gate.hold()
        return which

    @workflow
    async def together(ctx: WorkflowContext) -> list[int]:
        return list(await asyncio.gather(number(ctx, 1), number(ctx, 2)))

    async def main() -> list[int]:
        tables = Tables(database_url)
        first = edda(database_url)
        await first.initialize()
        instance_id = await first.start(together)
        await until(lambda: tables.value("SELECT count(*) FROM edda_history") == 1)
        await interrupted_at(gate, first)
        async with edda(database_url) as second:
            found: list[int] = await second.result(instance_id, timeout=20)
            return found

    assert asyncio.run(main()) == [1, 2]
    assert sorted(runs) == sorted([1, 2, 3 - finishes_first])


def test_branches_of_several_steps_replay_whatever_their_timing_was(database_url: str) -> None:
    gate = Gate()
    runs: list[str] = []

    @activity
    def step(ctx: WorkflowContext, name: str) -> str:
        runs.append(name)
        if name == "slow-1":
            gate.hold()
        return name

    @workflow
    async def branches(ctx: WorkflowContext) -> list[list[str]]:
        async def branch(name: str) -> list[str]:
            return [await step(ctx, f"{name}-{number}") for number in (1, 2, 3)]

        return list(await asyncio.gather(branch("slow"), branch("fast")))

    async def main() -> Any:
        tables = Tables(database_url)
        first = edda(database_url)
        await first.initialize()
        instance_id = await first.start(branches)
        await until(lambda: tables.value("SELECT count(*) FROM edda_history") == 3)
        await interrupted_at(gate, first)
        async with edda(database_url) as second:
            return await second.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [["slow-1", "slow-2", "slow-3"], ["fast-1", "fast-2", "fast-3"]]
    assert sorted(runs) == ["fast-1", "fast-2", "fast-3", "slow-1", "slow-1", "slow-2", "slow-3"]


def test_results_have_the_types_of_their_annotations_live_and_on_replay(database_url: str) -> None:
    gate = Gate()
    seen: list[list[Any]] = []

    @activity
    def lines(ctx: WorkflowContext) -> list[Line]:
        return [Line(sku="A", price=Decimal("1.10"))]

    @activity
    def stocks(ctx: WorkflowContext) -> dict[str, Stock]:
        return {"A": Stock("A", 3)}

    @activity
    def pair(ctx: WorkflowContext) -> tuple[Decimal, datetime]:
        return Decimal("0.30"), datetime(2024, 2, 29, 12, tzinfo=UTC)

    @activity
    def others(ctx: WorkflowContext) -> tuple[bytes, set[int], Colour, UUID, Address, Line | None]:
        return b"\x00\xff", {1, 2}, Colour.RED, UUID(int=7), {"street": "Ringvägen 1"}, None

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def collects(ctx: WorkflowContext) -> None:
        seen.append([await lines(ctx), await stocks(ctx), await pair(ctx), await others(ctx)])
        await wait_here(ctx)

    asyncio.run(run_in_two_lives(database_url, gate, collects))
    expected = [
        [Line(sku="A", price=Decimal("1.10"))],
        {"A": Stock("A", 3)},
        (Decimal("0.30"), datetime(2024, 2, 29, 12, tzinfo=UTC)),
        (b"\x00\xff", {1, 2}, Colour.RED, UUID(int=7), {"street": "Ringvägen 1"}, None),
    ]
    assert seen == [expected, expected]


def test_an_unannotated_tuple_is_a_list_live_as_on_replay(database_url: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    @activity
    def pair(ctx: WorkflowContext):  # type: ignore[no-untyped-def]
        return (1, 2)

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def collects(ctx: WorkflowContext) -> None:
        seen.append(await pair(ctx))
        await wait_here(ctx)

    asyncio.run(run_in_two_lives(database_url, gate, collects))
    assert seen == [[1, 2], [1, 2]]


def test_arguments_and_the_result_of_a_workflow_are_typed(database_url: str) -> None:
    @workflow
    async def typed(
        ctx: WorkflowContext, line: Line, colour: Colour, stock: Stock | None = None
    ) -> tuple[Line, Colour]:
        assert isinstance(line, Line)
        assert colour is Colour.RED
        assert stock == Stock("A", 1)
        return line, colour

    async def main() -> Any:
        async with edda(database_url) as app:
            line = Line(sku="A", price=Decimal("2.50"))
            return await app.result(await typed.start(line, Colour.RED, stock=Stock("A", 1)), timeout=20)

    assert asyncio.run(main()) == (Line(sku="A", price=Decimal("2.50")), Colour.RED)


@pytest.mark.parametrize(
    ("value", "path"),
    [({"a": [1, object()]}, r"\$\['a'\]\[1\]"), ("a\0b", r"\$"), (float("nan"), r"\$"), ({1: "a"}, r"\$")],
    ids=["object", "nul", "nan", "integer-key"],
)
def test_a_result_without_a_json_form_fails_once_and_says_where_it_is(database_url: str, value: Any, path: str) -> None:
    runs: list[int] = []

    @activity(retry_policy=SOON)
    def unstorable(ctx: WorkflowContext) -> Any:
        runs.append(ctx.attempt)
        return value

    @workflow
    async def stores(ctx: WorkflowContext) -> None:
        await unstorable(ctx)

    async def main() -> None:
        async with edda(database_url) as app:
            await app.result(await stores.start(), timeout=20)

    with pytest.raises(WorkflowFailedError, match=rf"activity 'unstorable' \(unstorable:1\): the value at {path}") as e:
        asyncio.run(main())
    assert isinstance(e.value.__cause__, PayloadError)
    assert runs == [1]


def test_an_outer_handler_catches_a_payload_error_of_its_activity(database_url: str) -> None:
    @activity
    def unstorable(ctx: WorkflowContext) -> Any:
        return object()

    @workflow
    async def goes_on(ctx: WorkflowContext) -> str:
        try:
            await unstorable(ctx)
        except PayloadError as error:
            return error.path
        return "stored"

    async def main() -> Any:
        async with edda(database_url) as app:
            return await app.result(await goes_on.start(), timeout=20)

    assert asyncio.run(main()) == "$"
