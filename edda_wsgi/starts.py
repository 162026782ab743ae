"""Starts that join a session: saved by its commit, gone with its rollback, never silently forgotten.

What was started in a session is remembered until the session ends its transaction. After the commit the workers
are woken. If the application context ends first, one warning names what was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flask import g, has_app_context
from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from edda_engine.errors import UsageError
from edda_wsgi.joining import joining

_log = logging.getLogger(__name__)

_G_NAME = "_edda_unsaved"


@dataclass
class _Change:
    """One change that a session has to commit, and the savepoint it was made in."""

    callback: Callable[[], None]
    instance_id: str | None
    savepoint: SessionTransaction | None


class Unsaved:
    """What one session has started or cancelled and not committed yet."""

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


def session_given(given: Any) -> Session:
    """The session that was given as ``session=``; of Flask-SQLAlchemy's ``db.session`` the one of this context.

    :raises UsageError: it is no session.
    """
    found = given() if isinstance(given, scoped_session) else given
    if isinstance(found, Session):
        return found
    if isinstance(found, AsyncSession):
        raise UsageError(
            "session= takes an SQLAlchemy Session, not an AsyncSession. In an async activity leave session= out: the change"
            " is then part of its step."
        )
    raise UsageError(
        f"session= takes an SQLAlchemy Session, such as db.session, or None to commit at once, not {type(found).__name__}."
        " Leave it out to join the session of the current app context."
    )


def connection_of(session: Session, engine: Engine) -> Connection:
    """The session's own connection to the shared database."""
    conn = session.connection()
    if conn.engine.url == engine.url:
        return conn
    return session.connection(bind_arguments={"bind": engine})


def after_commit(session: Session, callback: Callable[[], None], *, instance_id: str | None = None) -> None:
    """Call back once *session* has committed; never if it rolls back. *instance_id*: it was started with this."""
    joined = joining.get()
    if joined is not None:  # the session only ends a savepoint then
        callback = partial(joined.after_commit.append, callback)
    unsaved: Unsaved | None = session.info.get(_G_NAME)
    if unsaved is None:
        unsaved = session.info[_G_NAME] = Unsaved(session)
    unsaved.add(session, callback, instance_id)
    if instance_id is not None and has_app_context():
        noted: list[Unsaved] = g.setdefault(_G_NAME, [])
        if unsaved not in noted:
            noted.append(unsaved)


def is_unsaved(instance_id: str) -> bool:
    """Whether this app context has started the instance and not committed it."""
    noted: list[Any] = g.get(_G_NAME, []) if has_app_context() else []
    return any(instance_id in unsaved.instance_ids for unsaved in noted)


def warn_of_unsaved(_error: BaseException | None = None) -> None:
    """When an app context ends: name what was started in it and never committed."""
    for unsaved in g.pop(_G_NAME, []):
        for instance_id in unsaved.lost_ids:
            _log.warning(
                "Instance %s was started in a session that ended without commit: it never was. Call db.session.commit()"
                " after start(), or start with .options(session=None) to commit at once.",
                instance_id,
            )
        unsaved.forget()
