"""What a session has to commit, and what is to follow once it has.

How it thinks. A change that joins somebody's session takes effect with that session's commit, or never. Whatever is to
be done then, such as waking a worker, is noted at the session: dropped with a rollback, moved outwards when the savepoint
it was made in is released, and called only after the outermost commit. All sessions of the process are listened
to: to begin with each that has something to commit would take longer than all the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

_NAME = "_edda_unsaved"


@dataclass
class _Change:
    """One change that a session has to commit, and the savepoint it was made in."""

    callback: Callable[[], None]
    instance_id: str | None
    savepoint: SessionTransaction | None


class Unsaved:
    """What one session has started, cancelled or sent and not committed yet."""

    def __init__(self) -> None:
        self._changes: list[_Change] = []
        self._lost: list[str] = []
        self._closed: list[str] = []

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

    def ended(self, transaction: SessionTransaction) -> None:
        """A transaction of the session, or a savepoint, is over, however."""
        if transaction.nested:
            # One that was released has nothing any more; of one that was given up by a failed flush nothing else is told.
            self._drop_within(transaction)
        if transaction.parent is None:
            # Neither committed nor rolled back, but closed: that it was started is remembered for the warning only.
            self._closed = self.instance_ids
            self._lost += self._closed
            self._changes = []

    def forget(self) -> None:
        """Drop everything."""
        self._changes, self._lost = [], []

    def committed(self, session: Session) -> None:
        """The session has committed, or released a savepoint."""
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

    def rolled_back(self, previous: SessionTransaction) -> None:
        """A transaction of the session, or a savepoint, was rolled back."""
        if previous.nested:
            self._drop_within(previous)
        elif previous.parent is None:
            # Rolled back on purpose: not lost, although the end of the transaction was told first.
            self._lost = [instance_id for instance_id in self._lost if instance_id not in self._closed]
            self._changes = []

    def _drop_within(self, savepoint: SessionTransaction) -> None:
        self._changes = [change for change in self._changes if not _is_within(change.savepoint, savepoint)]


def after_commit(session: Session, callback: Callable[[], None], *, instance_id: str | None = None) -> Unsaved:
    """Call back once *session* has committed; never if it rolls back. *instance_id*: it was started with this."""
    unsaved = _of(session)
    if unsaved is None:
        unsaved = Unsaved()
        setattr(session, _NAME, unsaved)
    unsaved.add(session, callback, instance_id)
    return unsaved


def _is_within(savepoint: SessionTransaction | None, outer: SessionTransaction) -> bool:
    """Whether it is this savepoint, or one inside: of those a rollback tells nothing."""
    while savepoint is not None and savepoint is not outer:
        savepoint = savepoint.parent
    return savepoint is outer


def _of(session: Session) -> Unsaved | None:
    return getattr(session, _NAME, None)


@event.listens_for(Session, "after_commit")
def _tell_committed(session: Session) -> None:
    if (unsaved := _of(session)) is not None:
        unsaved.committed(session)


@event.listens_for(Session, "after_soft_rollback")
def _tell_rolled_back(session: Session, previous: SessionTransaction) -> None:
    if (unsaved := _of(session)) is not None:
        unsaved.rolled_back(previous)


@event.listens_for(Session, "after_transaction_end")
def _tell_ended(session: Session, transaction: SessionTransaction) -> None:
    if (unsaved := _of(session)) is not None:
        unsaved.ended(transaction)
