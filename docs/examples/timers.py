"""Workflows that sleep: for a while, until a moment, and with a deadline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from edda_engine import SyncWorkflowContext, WorkflowContext, activity, sleep, sleep_until, workflow

TRIAL = timedelta(days=14)
LAST_DAYS = timedelta(days=2)

letters: list[tuple[str, str]] = []


@activity
def write_to(ctx: WorkflowContext, user: str, letter: str) -> None:
    letters.append((user, letter))


# sleep
@workflow
async def trial(ctx: WorkflowContext, user: str) -> str:
    await write_to(ctx, user, "Welcome!")
    await sleep(ctx, TRIAL - LAST_DAYS)
    await write_to(ctx, user, "Two days are left.")
    await sleep(ctx, LAST_DAYS)
    await write_to(ctx, user, "That was it.")
    return "over"


# until
@workflow
def remind(ctx: SyncWorkflowContext, user: str, appointment: datetime) -> None:
    sleep_until(ctx, appointment - timedelta(hours=1))
    write_to(ctx, user, "See you in an hour.")


# morning
def next_morning(now: datetime) -> datetime:
    at_six = now.replace(hour=6, minute=0, second=0, microsecond=0)
    return at_six if at_six > now else at_six + timedelta(days=1)


@workflow
async def order_newspaper(ctx: WorkflowContext, user: str) -> None:
    await sleep_until(ctx, next_morning(ctx.now()))
    await write_to(ctx, user, "Your newspaper.")


# end
NAIVE = datetime(2026, 1, 1, 6)
AWARE = datetime(2026, 1, 1, 6, tzinfo=UTC)


@workflow
async def wake_at_a_naive_time(ctx: WorkflowContext) -> None:
    await sleep_until(ctx, NAIVE)
