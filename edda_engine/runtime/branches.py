"""Which branch of a body is calling: each task that a body creates is a branch, numbered when it is created.

How it thinks. Within one branch the code alone decides in which order it creates tasks, so counting them at their
creation gives the same numbers on replay, whatever the timing was. asyncio does not tell who created a task; a task
factory on the loop does. Tasks that only carry out a call of ours are no branches: they make no calls.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edda_engine.core.events import StepKey
from edda_engine.core.replay import Branch
from edda_engine.errors import LeaseLostError
from edda_engine.runtime.unawaited import Unawaited

_OUR_CODE = str(Path(__file__).parent)
_ENDED = object()
"""Owns the line of a task that has ended: who comes later begins a branch, as if that task were still there."""


@dataclass(slots=True)
class PastOnly:
    """A branch, with those below it, that repeats what is recorded of it and does nothing new."""

    has_ended: bool = False
    """It has come to a call that it gave up, or never made."""


class Line:
    """One branch of one body, and the task that is on it."""

    __slots__ = ("branch", "last_taken", "owner", "past", "tasks", "unawaited")

    def __init__(
        self, branch: Branch, tasks: set[asyncio.Task[Any]], unawaited: Unawaited, *, past: PastOnly | None = None
    ) -> None:
        self.branch = branch
        self.tasks, self.unawaited = tasks, unawaited
        self.past = past
        """Set when it lost a race that history has decided."""
        self.owner: asyncio.Task[Any] | object | None = None
        self.last_taken: StepKey | None = None
        """The wait whose message the branch has taken and done nothing with yet."""

    def fork(self) -> Line:
        """A new branch of this one."""
        return Line(self.branch.child(), self.tasks, self.unawaited, past=self.past)

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine on this line."""
        self.unawaited.given_to_a_task(coroutine)
        context = contextvars.copy_context()
        context.run(_line.set, self)
        task = asyncio.get_running_loop().create_task(guarded(coroutine), context=context)
        self._note(task)
        return task

    def _note(self, task: asyncio.Task[Any]) -> None:
        self.owner = self.owner or task
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def guarded(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await user code; what would end the event loop, and every other instance with it, becomes an error."""
    # Asked now: if the garbage collector throws it away, its end is where that runs, in the midst of another body perhaps.
    # Not held: whoever is dropped goes at once, and closes what it has.
    task = weakref.ref(asyncio.current_task())
    try:
        return await coroutine
    except LeaseLostError:
        # The run is dropped, and with it whoever would have asked how this task has ended.
        _hear_its_end(task())
        raise
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"A workflow's code raised {type(error).__name__}({error})") from error
    finally:
        line = _line.get()
        if line is not None and line.owner is not None and line.owner is task():
            line.owner = _ENDED  # a task that is kept by its own context would wait for the garbage collector


def _hear_its_end(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.add_done_callback(_is_heard)


def _is_heard(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from complaining that nobody has asked."""
    if not task.cancelled():
        task.exception()


_line: ContextVar[Line | None] = ContextVar("edda_line", default=None)


def begin_line(tasks: set[asyncio.Task[Any]], unawaited: Unawaited) -> None:
    """The current task is a body; *tasks* collects those that it creates."""
    line = Line(Branch(), tasks, unawaited)
    line.owner = asyncio.current_task()
    _line.set(line)


def current_line() -> Line:
    """The line of the task that makes a call now."""
    line = _line.get()
    assert line is not None
    task = asyncio.current_task()
    line.owner = line.owner or task
    if line.owner is not task:
        # A task that was given a context of its own making: a branch by its first call.
        line = line.fork()
        if task is not None:
            line._note(task)
        _line.set(line)
    return line


def line_here() -> Line:
    """The line that this code belongs to, whichever task carries it out; unlike a call it never begins a branch.

    A call may be handed to a task, by ``create_task()`` or ``wait_for()``. That is carried out live, and not on replay:
    nothing may be numbered by it.
    """
    line = _line.get()
    assert line is not None
    return line


async def no_further() -> None:
    """Wait until the task that makes this call is given up, or say so if it is being given up already."""
    task, past = asyncio.current_task(), line_here().past
    if past is not None:
        past.has_ended = True
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
    await asyncio.get_running_loop().create_future()


def install_task_factory(loop: asyncio.AbstractEventLoop) -> None:
    """Let the tasks that bodies create on this loop be branches; other tasks are made as before."""
    before = loop.get_task_factory()
    if getattr(before, "is_of_edda", False):
        return

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        if before is not None:
            return before(loop, coroutine, **options)
        return asyncio.Task(coroutine, loop=loop, **options)

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        around = _line.get()
        if around is not None:
            around.unawaited.given_to_a_task(coroutine)
        if around is None or options.get("context") is not None:
            return make(loop, coroutine, **options)
        line = None if _is_ours(coroutine) else around.fork()
        context = contextvars.copy_context()
        if line is not None:
            context.run(_line.set, line)
        task = make(loop, guarded(coroutine), **options, context=context)
        # Closed once more: a task that is cancelled before its first step never comes to await it.
        task.add_done_callback(lambda _: coroutine.close())
        if line is not None:
            line._note(task)
        return task

    factory.is_of_edda = True  # type: ignore[attr-defined]
    loop.set_task_factory(factory)


def _is_ours(coroutine: Any) -> bool:
    code = getattr(coroutine, "cr_code", None)
    return code is not None and code.co_filename.startswith(_OUR_CODE)
