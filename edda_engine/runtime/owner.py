"""What a run needs of the executor that owns it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edda_engine.core.events import Recorded
from edda_engine.runtime.committer import Resolve
from edda_engine.runtime.promises import Promises
from edda_engine.storage.units import HeldUnit, Outcome

if TYPE_CHECKING:
    from edda_engine.runtime.run import Run


class Owner(Protocol):
    """The executor, as a run sees it."""

    is_draining: bool
    promises: Promises

    async def commit(self, unit: HeldUnit) -> Outcome:
        """Write one unit."""
        ...

    def put(self, unit: HeldUnit, resolve: Resolve) -> None:
        """Write one unit, and tell on the loop what became of it; from any thread."""
        ...

    async def find_recorded(self, instance_id: str, activity_id: str) -> Recorded | None:
        """Once the database answers: what it has of a step."""
        ...

    def has_gone_idle(self, run: Run) -> None:
        """The run only waits."""
        ...

    def wants_back(self, run: Run) -> None:
        """The body of a parked run has gone on by itself, after a timeout say, and needs its lease again."""
        ...
