"""Long lives cost what they do, not what they have done: a loop of receives, counted in statements."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event

from edda_engine import WorkflowContext, receive, send_to, subscribe, workflow
from edda_engine.channels import direct_message
from edda_engine.core.codec import parse
from tests.integration.engines import Tables, edda, until
from tests.integration.talks import KINDS, RARELY, declare, send_behind, steps_of

LIMIT = 1_000_000
QUIET = {"poll_interval_seconds": RARELY, "recovery_interval_seconds": RARELY, "listen": False}


class Count:
    """How many statements were executed in this process."""

    statements = 0


@contextmanager
def counted() -> Iterator[Count]:
    count = Count()

    def add(*_: Any) -> None:
        count.statements += 1

    event.listen(Engine, "before_cursor_execute", add)
    try:
        yield count
    finally:
        event.remove(Engine, "before_cursor_execute", add)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_of_receives_costs_the_same_for_each_however_many_there_were(database_url: str, kind: str) -> None:
    bodies: list[str] = []

    def reads(ctx: Any, count: int) -> Any:
        bodies.append(ctx.instance_id)
        total = 0
        for _ in range(count):
            message = yield receive(ctx)
            total += message.data
        return total

    flow = declare(kind, reads)

    async def cost(instance_id: str, count: int) -> int:
        sent = [direct_message(instance_id, 1, "__direct__", None, max_payload_bytes=LIMIT) for _ in range(count)]
        send_behind(database_url, *sent, is_delivered=False)
        async with edda(database_url, **QUIET) as app:
            with counted() as found:
                await flow.options(instance_id=instance_id).start(count)
                assert await app.result(instance_id, timeout=120) == count
            return found.statements

    async def main() -> tuple[int, int]:
        async with edda(database_url):
            pass  # the tables are there
        return await cost("short", 100), await cost("long", 400)

    short, long = asyncio.run(main())
    assert bodies == ["short", "long"]
    assert long <= 4.4 * short, f"{short} statements for 100, {long} for 400"


def test_a_parked_body_reads_no_history_for_the_next_message(database_url: str) -> None:
    """One message at a time: each wakes the suspended body, and costs the same."""
    bodies: list[int] = []

    @workflow
    async def reads(ctx: WorkflowContext, count: int) -> int:
        bodies.append(count)
        for number in range(count):
            message = await receive(ctx)
            await send_to(ctx, message.data, number, channel="answers")
        return count

    @workflow
    async def asks(ctx: WorkflowContext, other: str, count: int) -> list[int]:
        await subscribe(ctx, "answers", "direct")
        found = []
        for _ in range(count):
            await send_to(ctx, other, ctx.instance_id)
            found.append((await receive(ctx, "answers")).data)
        return found

    async def cost(count: int) -> int:
        async with edda(database_url, **QUIET) as app:
            with counted() as found:
                reader = await app.start(reads, count)
                assert await app.result(await app.start(asks, reader, count), timeout=120) == list(range(count))
                assert await app.result(reader, timeout=20) == count
            return found.statements

    async def main() -> tuple[int, int]:
        return await cost(25), await cost(100)

    short, long = asyncio.run(main())
    assert bodies == [25, 100]
    assert long <= 4.6 * short, f"{short} statements for 25, {long} for 100"


def test_two_thousand_receives_with_a_restart_in_between_miss_nothing(database_url: str) -> None:
    count = 2000

    @workflow
    async def reads(ctx: WorkflowContext) -> int:
        total = 0
        for _ in range(count):
            total += (await receive(ctx)).data
        return total

    tables = Tables(database_url)

    async def main() -> tuple[int, str]:
        async with edda(database_url):
            pass
        sent = [
            direct_message("reader", number, "__direct__", None, max_payload_bytes=LIMIT) for number in range(count)
        ]
        send_behind(database_url, *sent, is_delivered=False)
        async with edda(database_url) as first:
            await reads.options(instance_id="reader").start()
            await until(lambda: len(steps_of(tables, "reader")) > count // 4, timeout=60)
            await first.shutdown(timeout=0)
        async with edda(database_url) as second:
            return await second.result("reader", timeout=120), second.worker_id

    total, _ = asyncio.run(main())
    assert total == sum(range(count))
    rows = tables.rows("SELECT event_data FROM edda_history WHERE instance_id = 'reader' ORDER BY position")
    texts = [row["event_data"] for row in rows]
    found = [(parse(text) if isinstance(text, str) else text)["result"]["data"] for text in texts]
    assert found == list(range(count))
