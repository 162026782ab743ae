"""A small application for the tests of ``edda_wsgi.testing``: letters are written, stamped and sent.

Its tables are unprotected on purpose: what is written twice must be seen, not refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from edda_wsgi import EddaFlask, RetryPolicy, activity
from tests.integration.flask_apps import driver_url

db = SQLAlchemy()
edda = EddaFlask()


class Letter(db.Model):  # type: ignore[name-defined,misc]
    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str]
    written_at: Mapped[datetime] = mapped_column(default=datetime.now)


class Stamp(db.Model):  # type: ignore[name-defined,misc]
    id: Mapped[int] = mapped_column(primary_key=True)
    letter_id: Mapped[int] = mapped_column(ForeignKey("letter.id"))


@contextmanager
def letters(database_url: str, **config: Any) -> Iterator[Flask]:
    """The application, with its tables."""
    app = Flask("letters")
    app.config.update({"TESTING": True, "SQLALCHEMY_DATABASE_URI": driver_url(database_url)} | config)
    db.init_app(app)
    edda.init_app(app, db=db)
    with app.app_context():
        db.create_all()
        yield app
        db.session.remove()
        app.extensions["edda"].stop_engine(0.0)
        db.engine.dispose()


def addresses() -> list[str]:
    """Of the letters there are, in the order in which they were written."""
    return list(db.session.execute(db.select(Letter.address).order_by(Letter.id)).scalars())


@activity
def write(ctx: Any, address: str) -> str:
    """Through the session; what it did and when by the workflow's clock."""
    db.session.add(Letter(address=address))
    db.session.commit()
    return ctx.now().isoformat()  # type: ignore[no-any-return]


HOURLY = RetryPolicy(
    max_attempts=4, initial_interval=3600.0, backoff_coefficient=1.0, max_interval=3600.0, max_duration=None
)


@activity(retry_policy=HOURLY)
def knock(ctx: Any) -> int:
    """Nobody opens before the fourth time; an hour between each."""
    if ctx.attempt < 4:
        raise ConnectionError("nobody opens")
    return int(ctx.attempt)
