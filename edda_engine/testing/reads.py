"""Who reads the wall clock, or throws dice, in a body: seen while it happens, by the interpreter's profiler.

A body that does so replays well a moment later, in the test, and otherwise next week. So that it is found all the
same, every call that user code makes during a replay is looked at. Calls that a library makes for itself do not count.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_BUILTINS: dict[Any, str] = {
    time.time: "time.time",
    time.time_ns: "time.time_ns",
    time.monotonic: "time.monotonic",
    time.monotonic_ns: "time.monotonic_ns",
    os.urandom: "os.urandom",
}
_OF_DATES = ("now", "utcnow", "today")
_FUNCTIONS: dict[CodeType, str] = {uuid.uuid1.__code__: "uuid.uuid1", uuid.uuid4.__code__: "uuid.uuid4"}
_RANDOM: Any = getattr(random, "_inst", None)  # whose methods the functions of the module are
_LIBRARIES = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).parents[2] / package) + os.sep for package in ("edda_engine", "edda_wsgi")}
)
_INSTEAD = {"random": "ctx.random()", "uuid": "ctx.uuid4()", "os": "ctx.uuid4()", "secrets": "an activity"}


@dataclass(frozen=True, slots=True)
class Read:
    """One call that gives another value each time."""

    name: str
    place: str

    @property
    def instead(self) -> str:
        """What to use in its place."""
        return _INSTEAD.get(self.name.partition(".")[0], "ctx.now()")

    def __str__(self) -> str:
        return f"{self.name}() at {self.place}"


@contextmanager
def noted_reads() -> Iterator[list[Read]]:
    """The reads that user code makes on this thread inside the block."""
    found: list[Read] = []
    before = sys.getprofile()

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            name, caller = _name_of_builtin(argument), frame
        elif event == "call" and frame.f_back is not None:
            name, caller = _name_of_function(frame), frame.f_back
        else:
            return
        if name is not None and not caller.f_code.co_filename.startswith((*_LIBRARIES, "<")):
            found.append(Read(name, f"{caller.f_code.co_filename}:{caller.f_lineno}"))

    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(before)


def _name_of_builtin(function: Callable[..., Any]) -> str | None:
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, type) and issubclass(owner, date):
        return f"{owner.__name__}.{name}" if name in _OF_DATES else None
    if owner is _RANDOM and owner is not None:
        return f"random.{name}"
    try:
        return _BUILTINS.get(function)
    except TypeError:  # not hashable
        return None


def _name_of_function(frame: FrameType) -> str | None:
    code = frame.f_code
    if code in _FUNCTIONS:
        return _FUNCTIONS[code]
    if code.co_filename == random.__file__:
        return f"random.{code.co_name}" if frame.f_locals.get("self") is _RANDOM else None
    return f"secrets.{code.co_name}" if code.co_filename == secrets.__file__ else None
