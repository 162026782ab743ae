"""A body that nobody holds any more is thrown away wherever the garbage collector runs."""

from __future__ import annotations

import asyncio
import gc

from edda_engine.runtime.branches import begin_line, current_line, guarded, install_task_factory
from edda_engine.runtime.unawaited import Unawaited


async def _waits_for_ever() -> None:
    begin_line(set(), Unawaited())
    await guarded(asyncio.get_running_loop().create_future())  # type: ignore[arg-type]


def test_a_body_that_is_thrown_away_in_the_midst_of_another_one_changes_nothing_there() -> None:
    async def body() -> None:
        begin_line(set(), Unawaited())
        await guarded(_goes_on())

    async def _goes_on() -> None:
        before = current_line()
        left.clear()
        gc.collect()
        assert current_line() is before

    loop = asyncio.new_event_loop()  # it dies
    install_task_factory(loop)
    left = [loop.create_task(_waits_for_ever())]
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.set_exception_handler(lambda *_: None)
    loop.close()

    other = asyncio.new_event_loop()
    install_task_factory(other)
    other.run_until_complete(body())
    other.close()
