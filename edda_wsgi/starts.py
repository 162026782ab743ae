"""Starts that join a session: saved by its commit, gone with its rollback, never silently forgotten.

What was started in a session is remembered until the session ends its transaction. After the commit the workers
are woken. If the application context ends first, one warning names what was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flask import g, has_app_context
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, SessionTransaction

_log = logging.getLogger(__name__)

_G_NAME = "_edda_unsaved"


class Unsaved:
    """What one session has started and not committed yet."""

    def __init__(self, session: Session) -> None:
        self.instance_ids: list[str] = []
        self.callbacks: list[Callable[[], None]] = []
        event.listen(session, "after_commit", self._committed)
        event.listen(session, "after_soft_rollback", self._rolled_back)

    def _committed(self, session: Session) -> None:
        if session.in_nested_transaction():
            return  # only a savepoint was released
        self.instance_ids = []
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()

    def _rolled_back(self, _session: Session, previous: SessionTransaction) -> None:
        if previous.parent is None:
            self.instance_ids, self.callbacks = [], []


def connection_of(session: Session, engine: Engine) -> Connection:
    """The session's own connection to the shared database."""
    conn = session.connection()
    if conn.engine.url == engine.url:
        return conn
    return session.connection(bind_arguments={"bind": engine})


def after_commit(session: Session, callback: Callable[[], None]) -> Unsaved:
    """Call back once *session* has committed; never if it rolls back."""
    unsaved: Unsaved | None = session.info.get(_G_NAME)
    if unsaved is None:
        unsaved = session.info[_G_NAME] = Unsaved(session)
    unsaved.callbacks.append(callback)
    return unsaved


def remember(session: Session, instance_id: str, callback: Callable[[], None]) -> None:
    """Note a start that *session* has to commit; *callback* is called once it has."""
    unsaved = after_commit(session, callback)
    unsaved.instance_ids.append(instance_id)
    if has_app_context():
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
        for instance_id in unsaved.instance_ids:
            _log.warning(
                "Instance %s was started in a session that ended without commit: it never was. Call db.session.commit()"
                " after start(), or start with .options(session=None) to commit at once.",
                instance_id,
            )
        unsaved.instance_ids = []
