"""Retry policies, and what a workflow sees when they end."""

from __future__ import annotations

import asyncio

from edda_engine import (
    RetryExhaustedError,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    activity,
    workflow,
)

SOON = RetryPolicy(max_attempts=3, initial_interval=0.01)


class CardRefusedError(TerminalError):
    """No second try will change the bank's mind."""


# policy
@activity(retry_policy=SOON)
def flaky(ctx: WorkflowContext) -> int:
    if ctx.attempt < 3:
        raise ConnectionError("try again")
    return ctx.attempt


# exhausted
@activity(retry_policy=SOON)
def broken(ctx: WorkflowContext) -> None:
    raise ConnectionError("nobody answers")


# terminal
@activity
def charge(ctx: WorkflowContext) -> None:
    raise CardRefusedError("no money")


# types
@activity(retry_policy=RetryPolicy(initial_interval=0.01, retryable_error_types=(ConnectionError,)))
def parse(ctx: WorkflowContext, line: str) -> int:
    return int(line)


# timeout
@activity(retry_policy=RetryPolicy(max_attempts=1), timeout_seconds=0.05)
async def slow(ctx: WorkflowContext) -> None:
    await asyncio.sleep(60)


# workflow
@workflow
async def careful(ctx: WorkflowContext) -> list[str]:
    story = [f"flaky needed {await flaky(ctx)} attempts"]
    try:
        await broken(ctx)
    except RetryExhaustedError as error:
        story.append(f"broken failed {error.attempts} times with {type(error.__cause__).__name__}")
    try:
        await charge(ctx)
    except CardRefusedError as error:
        story.append(f"charge said {error}")
    try:
        await parse(ctx, "twelve")
    except ValueError:
        story.append("parse was not tried again")
    try:
        await slow(ctx)
    except RetryExhaustedError as error:
        story.append(f"slow ended with {type(error.__cause__).__name__}")
    return story
