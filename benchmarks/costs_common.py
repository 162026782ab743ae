"""What the programs of ``costs.py`` share."""

from __future__ import annotations

import os
from collections import Counter
from types import TracebackType
from typing import Any

from sqlalchemy import Engine, event

ENVIRONMENT_BEGAN = "EDDA_BENCH_BEGAN_AT"
"""When the process that is measured was started, by the clock of this machine."""


def began_at() -> float:
    """When this process was started."""
    return float(os.environ[ENVIRONMENT_BEGAN])


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
