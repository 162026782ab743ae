"""Sessions of an activity: whether one has the transaction to itself or works in a savepoint, it does the same.

Whatever an activity does with its session, and with those of nested app contexts, is done twice: as it is, and with a
savepoint for each. What is left in the transaction is the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from edda_engine.activity import Activity
from edda_engine.core.ports import current_place
from edda_engine.runtime.attempts import Attempt
from edda_engine.runtime.transactions import AttemptTransaction
from edda_engine.storage.database import Database
from edda_wsgi import activity
from edda_wsgi.session import share
from tests.integration.flask_apps import Base, Note

STEPS = ("add", "clash", "begin_nested", "release", "undo", "commit", "rollback", "close", "add_beside")
STEP = st.sampled_from(STEPS)
ACTIVITY = st.lists(STEP | st.lists(STEP, min_size=1, max_size=5), min_size=1, max_size=9)
"""What is done with the activity's own session, and lists of what is done with the session of a nested context."""


class InSavepoints(Session):
    """A session of an activity as SQLAlchemy makes it by itself, in a savepoint always."""

    def __init__(self, **options: Any) -> None:
        super().__init__(join_transaction_mode="create_savepoint", **options)

    def get_bind(self, *_: Any, **__: Any) -> Connection:
        place = current_place.get()
        assert isinstance(place, Attempt)
        return place.transaction.connection()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database.from_url(database_url)
    Base.metadata.create_all(found.engine)
    with found.write(service=False) as conn:
        conn.execute(insert(Note).values(text="taken"))
    yield found
    found.close()


@activity
def work(ctx: Any) -> None: ...


@contextmanager
def attempt_in(transaction: AttemptTransaction) -> Iterator[None]:
    known: Activity[..., Any] = work
    attempt = Attempt(
        known, instance_id="i", workflow_name="w", worker_id="me", activity_id="work:1", number=1, transaction=transaction,
        max_payload_bytes=1000, application=None, probe=lambda _: None, now=lambda: None,
    )  # fmt: skip  # type: ignore[arg-type,return-value]
    token = current_place.set(attempt)
    try:
        yield
    finally:
        current_place.reset(token)
        transaction.abandon()


def left_by(database: Database, factory: sessionmaker[Any], steps: list[Any]) -> list[str]:
    """What an activity that does *steps* would save."""
    transaction = AttemptTransaction(
        database, database.shared_engine, probe=lambda _: None, takes_turn=True, may_be_late=False
    )
    numbers = itertools.count()
    with attempt_in(transaction):
        own = factory()
        for step in steps:
            if isinstance(step, str):
                do(step, own, transaction, numbers)
                continue
            nested = factory()
            for inner in step:
                do(inner, nested, transaction, numbers)
            nested.close()
        own.commit()
        conn = transaction.connection()
        return sorted(conn.execute(select(Note.text)).scalars())


def do(step: str, session: Session, transaction: AttemptTransaction, numbers: Iterator[int]) -> None:
    match step:
        case "add":
            session.add(Note(text=f"{next(numbers)}"))
            session.flush()
        case "clash":
            session.add(Note(text="taken"))
            with pytest.raises(IntegrityError):
                session.flush()
            session.rollback()
        case "add_beside":  # as start() does, and sending an event
            transaction.connection().execute(
                text("INSERT INTO note (text) VALUES (:text)"), {"text": f"{next(numbers)}"}
            )
        case "release" | "undo":
            nested = session.get_nested_transaction()
            if nested is not None:
                nested.commit() if step == "release" else nested.rollback()
        case _:
            getattr(session, step)()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIVITY)
@example(["add", "commit", "add", "rollback"])
@example(["add", ["add", "commit"], "rollback", "add"])
@example([["add", "close"], "add"])
@example([["add", "commit"], "clash", "add"])
@example(["add", "begin_nested", "add", "commit", "close"])
@example(["add", "begin_nested", "add", "release", "close"])
@example(["add_beside", "add", "rollback"])
@example(["add", "add_beside", "close"])
def test_a_session_does_the_same_with_the_transaction_to_itself_as_in_a_savepoint(
    database: Database, steps: list[Any]
) -> None:
    shared = sessionmaker(database.engine)
    share(shared)
    assert left_by(database, shared, steps) == left_by(database, sessionmaker(class_=InSavepoints), steps)
