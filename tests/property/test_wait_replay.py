"""Laws of replay over random bodies that wait and talk, run by the engine itself on both databases.

A body is drawn: sleeps, receives, sends, activities, in sequence, in gathers and in races. It is run to its end; then
its history is cut off somewhere, as a crash would have left it, what it had received after that is sent again, and it
goes on. What is recorded stays as it is, and nothing is received twice or lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edda_engine import EddaApp, WorkflowContext, activity, receive, send_to, sleep, wait_event, workflow
from tests.integration.engines import Tables, edda, until
from tests.integration.talks import make_due

Shape = list[Any]

leaves = st.sampled_from(["sleep", "nap", "receive", "receive", "send", "act", "task", "never"])
shapes = st.recursive(
    st.lists(leaves, min_size=1, max_size=4),
    lambda inner: st.lists(
        leaves | st.fixed_dictionaries({"gather": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"first_of": st.lists(inner, min_size=1, max_size=3)}),
        min_size=1, max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


@activity
async def replay_act(ctx: WorkflowContext) -> str:
    return "act"


@workflow
async def replay_shape(ctx: WorkflowContext, shape: Shape) -> Shape:
    return await walked(ctx, shape)


async def walked(ctx: WorkflowContext, shape: Shape) -> Shape:
    found: Shape = []
    for part in shape:
        match part:
            case {"gather": branches}:
                found.append(await asyncio.gather(*(walked(ctx, branch) for branch in branches)))
            case {"first_of": branches}:
                index, value = await ctx.first_of(*(walked(ctx, branch) for branch in branches), walked(ctx, ["nap"]))
                found.append([index, value])
            case _:
                found.append(await done(ctx, part))
    return found


async def done(ctx: WorkflowContext, part: str) -> Any:
    match part:
        case "receive":
            return (await receive(ctx)).data
        case "send":
            await send_to(ctx, "sink", "sent")
        case "act":
            return await replay_act(ctx)
        case "task":
            return await asyncio.create_task(replay_act(ctx))
        case "never":
            try:
                await wait_event(ctx, "replay.never", timeout_seconds=0)
            except TimeoutError:
                return "timeout"
        case _:
            await sleep(ctx, 0.0 if part == "sleep" else 0.03)
    return part


def receives(shape: Shape) -> int:
    """How many messages a body can ask for."""
    inner: list[Shape] = [
        branch for part in shape if isinstance(part, dict) for branches in part.values() for branch in branches
    ]
    return shape.count("receive") + sum(receives(branch) for branch in inner)


class Replays:
    """One instance at a time: run, cut back, run again."""

    def __init__(self, app: EddaApp, tables: Tables) -> None:
        self.app, self.tables = app, tables

    def history(self, instance_id: str) -> dict[str, str]:
        rows = self.tables.rows(
            "SELECT activity_id, event_type, CAST(event_data AS TEXT) AS event FROM edda_history"
            " WHERE instance_id = :id ORDER BY created_at, seq",
            id=instance_id,
        )
        return {row["activity_id"]: f"{row['event_type']} {row['event']}" for row in rows}

    async def result(self, instance_id: str) -> Any:
        """Of the last time that it ran: what is announced of an end is true for ever, but for those who undo ends."""
        await until(lambda: self.tables.status(instance_id) == "completed")
        return await self.app.result(instance_id, timeout=20)

    async def cut(self, instance_id: str, length: int, count: int) -> dict[str, str]:
        """Forget all but the first steps, and send again what they have not received; the steps that are left."""
        steps = self.history(instance_id)
        left = dict(list(steps.items())[:length])
        for activity_id in steps.keys() - left.keys():
            self.tables.execute(
                "DELETE FROM edda_history WHERE instance_id = :id AND activity_id = :step",
                id=instance_id,
                step=activity_id,
            )
        received = {number for number in range(count) for step in left.values() if f'"message {number}"' in step}
        self.tables.execute(
            "UPDATE edda_instances SET status = 'waiting_for_timer', output = NULL, completed_at = NULL"
            " WHERE instance_id = :id",
            id=instance_id,
        )
        for number in sorted(set(range(count)) - received):
            await self.app.send_to(instance_id, f"message {number}")
        make_due(self.tables, instance_id)
        return left


def messages_in(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for part in value for found in messages_in(part)]
    return [value] if isinstance(value, str) and value.startswith("message ") else []


def test_any_part_of_a_past_is_repeated_as_it_was_and_goes_on_to_one_end(database_url: str) -> None:
    loop = asyncio.new_event_loop()
    app = edda(database_url, poll_interval_seconds=0.05)
    loop.run_until_complete(app.initialize())
    replays = Replays(app, Tables(database_url))

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(shapes, st.integers(0, 12))
    def law(shape: Shape, length: int) -> None:
        loop.run_until_complete(judged(replays, shape, length))

    try:
        law()
    finally:
        loop.run_until_complete(app.shutdown())
        loop.close()


async def judged(replays: Replays, shape: Shape, length: int) -> None:
    count = receives(shape)
    instance_id = await replays.app.start(replay_shape, shape)
    for number in range(count):
        await replays.app.send_to(instance_id, f"message {number}")
    first = await replays.result(instance_id)
    whole = replays.history(instance_id)

    assert replays.history(instance_id) == whole
    await replays.cut(instance_id, len(whole), count)
    assert await replays.result(instance_id) == first
    assert replays.history(instance_id) == whole, "a whole history asks for nothing"

    left = await replays.cut(instance_id, length, count)
    second = await replays.result(instance_id)
    now = replays.history(instance_id)
    assert {step: now[step] for step in left} == left, "what is recorded stays as it is"
    assert len(set(messages_in(second))) == len(messages_in(second)), "received twice"

    await replays.cut(instance_id, len(now), count)
    assert await replays.result(instance_id) == second
    assert replays.history(instance_id) == now, "replaying twice decides the same"
