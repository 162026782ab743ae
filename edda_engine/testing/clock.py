"""The clock of a test: the real time, and what the test has skipped on top.

How it thinks. The engine asks three clocks. The database's decides what is due; every statement asks it by one of two
expressions (see ``edda_engine.storage.types``), so while this clock is in use the skipped time is added to them in
each statement on a table of ours, on its way to the driver. The event loop's clock paces what is in memory, and the
host's is what ``ctx.now()`` says; both are given to the engine. Nothing of the product knows of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine, event

from edda_engine.errors import UsageError
from edda_engine.runtime.conditions import utc_now

_OURS = re.compile(r"\bedda_")


class SkippableClock:
    """Runs as the real one does, and can be put ahead."""

    _in_use: ClassVar[SkippableClock | None] = None

    def __init__(self) -> None:
        self.skipped_seconds = 0.0

    def now(self) -> datetime:
        """The time of the test, aware, in UTC."""
        return utc_now() + timedelta(seconds=self.skipped_seconds)

    def skip(self, seconds: float) -> None:
        """Let so much time have passed."""
        self.skipped_seconds += seconds

    def set(self, moment: datetime) -> None:
        """Go to a moment, which may be an earlier one; only while no engine runs."""
        self.skipped_seconds = (moment - utc_now()).total_seconds()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the database's clock is this one for all statements on tables of edda, whoever sends them.

        :raises UsageError: another one is in use.
        """
        if SkippableClock._in_use is not None:
            raise UsageError(
                "Another WorkflowRunner is in use in this process, and there is one time for all: close it first."
            )
        event.listen(Engine, "before_cursor_execute", self._shift, retval=True)
        SkippableClock._in_use = self
        try:
            yield
        finally:
            SkippableClock._in_use = None
            event.remove(Engine, "before_cursor_execute", self._shift)

    def _shift(
        self, conn: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> tuple[str, Any]:
        if self.skipped_seconds and _OURS.search(statement):
            statement = shifted(statement, self.skipped_seconds, dialect=conn.dialect.name)
        return statement, parameters


def shifted(statement: str, seconds: float, *, dialect: str) -> str:
    """The statement with the database's clock put ahead."""
    if dialect == "postgresql":
        return statement.replace("statement_timestamp()", f"(statement_timestamp() + interval '{seconds:.6f} seconds')")
    return statement.replace("'now'", f"'now', '{seconds:+.3f} seconds'")
