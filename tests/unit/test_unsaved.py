"""What is to follow a commit: called then and only then, whatever else is done with the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from edda_engine.unsaved import after_commit

MakeSession = Callable[..., Session]


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def new() -> Iterator[MakeSession]:
    """Makes sessions in which something was done."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    made: list[Session] = []

    def make(**options: object) -> Session:
        session = Session(engine, **options)  # type: ignore[arg-type]
        session.execute(text("SELECT 1"))
        made.append(session)
        return session

    yield make
    for session in made:
        session.close()
    engine.dispose()


def test_it_is_called_once_after_the_commit(new: MakeSession) -> None:
    session, called = new(), list[str]()
    unsaved = after_commit(session, lambda: called.append("now"), instance_id="i")
    assert (called, unsaved.instance_ids) == ([], ["i"])
    session.commit()
    session.execute(text("SELECT 1"))
    session.commit()
    assert (called, unsaved.instance_ids) == (["now"], [])


def test_what_its_owner_does_with_the_sessions_info_does_not_matter(new: MakeSession) -> None:
    session, called = new(info={"tenant": "a"}), list[str]()
    after_commit(session, lambda: called.append("first"))
    other = new(info=session.info)
    session.info.clear()
    other.commit()
    assert called == []
    session.commit()
    assert called == ["first"]


def test_an_open_savepoint_goes_with_the_one_around_it_that_is_rolled_back(new: MakeSession) -> None:
    session, called = new(), list[str]()
    outer = session.begin_nested()
    session.begin_nested()
    unsaved = after_commit(session, lambda: called.append("never"), instance_id="i")
    outer.rollback()
    assert unsaved.instance_ids == []
    after_commit(session, lambda: called.append("later"))
    session.commit()
    assert called == ["later"]


def test_a_savepoint_that_a_failed_flush_gave_up_leaves_nothing(new: MakeSession) -> None:
    session, called = new(), list[str]()
    session.add(Row(id=1))
    session.flush()

    def change_and_fail() -> None:
        with session.begin_nested():
            after_commit(session, lambda: called.append("never"))
            session.execute(text("INSERT INTO rows VALUES (2)"))
            session.add(Row(id=2))
            session.flush()

    with pytest.raises(IntegrityError):
        change_and_fail()
    session.commit()
    assert called == []


@pytest.mark.parametrize("is_released", [True, False])
def test_a_savepoint_that_is_closed_leaves_nothing(new: MakeSession, is_released: bool) -> None:
    session, called = new(), list[str]()
    outer = session.begin_nested()
    inner = session.begin_nested()
    after_commit(session, lambda: called.append("never"))
    if is_released:
        inner.commit()
    outer.close()
    session.commit()
    assert called == []


def test_a_released_savepoint_belongs_to_the_one_around_it(new: MakeSession) -> None:
    session, called = new(), list[str]()
    outer = session.begin_nested()
    inner = session.begin_nested()
    after_commit(session, lambda: called.append("never"))
    inner.commit()
    outer.rollback()
    session.commit()
    assert called == []


def test_a_session_that_is_closed_has_lost_it_and_serves_again(new: MakeSession) -> None:
    session, called = new(), list[str]()
    unsaved = after_commit(session, lambda: called.append("never"), instance_id="lost")
    session.close()
    assert unsaved.lost_ids == ["lost"]
    after_commit(session, lambda: called.append("again"))
    session.commit()
    assert called == ["again"]
