"""Where the edda_ tables live: in the application's own database if that can be, or in another one.

Only in its own one do starts and activities share its transactions, so it has to be recognized by whatever URL it is
called: with another driver or another password, as ``localhost`` or by a path relative to the instance folder.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from flask import Flask, has_app_context
from sqlalchemy import URL, Engine

from edda_engine.storage.connecting import shown_url
from edda_engine.storage.database import Database, refuse_autocommit
from edda_engine.storage.urls import normalized_url
from edda_wsgi import starts
from edda_wsgi.session import SessionSource
from edda_wsgi.writers import Writers

_log = logging.getLogger(__name__)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Found:
    """The database, and how it is related to the application's sessions."""

    database: Database
    is_shared: bool = False
    writers: Writers | None = None
    """Who of the application writes to it; only SQLite needs to know."""
    note: str | None = None
    """What an operator should know."""


def find(app: Flask, source: SessionSource | None, database_url: str | None, *, is_forked: bool) -> Found:
    """The database of *app*: that of its sessions, or the one that DATABASE_URL names.

    :param is_forked: The application was made by another process; what it opened before the fork is that one's.
    :raises ConfigurationError: it cannot be used.
    """
    if source is None:
        return Found(Database.from_url(database_url or _default_url(app)))
    engine = _prepared(app, source)
    if database_url is not None:
        url = _placed(normalized_url(database_url), app, source)
        if not is_same(url, engine.url):
            note = (
                f"DATABASE_URL names another database ({shown_url(url)}) than that of the application's sessions"
                f" ({shown_url(engine.url)}): starts do not join their transactions, and what an activity writes through"
                " them is not saved together with its step. Leave DATABASE_URL out to use the application's database."
            )
            _log.warning("%s", note)
            return Found(Database.from_url(url), note=note)
    refuse_autocommit(engine)
    if is_forked:
        engine.dispose(close=False)
    found = Found(Database(engine), is_shared=True)
    return replace(found, writers=_watched(engine, source)) if found.database.is_sqlite else found


def is_same(one: URL, other: URL) -> bool:
    """Whether two URLs name one database, by whatever driver and as whatever user."""
    return _identity(one) == _identity(other)


def _identity(url: URL) -> tuple[object, ...]:
    if url.get_backend_name() == "sqlite":
        return "sqlite", os.path.realpath((url.database or "").removeprefix("file:"))
    query = url.normalized_query
    hosts = query.get("host") or (url.host or os.environ.get("PGHOST", ""),)
    ports = query.get("port") or (str(url.port or os.environ.get("PGPORT", "")),)
    (database,) = query.get("dbname") or (url.database or os.environ.get("PGDATABASE") or url.username,)
    paths = [text for text in query.get("options", ()) if "search_path" in text]
    return url.get_backend_name(), _servers(",".join(hosts), ",".join(ports)), database, tuple(paths)


def _servers(hosts: str, ports: str) -> tuple[tuple[str, str], ...]:
    """As libpq reads lists of hosts and ports; a host may have its port, as SQLAlchemy allows."""
    names, numbers = hosts.split(","), ports.split(",")
    found = []
    for index, name in enumerate(names):
        host, _, port = name.partition(":") if name.count(":") == 1 else (name, "", "")
        host = "localhost" if host in _LOOPBACK else host.lower()
        found.append((host, port or numbers[min(index, len(numbers) - 1)] or "5432"))
    return tuple(sorted(found))


def _prepared(app: Flask, source: SessionSource) -> Engine:
    if not has_app_context():
        with app.app_context():
            return _prepared(app, source)
    engine = source.engine()
    source.install()
    return engine


def _watched(engine: Engine, source: SessionSource) -> Writers:
    writers = Writers(engine)
    if has_app_context() and (session := source.current()) is not None:
        writers.note_session(starts.session_given(session))
    return writers


def _placed(url: URL, app: Flask, source: SessionSource) -> URL:
    """A relative path of SQLite, where the application's own one would be."""
    path = url.database or ""
    is_elsewhere = os.path.isabs(path) or path.startswith("file:") or path in ("", ":memory:")
    if url.get_backend_name() != "sqlite" or is_elsewhere or not source.uses_instance_folder:
        return url
    return url.set(database=str(_instance_folder(app) / path))


def _default_url(app: Flask) -> str:
    return f"sqlite:///{_instance_folder(app) / 'edda.db'}"


def _instance_folder(app: Flask) -> Path:
    folder = Path(app.instance_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
