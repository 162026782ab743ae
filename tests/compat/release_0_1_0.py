"""Workflows of release 0.1.0, never to be changed: their recorded histories must replay for ever.

``record_0_1_0.py`` made the recordings in ``histories/``; ``test_histories.py`` replays them.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel

from edda_engine import (
    RetryExhaustedError,
    RetryPolicy,
    SyncWorkflowContext,
    TerminalError,
    WorkflowContext,
    activity,
    workflow,
)

PREFIX = "compat-0.1.0"
attempts_made: list[str] = []
"""One name for each attempt that really ran; empty after a replay of a whole history."""


class CardRefused(TerminalError):
    def __init__(self, card: str, *, code: int) -> None:
        super().__init__(f"card {card} was refused")
        self.card, self.code = card, code


class Line(BaseModel):
    sku: str
    price: Decimal


class Receipt(BaseModel):
    total: Decimal
    lines: list[Line]
    at: datetime
    tags: tuple[str, ...]
    failures: list[str]
    number: str


@activity(name=f"{PREFIX}.find_line")
def find_line(ctx: WorkflowContext, number: int) -> Line:
    attempts_made.append("find_line")
    return Line(sku=f"sku-{number}", price=Decimal(number) / 4)


@activity(name=f"{PREFIX}.tag")
async def tag(ctx: WorkflowContext, words: list[str]) -> tuple[str, ...]:
    attempts_made.append("tag")
    return tuple(words)


@activity(name=f"{PREFIX}.flaky", retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.01))
def flaky(ctx: WorkflowContext) -> int:
    attempts_made.append("flaky")
    if ctx.attempt < 3:
        raise ConnectionError(f"attempt {ctx.attempt}")
    return ctx.attempt


@activity(name=f"{PREFIX}.broken", retry_policy=RetryPolicy(max_attempts=2, initial_interval=0.01))
def broken(ctx: WorkflowContext) -> None:
    attempts_made.append("broken")
    raise LookupError("always")


@activity(name=f"{PREFIX}.refuse")
def refuse(ctx: WorkflowContext, card: str) -> None:
    attempts_made.append("refuse")
    raise CardRefused(card, code=51)


@workflow(name=f"{PREFIX}.asynchronous")
async def asynchronous(ctx: WorkflowContext, count: int, words: list[str]) -> Receipt:
    first = await find_line(ctx, 1)
    lines = await asyncio.gather(*(find_line(ctx, number) for number in range(2, 2 + count)))
    at = ctx.now()

    async def branch(word: str) -> tuple[str, ...]:
        found = await tag(ctx, [word])
        return found + await tag(ctx, [word.upper()])

    branches = await asyncio.gather(*(branch(word) for word in words))
    failures = []
    try:
        await broken(ctx)
    except RetryExhaustedError as error:
        failures.append(f"{error.attempts} {type(error.__cause__).__name__} {error.__cause__}")
    try:
        await refuse(ctx, "4242", activity_id="the-refusal")
    except CardRefused as error:
        failures.append(f"{error.card} {error.code}")
    tries = await flaky(ctx)
    return Receipt(
        total=sum((line.price for line in (first, *lines)), Decimal(tries)),
        lines=[first, *lines],
        at=at,
        tags=sum(branches, ()),
        failures=failures,
        number=f"{ctx.uuid4()} {ctx.random()}",
    )


@workflow(name=f"{PREFIX}.plain")
def plain(ctx: SyncWorkflowContext, count: int, words: list[str]) -> Receipt:
    first = find_line(ctx, 1)
    lines = ctx.gather(lambda: find_line(ctx, 2), lambda: find_line(ctx, 1 + count))
    at = ctx.now()
    failures = []
    try:
        refuse(ctx, "1111")
    except TerminalError as error:
        failures.append(str(error))
    try:
        broken(ctx)
    except RetryExhaustedError as error:
        failures.append(f"{error.attempts} {type(error.__cause__).__name__}")
    tries = flaky(ctx)
    return Receipt(
        total=sum((line.price for line in (first, *lines)), Decimal(tries)),
        lines=[first, *lines],
        at=at,
        tags=tag(ctx, words),
        failures=failures,
        number=f"{ctx.uuid4()} {ctx.random()}",
    )


RECORDED = {"asynchronous": asynchronous, "plain": plain}
