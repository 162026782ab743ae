"""Small Flask applications for the tests of edda_wsgi, one for each way to make sessions, and ways to look at them.

A :class:`Shop` has one table, ``note``. What a test sees from outside is read through a connection of its own,
which sees only what is committed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as SQLAlchemyLite
from sqlalchemy import Engine, NullPool, create_engine, inspect, make_url, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

from edda_engine.runtime.probes import Probe, no_probe
from edda_wsgi import EddaFlask, RetryPolicy, activity, workflow

FLASK_SQLALCHEMY = "flask-sqlalchemy"
LITE = "flask-sqlalchemy-lite"
SESSIONMAKER = "sessionmaker"
SCOPED_SESSION = "scoped_session"
KINDS = (FLASK_SQLALCHEMY, LITE, SESSIONMAKER, SCOPED_SESSION)

ONCE = RetryPolicy(max_attempts=1)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


def driver_url(database_url: str) -> str:
    """The URL as a Flask application writes it, with the driver."""
    url = make_url(database_url)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return url.render_as_string(False)


@contextmanager
def outside(database_url: str) -> Iterator[Engine]:
    """An engine that has nothing to do with any application."""
    engine = create_engine(driver_url(database_url), poolclass=NullPool)
    try:
        yield engine
    finally:
        engine.dispose()


def saved_notes(database_url: str) -> list[str]:
    """The texts that are durable now."""
    with outside(database_url) as engine, engine.connect() as conn:
        return list(conn.execute(text("SELECT text FROM note ORDER BY id")).scalars())


def saved_instances(database_url: str) -> list[str]:
    """The ids of the instances that are durable now, in the order in which they were started."""
    with outside(database_url) as engine, engine.connect() as conn:
        if not inspect(conn).has_table("edda_instances"):
            return []
        # On SQLite created_at is as fine as a millisecond.
        order = "rowid" if engine.dialect.name == "sqlite" else "created_at"
        return list(conn.execute(text(f"SELECT instance_id FROM edda_instances ORDER BY {order}")).scalars())


class Shop:
    """An application, its EddaFlask, and its sessions."""

    def __init__(
        self,
        database_url: str,
        *,
        kind: str = FLASK_SQLALCHEMY,
        testing: bool = True,
        probe: Probe = no_probe,
        config: dict[str, Any] | None = None,
        name: str = "shop",
        **settings: Any,
    ) -> None:
        self.database_url, self.kind = database_url, kind
        self.app = Flask(name)
        self.app.config.update(TESTING=testing, **(config or {}))
        self.db: Any = None
        self._own_engine: Engine | None = None
        url = driver_url(database_url)
        match kind:
            case "flask-sqlalchemy":
                self.app.config["SQLALCHEMY_DATABASE_URI"] = url
                self.db = SQLAlchemy(self.app)
            case "flask-sqlalchemy-lite":
                self.app.config["SQLALCHEMY_ENGINES"] = {"default": url}
                self.db = SQLAlchemyLite(self.app)
            case "sessionmaker":
                self._own_engine = create_engine(url)
                self.db = sessionmaker(self._own_engine)
            case "scoped_session":
                self._own_engine = create_engine(url)
                self.db = scoped_session(sessionmaker(self._own_engine))
                self.app.teardown_appcontext(lambda _error: self.db.remove())
        self.edda = EddaFlask(self.app, db=self.db, probe=probe, **settings)
        with self.app.app_context():
            Base.metadata.create_all(self.engine)

    @property
    def engine(self) -> Engine:
        """The application's engine; needs an app context."""
        found: Engine = self._own_engine if self._own_engine is not None else self.db.engine
        return found

    def session(self, ctx: Any = None) -> Any:
        """The session that ordinary code of this application uses; in an activity give its *ctx*."""
        if self.kind == SESSIONMAKER:
            return ctx.session if ctx is not None else self.db()
        return self.db() if self.kind == SCOPED_SESSION else self.db.session

    def run(self, body: Callable[..., Any], *args: Any) -> Any:
        """Run *body* as the one activity of a workflow, in one attempt, and return its result."""
        return self.edda.result(self.start(body, *args), timeout=30)

    def start(self, body: Callable[..., Any], *args: Any) -> str:
        """Start a workflow that calls *body* as its one activity, committing at once."""
        step = activity(retry_policy=ONCE)(body)

        @workflow(name=f"flow_of_{body.__name__}")
        async def flow(ctx, *given: Any) -> Any:  # type: ignore[no-untyped-def]
            return await step(ctx, *given)

        self.edda.start_worker()
        with self.app.app_context():
            return flow.options(session=None).start(*args)

    def close(self) -> None:
        """Stop the engine of this process and close all connections."""
        self.edda.shutdown(timeout=5)
        with self.app.app_context():
            self.engine.dispose()


@contextmanager
def open_shop(database_url: str, **options: Any) -> Iterator[Shop]:
    """A shop that is closed at the end."""
    shop = Shop(database_url, **options)
    try:
        yield shop
    finally:
        shop.close()


def environment_of(**variables: str) -> dict[str, str]:
    """The environment of a process of its own, without settings of this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EDDA_", "FLASK_"))}
    return {**kept, "PYTHONWARNINGS": "ignore", **variables}


def run_python(script: str, *, folder: Path, **variables: str) -> str:
    """Run a script in a process of its own; returns what it printed, fails with its traceback."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder, env=environment_of(**variables), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
