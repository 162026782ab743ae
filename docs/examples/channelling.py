"""Channels: news for all, jobs for one of many, and answers to whoever asked."""

from __future__ import annotations

from typing import Any

from edda_engine import (
    MessageTimeoutError,
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    publish,
    receive,
    send_to,
    subscribe,
    workflow,
)


# broadcast
@workflow
async def follow(ctx: WorkflowContext, count: int) -> list[str]:
    await subscribe(ctx, "prices")
    return [(await receive(ctx, "prices")).data["item"] for _ in range(count)]


@workflow
async def announce(ctx: WorkflowContext, items: list[str]) -> None:
    for item in items:
        await publish(ctx, "prices", {"item": item}, metadata={"currency": "EUR"})


# activity
@activity
def change_price(ctx: WorkflowContext, item: str) -> None:
    # ctx.session.execute(...)
    publish(ctx, "prices", {"item": item})  # sent with what the activity has written, or not at all


@workflow
async def reprice(ctx: WorkflowContext, item: str) -> None:
    await change_price(ctx, item)


# competing
@activity
def resize(ctx: WorkflowContext, image: str) -> str:
    return f"{image} is small"


@workflow
def resizer(ctx: SyncWorkflowContext) -> list[str]:
    subscribe(ctx, "images", mode="competing")
    done: list[str] = []
    while True:
        try:
            message = receive(ctx, "images", timeout_seconds=1)
        except MessageTimeoutError:
            return done  # nothing to do any more
        done.append(resize(ctx, message.data))


# reply
@workflow
async def oracle(ctx: WorkflowContext, questions: int) -> None:
    for _ in range(questions):
        question = (await receive(ctx)).data
        await send_to(ctx, question["asker"], f"{question['text']} Yes.")


@workflow
async def ask(ctx: WorkflowContext, oracle_id: str, text: str) -> str:
    await send_to(ctx, oracle_id, {"asker": ctx.instance_id, "text": text})
    answer: str = (await receive(ctx, timeout_seconds=60)).data
    return answer


# metadata
@workflow
async def look(ctx: WorkflowContext) -> dict[str, Any]:
    await subscribe(ctx, "prices")
    message = await receive(ctx, "prices")
    return {
        "id": message.id,
        "channel": message.channel,
        "currency": message.metadata["currency"],
        "at": message.published_at.isoformat(),
    }


# end
