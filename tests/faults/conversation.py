"""A few workflows that wait and talk to each other, and what must be there when they have ended.

An editor publishes news to two readers and to a round that recurs, and jobs to two hands, by its body and by its
activities; a clock sleeps and races. Nobody begins before all have subscribed, so exactly one end is right.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

from sqlalchemy import NullPool, create_engine, text

from edda_engine import (
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    publish,
    receive,
    send_event,
    send_to,
    sleep,
    sleep_until,
    subscribe,
    wait_event,
    workflow,
)  # fmt: skip
from edda_engine.storage.urls import normalized_url

NEWS = ["one", 2, [3], None, "last"]
JOBS = ["dig", "dive", "dart", "draw"]
LISTENERS = ("talk-reader", "talk-plain-reader", "talk-round", "talk-hand", "talk-plain-hand")

_KEEP = text("INSERT INTO kept (who, what) VALUES (:who, :what)")


@activity
def talk_keep(ctx: WorkflowContext, who: str, what: str) -> None:
    """Written through the session: once, whatever happens."""
    ctx.session.execute(_KEEP, {"who": who, "what": what})


@activity
def talk_announce(ctx: WorkflowContext, channel: str, data: Any) -> None:
    """Sends as part of its transaction."""
    ctx.session.execute(_KEEP, {"who": "editor", "what": f"{channel} {data}"})
    publish(ctx, channel, data)


@workflow
async def talk_read(ctx: WorkflowContext) -> list[Any]:
    await subscribe(ctx, "news")
    await send_to(ctx, "talk-editor", ctx.instance_id)
    found: list[Any] = []
    while not found or found[-1] != "last":
        found.append((await receive(ctx, "news")).data)
        await talk_keep(ctx, ctx.instance_id, str(found[-1]))
    return found


@workflow
def talk_read_plainly(ctx: SyncWorkflowContext) -> list[Any]:
    subscribe(ctx, "news")
    send_to(ctx, "talk-editor", ctx.instance_id)
    found: list[Any] = []
    while not found or found[-1] != "last":
        found.append(receive(ctx, "news").data)
        talk_keep(ctx, ctx.instance_id, str(found[-1]))
    return found


@workflow
async def talk_round(ctx: WorkflowContext, found: list[Any]) -> list[Any]:
    """Reads one message a run."""
    if not found:
        await subscribe(ctx, "news")
        await send_to(ctx, "talk-editor", "talk-round")
    found.append((await receive(ctx, "news")).data)
    await talk_keep(ctx, "talk-round", str(found[-1]))
    if found[-1] != "last":
        ctx.recur(found=found)
    return found


@workflow
async def talk_work(ctx: WorkflowContext) -> None:
    """Does two of the four jobs."""
    await subscribe(ctx, "jobs", "competing")
    await send_to(ctx, "talk-editor", ctx.instance_id)
    for _ in range(2):
        job = await receive(ctx, "jobs")
        await talk_keep(ctx, "jobs", job.data)


@workflow
def talk_work_plainly(ctx: SyncWorkflowContext) -> None:
    """Does two of the four jobs."""
    subscribe(ctx, "jobs", "competing")
    send_to(ctx, "talk-editor", ctx.instance_id)
    for _ in range(2):
        job = receive(ctx, "jobs")
        talk_keep(ctx, "jobs", job.data)


@workflow
async def talk_edit(ctx: WorkflowContext) -> list[Any]:
    """By its body and by activities in turn, with pauses in which it is parked."""
    ready = [(await receive(ctx)).data]
    await sleep(ctx, 0.15)
    while len(ready) < len(LISTENERS) - 1:  # the others have come meanwhile: what the loser has taken, it gives back
        _, message = await ctx.first_of(receive(ctx), receive(ctx))
        ready.append(message.data)
    ready.append((await receive(ctx)).data)
    for place, news in enumerate(NEWS):
        if place % 2:
            await talk_announce(ctx, "news", news)
        else:
            await publish(ctx, "news", news)
        if place < len(JOBS):
            await publish(ctx, "jobs", JOBS[place])
        await sleep(ctx, 0.12)
    await send_event("talk.over", "editor", {"news": len(NEWS)}, instance_id="talk-clock")
    return sorted(ready)


@workflow
async def talk_clock(ctx: WorkflowContext) -> list[Any]:
    """Timers in sequence, side by side and in races."""
    await sleep(ctx, 0.0)
    await sleep_until(ctx, ctx.now() + timedelta(seconds=0.15))
    await talk_keep(ctx, "clock", "slept")
    first, _ = await ctx.first_of(wait_event(ctx, "talk.never"), sleep(ctx, 0.12))
    await asyncio.gather(sleep(ctx, 0.15), sleep(ctx, 0.11), talk_keep(ctx, "clock", "meanwhile"))
    second, event = await ctx.first_of(wait_event(ctx, "talk.over"), sleep(ctx, 3600))
    await talk_keep(ctx, "clock", "over")
    return [first, second, event.data]


INSTANCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "talk-reader": (talk_read, {}),
    "talk-plain-reader": (talk_read_plainly, {}),
    "talk-round": (talk_round, {"found": []}),
    "talk-hand": (talk_work, {}),
    "talk-plain-hand": (talk_work_plainly, {}),
    "talk-editor": (talk_edit, {}),
    "talk-clock": (talk_clock, {}),
}
RESULTS = {
    **dict.fromkeys(("talk-reader", "talk-plain-reader", "talk-round"), NEWS),
    **dict.fromkeys(("talk-hand", "talk-plain-hand")),
    "talk-editor": sorted(LISTENERS),
    "talk-clock": [1, 0, {"news": len(NEWS)}],
}
ROWS = Counter(
    [
        *((reader, str(news)) for reader in LISTENERS[:3] for news in NEWS),
        *(("jobs", job) for job in JOBS),
        *(("editor", f"news {news}") for news in NEWS[1::2]),
        *(("clock", what) for what in ("slept", "meanwhile", "over")),
    ]
)


class Kept:
    """A look at the database, by connections that are closed at once."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(normalized_url(url), poolclass=NullPool)
        with self._engine.begin() as conn:
            conn.execute(text("CREATE TABLE kept (who VARCHAR(100), what VARCHAR(100))"))

    def rows(self) -> Counter[tuple[str, str]]:
        """What activities have written."""
        with self._engine.connect() as conn:
            return Counter((row[0], row[1]) for row in conn.execute(text("SELECT who, what FROM kept")))

    def left(self) -> dict[str, int]:
        """What is still there for somebody, or of somebody who waits."""
        tables = ("inbox", "waits", "subscriptions", "retries")
        with self._engine.connect() as conn:
            found = {table: conn.execute(text(f"SELECT count(*) FROM edda_{table}")).scalar_one() for table in tables}
            undelivered = conn.execute(text("SELECT count(*) FROM edda_messages WHERE is_new")).scalar_one()
        return {name: count for name, count in {**found, "undelivered": undelivered}.items() if count}

    def count(self, sql: str) -> int:
        """The answer to one question."""
        with self._engine.connect() as conn:
            return int(conn.execute(text(sql)).scalar_one())

    def assert_exactly_once(self) -> None:
        """Every row is there once, and nothing is left over."""
        assert self.rows() == ROWS
        assert self.left() == {}
