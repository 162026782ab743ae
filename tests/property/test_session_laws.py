"""Sessions of an activity: that the first savepoint is not sent makes no difference.

Whatever an activity does with its session, with others beside it and with the driver itself, is done twice: as it is,
and with every savepoint sent. What is left in the transaction is the same, and what fails, fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.orm import Session, sessionmaker

from edda_engine.activity import Activity
from edda_engine.core.ports import current_place
from edda_engine.runtime.attempts import Attempt
from edda_engine.runtime.transactions import AttemptTransaction
from edda_engine.storage.database import Database
from edda_wsgi import activity
from edda_wsgi.session import share
from tests.integration.flask_apps import Base, Note

STEPS = (
    "add", "clash", "begin_nested", "release", "undo", "commit", "rollback", "close", "connect", "read", "misspell", "copy",
    "end_raw", "add_many_and_end_raw", "add_plainly_and_end_raw", "add_beside",
)  # fmt: skip
SESSIONS = 3
ACTIVITY = st.lists(st.tuples(st.integers(0, SESSIONS - 1), st.sampled_from(STEPS)), min_size=1, max_size=12)


class SendsAll(AttemptTransaction):
    """Every savepoint is sent."""

    def begins_savepoint(self, conn: Any, name: str) -> bool:
        return False

    def ends_savepoint(self, conn: Any, name: str) -> bool:
        return False

    def instead_of(self, cursor: Any, statement: str) -> bool:
        return False


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    found = Database.from_url(postgres_url)
    Base.metadata.create_all(found.engine)
    with found.write(service=False) as conn:
        conn.execute(insert(Note).values(text="taken"))
    yield found
    found.close()


@activity
def work(ctx: Any) -> None: ...


def attempt_in(transaction: AttemptTransaction) -> Attempt:
    known: Activity[..., Any] = work
    return Attempt(
        known, instance_id="i", workflow_name="w", worker_id="me", activity_id="work:1", number=1, transaction=transaction,
        max_payload_bytes=1000, application=None, probe=lambda _: None, now=None,  # type: ignore[arg-type]
    )  # fmt: skip


def left_by(kind: type[AttemptTransaction], database: Database, steps: list[tuple[int, str]]) -> list[str] | str:
    """What an activity that does *steps* would save."""
    transaction = kind(database, database.shared_engine, probe=lambda _: None, takes_turn=True, may_be_late=False)
    factory = sessionmaker(database.engine)
    share(factory)
    numbers = itertools.count()
    token = current_place.set(attempt_in(transaction))
    sessions = [factory() for _ in range(SESSIONS)]
    try:
        for which, step in steps:
            do(step, sessions[which], transaction, numbers)
        sessions[0].commit()
        return sorted(transaction.connection().execute(select(Note.text)).scalars())
    except SQLAlchemyError:
        return "failed"
    finally:
        transaction.abandon()
        current_place.reset(token)


def end_beneath(session: Session) -> None:
    """End the transaction behind SQLAlchemy's back."""
    raw: Any = session.connection().connection.dbapi_connection
    raw.rollback()


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
        case "connect":
            session.connection()
        case "read":
            session.scalars(select(Note.text)).all()
        case "misspell":
            with pytest.raises(StatementError):
                session.execute(text("SELECT :number"))
        case "copy":
            raw: Any = session.connection().connection
            with raw.cursor().copy("COPY note (text) FROM STDIN") as copy:
                copy.write(f"{next(numbers)}\n")
        case "end_raw":
            session.scalars(select(Note.text)).all()
            end_beneath(session)
            session.scalars(select(Note.text)).all()
        case "add_many_and_end_raw":
            session.execute(insert(Note), [{"text": f"many {next(numbers)}"} for _ in range(2)])
            end_beneath(session)
        case "add_plainly_and_end_raw":
            without = session.connection().execution_options(no_parameters=True)
            without.exec_driver_sql(f"INSERT INTO note (text) VALUES ('plain {next(numbers)}')")
            end_beneath(session)
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


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated:sqlalchemy.exc.SAWarning")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIVITY)
@example([(0, "add"), (0, "commit"), (0, "add"), (0, "rollback")])
@example([(0, "add"), (1, "add"), (1, "commit"), (0, "rollback"), (0, "add")])
@example([(1, "add"), (1, "close"), (0, "add")])
@example([(0, "add"), (0, "begin_nested"), (0, "add"), (0, "release"), (0, "close")])
@example([(0, "add_beside"), (0, "add"), (0, "rollback")])
@example([(0, "connect"), (1, "read"), (1, "close"), (0, "add"), (0, "rollback")])
@example([(0, "misspell"), (1, "read"), (1, "close"), (0, "add"), (0, "close")])
@example([(0, "copy"), (0, "commit"), (0, "add"), (0, "rollback")])
@example([(0, "add"), (1, "read"), (0, "add"), (0, "commit"), (1, "close")])
@example([(0, "add"), (1, "add"), (0, "rollback"), (1, "add"), (1, "rollback")])
@example([(0, "connect"), (1, "connect"), (0, "add"), (0, "commit"), (1, "rollback")])
@example([(0, "add"), (0, "end_raw"), (0, "commit")])
@example([(0, "add_many_and_end_raw"), (0, "commit")])
@example([(0, "add_plainly_and_end_raw"), (0, "commit")])
@example([(0, "add"), (1, "add"), (2, "add"), (0, "commit"), (1, "clash")])
def test_what_is_left_is_the_same_as_with_every_savepoint_sent(
    database: Database, steps: list[tuple[int, str]]
) -> None:
    assert left_by(AttemptTransaction, database, steps) == left_by(SendsAll, database, steps)
