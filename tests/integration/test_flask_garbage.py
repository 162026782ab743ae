"""A run that has ended goes at once: nothing of it is left to the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask, current_app, g

from edda_wsgi import SyncWorkflowContext, WorkflowContext, activity, sleep, workflow
from edda_wsgi.environment import FlaskEnvironment
from tests.integration.flask_apps import Shop, open_shop
from tests.support import eventually

FLOWS = 20
OF_A_RUN = ("edda_engine.runtime.", "edda_engine.core.", "edda_wsgi.", "flask.", "_asyncio.")


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as opened:
        opened.edda.start_worker()
        yield opened


@contextmanager
def unreachable() -> Iterator[list[str]]:
    """The kinds of what only the garbage collector could free; the last run may be ending still."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage)
        found += [kind for kind, count in kinds.items() if count > FLOWS / 2]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@activity
def act(ctx: WorkflowContext, number: int) -> int:
    g.number = number
    return number


@workflow
def plain(ctx: SyncWorkflowContext) -> str:
    g.kept = act(ctx, 1)
    sleep(ctx, seconds=0.01)
    ctx.gather(lambda: act(ctx, 2), lambda: act(ctx, 3))
    return str(current_app.name)


@workflow
async def asynchronous(ctx: WorkflowContext) -> str:
    g.kept = await act(ctx, 1)
    await sleep(ctx, seconds=0.01)
    return str(current_app.name)


@pytest.mark.parametrize("flow", [plain, asynchronous], ids=["plain", "asynchronous"])
def test_runs_that_have_ended_leave_nothing_to_collect(shop: Shop, flow: Any) -> None:
    def once() -> None:
        assert shop.edda.result(flow.options(session=None).start(), timeout=30) == "shop"

    with shop.app.app_context():
        once()
        with unreachable() as found:
            for _ in range(FLOWS):
                once()
    assert [kind for kind in found if kind.startswith(OF_A_RUN)] == []


def test_what_comes_after_a_body_has_an_app_context_too(shop: Shop) -> None:
    """A finalizer, say; not the one that the body had."""
    said: list[Any] = []

    @workflow
    async def leaves(ctx: WorkflowContext) -> None:
        async def numbers() -> Any:
            try:
                yield 1
            finally:
                said.append((current_app.name, g.get("kept")))

        g.kept = "kept"
        g.numbers = numbers()  # goes with the app context
        assert await anext(g.numbers) == 1

    with shop.app.app_context():
        shop.edda.result(leaves.options(session=None).start(), timeout=30)
    eventually(lambda: said == [("shop", None)])


def test_a_body_that_is_collected_in_the_midst_of_a_request_leaves_its_app_context_alone() -> None:
    """Of a loop that has died, say: the garbage collector runs in whichever thread comes along."""
    app = Flask("shop")
    environment = FlaskEnvironment(app, None)
    bodies: list[Any] = []

    async def waits_for_ever() -> None:
        with environment.around_body():
            await asyncio.get_running_loop().create_future()

    async def begin() -> None:
        bodies.append(asyncio.create_task(waits_for_ever()))
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()

    @app.get("/")
    def view() -> str:
        g.user = "me"
        bodies.clear()
        gc.collect()
        return str(g.get("user"))

    assert app.test_client().get("/").text == "me"


def test_a_body_that_leaves_an_app_context_pushed_is_no_worse_for_it() -> None:
    app = Flask("shop")
    environment = FlaskEnvironment(app, None)

    async def body() -> str:
        with environment.around_body():
            app.app_context().push()
            return str(current_app.name)

    assert asyncio.run(body()) == "shop"
