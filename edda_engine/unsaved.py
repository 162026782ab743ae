"""What a session has to commit, and what is to follow once it has.

How it thinks. A change that joins somebody's session takes effect with that session's commit, or never. Whatever is to
be done then, such as waking a worker, is noted at the session: dropped with a rollback, moved outwards when the savepoint
it was made in is released, and called only after the outermost commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

_INFO_NAME = "_edda_unsaved"


@dataclass
class _Change:
    """One change that a session has to commit, and the savepoint it was made in."""

    callback: Callable[[], None]
    instance_id: str | None
    savepoint: SessionTransaction | None


class Unsaved:
    """What one session has started, cancelled or sent and not committed yet."""

    def __init__(self, session: Session) -> None:
        self._changes: list[_Change] = []
        self._lost: list[str] = []
        self._closed: list[str] = []
        event.listen(session, "after_commit", self._committed)
        event.listen(session, "after_soft_rollback", self._rolled_back)
        event.listen(session, "after_transaction_end", self._ended)

    @property
    def instance_ids(self) -> list[str]:
        """The instances that were started."""
        return [change.instance_id for change in self._changes if change.instance_id is not None]

    @property
    def lost_ids(self) -> list[str]:
        """The instances that will never be: uncommitted, or closed without commit."""
        return self._lost + self.instance_ids

    def add(self, session: Session, callback: Callable[[], None], instance_id: str | None) -> None:
        """Note a change."""
        self._changes.append(_Change(callback, instance_id, session.get_nested_transaction()))

    def _ended(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            # Neither committed nor rolled back, but closed: that it was started is remembered for the warning only.
            self._closed = self.instance_ids
            self._lost += self._closed
            self._changes = []

    def forget(self) -> None:
        """Drop everything."""
        self._changes, self._lost = [], []

    def _committed(self, session: Session) -> None:
        released = session.get_nested_transaction()
        if released is not None:
            # Only a savepoint was released: what was made in it belongs to the one around it.
            around = released.parent if released.parent is not None and released.parent.nested else None
            for change in self._changes:
                if change.savepoint is released:
                    change.savepoint = around
            return
        saved, self._changes = self._changes, []
        for change in saved:
            change.callback()

    def _rolled_back(self, _session: Session, previous: SessionTransaction) -> None:
        if previous.nested:
            self._changes = [change for change in self._changes if change.savepoint is not previous]
        elif previous.parent is None:
            # Rolled back on purpose: not lost, although the end of the transaction was told first.
            self._lost = [instance_id for instance_id in self._lost if instance_id not in self._closed]
            self._changes = []


def after_commit(session: Session, callback: Callable[[], None], *, instance_id: str | None = None) -> Unsaved:
    """Call back once *session* has committed; never if it rolls back. *instance_id*: it was started with this."""
    unsaved: Unsaved | None = session.info.get(_INFO_NAME)
    if unsaved is None:
        unsaved = session.info[_INFO_NAME] = Unsaved(session)
    unsaved.add(session, callback, instance_id)
    return unsaved
