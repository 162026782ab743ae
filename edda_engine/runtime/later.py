"""What a run writes later: before anything happens that may depend on it, and in the order in which it came about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from edda_engine.core.events import EventType, StepKey, event_json
from edda_engine.errors import LeaseLostError
from edda_engine.runtime.tasks import to_the_end
from edda_engine.storage.units import HeldUnit, Holder, LeaseLost, Outcome, PutBack, Step

MakeUnit = Callable[[Holder], HeldUnit]
"""Makes the unit under the lease of the moment at which it is written."""


def giving_up(key: StepKey, name: str, seq: int) -> MakeUnit:
    """The body has given up a call: a replay must go the same way."""
    event = event_json(name)
    return lambda holder: Step(holder, key, seq, EventType.ACTIVITY_CANCELLED, event)


def putting_back(key: StepKey, about: str, seq: int, mailbox: str) -> MakeUnit:
    """The body has turned away from a wait: what has come for it is for another one, or for a successor."""
    event = event_json(about)
    return lambda holder: PutBack(Step(holder, key, seq, EventType.WAIT_WITHDRAWN, event), mailbox)


class Later:
    """The units of one run that are still to be written."""

    def __init__(self, commit: Callable[[HeldUnit], Coroutine[Any, Any, Outcome]]) -> None:
        self._commit = commit
        self._unsaved: list[MakeUnit] = []
        self._saving: asyncio.Lock | None = None

    def add(self, make_unit: MakeUnit) -> None:
        """Write this, too."""
        self._unsaved.append(make_unit)

    @property
    def has_some(self) -> bool:
        """Whether something is not written yet."""
        return bool(self._unsaved) or (self._saving is not None and self._saving.locked())

    async def save(self, find_holder: Callable[[], Holder]) -> bool:
        """Write everything; True if something of it goes back to where others look for it.

        Whoever is cancelled meanwhile waits until it is written, and all who come after wait with him. If the lease has
        ended meanwhile, and the run goes on under another one, it is written under that.

        :raises LeaseLostError: another worker owns the instance.
        """
        if not self.has_some:
            return False
        self._saving = self._saving or asyncio.Lock()
        async with self._saving:
            unsaved, self._unsaved = self._unsaved, []
            while True:
                holder = find_holder()
                units = [make_unit(holder) for make_unit in unsaved]
                outcomes = await to_the_end(self._commit_all(units))
                for outcome in outcomes:
                    if isinstance(outcome, BaseException):
                        raise outcome
                if not any(isinstance(outcome, LeaseLost) for outcome in outcomes):
                    return any(isinstance(unit, PutBack) for unit in units)
                if find_holder() == holder:
                    raise LeaseLostError("Another worker owns this instance now.")

    async def _commit_all(self, units: list[HeldUnit]) -> list[Outcome | BaseException]:
        """What became of each; nobody goes on before all are answered, whatever is refused."""
        return await asyncio.gather(*(self._commit(unit) for unit in units), return_exceptions=True)
