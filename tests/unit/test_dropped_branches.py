"""A task of a body that was dropped ends without a word, unless it was the user's code that failed."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from edda_engine.errors import LeaseLostError
from edda_engine.runtime.branches import guarded


@pytest.mark.parametrize(
    ("error", "complaints"), [(LeaseLostError("another one's"), []), (ValueError("theirs"), ["ValueError"])]
)
def test_asyncio_complains_of_a_task_that_nobody_asks_only_if_user_code_failed(
    error: BaseException, complaints: list[str]
) -> None:
    heard: list[str] = []

    async def fail() -> None:
        raise error

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: heard.append(type(context["exception"]).__name__))
        tasks: list[Any] = [loop.create_task(guarded(fail()))]
        await asyncio.wait(tasks)
        tasks.clear()
        gc.collect()

    asyncio.run(main())
    assert heard == complaints
