"""Starts that join a session: saved by its commit, gone with its rollback, never silently forgotten.

What was started in a session is remembered until the session ends its transaction. After the commit the workers
are woken. If the application context ends first, one warning names what was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Flask, g, has_app_context
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session

from edda_engine.core.ports import current_place
from edda_engine.errors import StartNotCommittedError, UsageError
from edda_engine.runtime.attempts import Attempt
from edda_engine.unsaved import Unsaved
from edda_engine.unsaved import after_commit as note_at_session
from edda_wsgi.joining import joining

_log = logging.getLogger(__name__)

_G_NAME = "_edda_unsaved"


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
    if conn.engine is engine or conn.engine.url == engine.url:
        return conn
    return session.connection(bind_arguments={"bind": engine})


def after_commit(session: Session, callback: Callable[[], None], *, instance_id: str | None = None) -> None:
    """Call back once *session* has committed; never if it rolls back. *instance_id*: it was started with this."""
    joined, place = joining.get(), current_place.get()
    # There the session only ends a savepoint.
    if joined is not None:
        callback = partial(joined.after_commit.append, callback)
    elif isinstance(place, Attempt):
        callback = partial(place.register_post_commit, callback)
    unsaved = note_at_session(session, callback, instance_id=instance_id)
    if instance_id is not None and has_app_context():
        noted: list[Unsaved] = g.setdefault(_G_NAME, [])
        if unsaved not in noted:
            noted.append(unsaved)


def is_unsaved(instance_id: str) -> bool:
    """Whether this app context has started the instance and not committed it."""
    noted: list[Any] = g.get(_G_NAME, []) if has_app_context() else []
    return any(instance_id in unsaved.instance_ids for unsaved in noted)


def warn_of_unsaved(_app: Flask, **_: Any) -> None:
    """When an app context ends: name what was started in it and never committed."""
    if _G_NAME not in g:
        return
    for unsaved in g.pop(_G_NAME):
        for instance_id in unsaved.lost_ids:
            _log.warning(
                "Instance %s was started in a session that ended without commit: it never was. Call db.session.commit()"
                " after start(), or start with .options(session=None) to commit at once.",
                instance_id,
            )
        unsaved.forget()


def refuse_to_wait(instance_id: str, timeout: float | None) -> None:
    """Refuse to wait for a result that cannot come while somebody waits for it here.

    :raises UsageError: in a body, an async activity, or without end in a sync one.
    :raises StartNotCommittedError: it was started in this context's session, and that is not committed.
    """
    place = current_place.get()
    if place is not None and (place.is_body or place.is_async or timeout is None):
        raise UsageError(
            "result() would wait here for work that may need this very thread. In a workflow run the other one inline,"
            " with `await other_workflow(ctx, ...)`; in a plain def activity at most look, with a timeout."
        )
    if is_unsaved(instance_id):
        raise StartNotCommittedError(instance_id)
