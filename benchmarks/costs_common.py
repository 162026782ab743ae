"""What the programs of ``costs.py`` share."""

from __future__ import annotations

import os
import time
from collections import Counter
from types import TracebackType
from typing import Any

from sqlalchemy import Engine, event

ENVIRONMENT_BEGAN = "EDDA_BENCH_BEGAN_AT"
"""When the process that is measured was started, by the clock of this machine."""


_ENVIRONMENT_LAUNCHES = "EDDA_BENCH_LAUNCHES_AT"
"""The same of the moment when it has imported all, and launches the library."""


def launches() -> None:
    """This process has imported all, and launches the library now."""
    os.environ[_ENVIRONMENT_LAUNCHES] = str(time.time())


def tell_seconds() -> None:
    """Print how long ago this process was started, and how long ago it launched the library."""
    now = time.time()
    print(
        "seconds", *(now - float(os.environ[name]) for name in (ENVIRONMENT_BEGAN, _ENVIRONMENT_LAUNCHES)), flush=True
    )


def told_seconds(output: str) -> dict[str, float]:
    """What a process has told by :func:`tell_seconds`, as figures of a replay."""
    process, launch = map(float, output.split("seconds ")[1].split())
    return {"replay_seconds": round(process, 3), "from_launch_seconds": round(launch, 3)}


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite")


class StatementCounter:
    """Counts what this process executes through SQLAlchemy, on any engine, without BEGIN and COMMIT."""

    def __init__(self) -> None:
        self.statements: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.statements.values())

    def __enter__(self) -> StatementCounter:
        event.listen(Engine, "before_cursor_execute", self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        event.remove(Engine, "before_cursor_execute", self._count)

    def _count(self, _conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.statements[statement] += 1
