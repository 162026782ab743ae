"""The watch over the event loop names the body that blocks it."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from edda_engine import SyncWorkflowContext, WorkflowContext, workflow
from edda_engine.runtime.watch import LoopWatch
from tests.integration.engines import edda
from tests.support import eventually


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "edda_engine.runtime.watch"]


def block_until(released: threading.Event) -> None:
    released.wait(20)


def run_blocked(watch: LoopWatch, released: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    def release() -> None:
        eventually(lambda: said(caplog))
        released.set()

    async def body() -> None:
        watch.start()
        asyncio.current_task().set_name("edda:body:order-7")  # type: ignore[union-attr]
        threading.Thread(target=release).start()
        block_until(released)
        while not any("goes on after" in line for line in said(caplog)):
            await asyncio.sleep(0.01)
        watch.stop()

    asyncio.run(body())


def test_a_blocked_loop_is_named_with_its_stack_and_its_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    run_blocked(LoopWatch(limit_seconds=0.05), threading.Event(), caplog)
    first = said(caplog)[0]
    assert "blocked for 0.1 s by the body of instance order-7" in first
    assert "block_until" in first
    assert "@activity" in first


def test_a_loop_that_answers_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    watch = LoopWatch(limit_seconds=0.05)

    async def body() -> None:
        watch.start()
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            await asyncio.sleep(0.005)
        watch.stop()

    asyncio.run(body())
    assert said(caplog) == []


@pytest.mark.parametrize("is_plain", [False, True])
def test_a_body_that_blocks_is_named_while_it_blocks(
    database_url: str, caplog: pytest.LogCaptureFixture, is_plain: bool
) -> None:
    released = threading.Event()

    @workflow
    async def slow(ctx: WorkflowContext) -> None:
        block_until(released)

    @workflow
    def slow_plainly(ctx: SyncWorkflowContext) -> None:
        block_until(released)

    def release() -> None:
        eventually(lambda: said(caplog))
        released.set()

    async def main() -> str:
        async with edda(database_url) as app:
            threading.Thread(target=release).start()  # at once: the body may block before its start is told
            instance_id = await app.start(slow_plainly if is_plain else slow)
            await app.result(instance_id, timeout=30)
            return instance_id

    instance_id = asyncio.run(main())
    assert f"the body of instance {instance_id}" in said(caplog)[0]
    assert "block_until" in said(caplog)[0]
