"""SQLite admits one writer: a request that would wait for itself is told so at once, and nobody else is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, event, insert, select, text, update
from sqlalchemy.orm import Session

from edda_wsgi import UsageError, WorkflowContext, workflow
from edda_wsgi.writers import Writers
from tests.integration.flask_apps import KINDS, SESSIONMAKER, Base, Note, Shop, open_shop, saved_instances, saved_notes


@pytest.fixture
def shop(sqlite_url: str) -> Iterator[Shop]:
    with open_shop(sqlite_url) as opened:
        yield opened


def declare_order():  # type: ignore[no-untyped-def]
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> int:
        return number * 10

    return order


AT_ONCE: dict[str, Callable[[Shop], Any]] = {
    "start": lambda shop: declare_order().options(session=None).start(1),
    "cancel": lambda shop: shop.edda.cancel("x", session=None),
    "retry": lambda shop: shop.edda.retry("x", session=None),
    "send_event": lambda shop: shop.edda.send_event("paid", "test", 1, session=None),
    "publish": lambda shop: shop.edda.publish("news", 1, session=None),
    "send_to": lambda shop: shop.edda.send_to("x", 1, session=None),
    "send_event_transactional": lambda shop: shop.edda.send_event_transactional("paid", "test", 1, session=None),
}


@pytest.mark.parametrize("request_name", AT_ONCE)
def test_a_request_of_its_own_beside_a_session_that_has_written_is_refused_at_once(
    shop: Shop, request_name: str
) -> None:
    with shop.app.app_context():
        shop.session().add(Note(text="a"))
        shop.session().flush()
        with pytest.raises(UsageError, match=rf"{request_name}\(\) is committed at once.*Commit first, or pass"):
            AT_ONCE[request_name](shop)
        shop.session().commit()

    assert saved_notes(shop.database_url) == ["a"]
    assert saved_instances(shop.database_url) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_is_refused_until_the_session_has_committed_or_joins_it(sqlite_url: str, kind: str) -> None:
    order = declare_order()
    with open_shop(sqlite_url, kind=kind) as shop, shop.app.app_context():
        # With a plain sessionmaker there is no current session, so this is what start() does without options.
        shop.edda.find_instances()  # as before each request
        at_once = order if kind == SESSIONMAKER else order.options(session=None)
        session = shop.session()
        session.add(Note(text="a"))
        session.flush()
        with pytest.raises(UsageError, match=r"order\.start\(\)"):
            at_once.start(1)
        joined = order.options(session=session).start(2)
        session.commit()
        alone = at_once.start(3)
        session.close()

        assert saved_instances(sqlite_url) == [joined, alone]


WRITES: dict[str, Callable[[Session], Any]] = {
    "an update of nothing": lambda session: session.execute(update(Note).where(Note.id == 7).values(text="x")),
    "text": lambda session: session.execute(text("  delete from note")),
    "the connection": lambda session: session.connection().execute(insert(Note).values(text="x")),
    "a savepoint": lambda session: (session.begin_nested() and session.add(Note(text="x"))) or session.flush(),
}


@pytest.mark.parametrize("written", WRITES)
def test_whatever_takes_the_place_of_the_writer_counts(shop: Shop, written: str) -> None:
    order = declare_order()
    with shop.app.app_context():
        shop.edda.find_instances()  # as before each request
        session = shop.session()
        WRITES[written](session)
        with pytest.raises(UsageError, match="Commit first"):
            order.options(session=None).start(1)


def test_a_transaction_of_the_engine_counts_as_well(shop: Shop) -> None:
    order = declare_order()
    with shop.app.app_context():
        shop.edda.find_instances()
    with shop.app.app_context(), shop.engine.begin() as conn:
        conn.execute(insert(Note).values(text="a"))
        with pytest.raises(UsageError, match="Commit first"):
            order.options(session=None).start(1)


def test_a_start_in_another_session_than_the_one_that_has_written_is_refused(shop: Shop) -> None:
    order = declare_order()
    with shop.app.app_context():
        shop.session().add(Note(text="a"))
        shop.session().flush()
        with Session(shop.engine) as another:
            with pytest.raises(UsageError, match="use one session for both"):
                order.options(session=another).start(1)
            shop.session().rollback()
            instance_id = order.options(session=another).start(1)
            another.commit()

        assert saved_instances(shop.database_url) == [instance_id]


def test_a_session_that_has_only_read_or_has_ended_its_transaction_is_no_writer(shop: Shop) -> None:
    order = declare_order()
    with shop.app.app_context():
        session = shop.session()
        started = []
        session.scalars(select(Note)).all()
        started.append(order.options(session=None).start(1))
        session.add(Note(text="a"))
        session.commit()
        session.begin_nested()  # a transaction again, and only reading
        session.scalars(select(Note)).all()
        started.append(order.options(session=None).start(2))
        session.rollback()
        session.add(Note(text="b"))
        session.flush()
        session.rollback()
        started.append(order.options(session=None).start(3))

    assert saved_instances(shop.database_url) == started


def test_an_application_that_begins_its_transactions_itself_may_read_beside_a_start(sqlite_url: str) -> None:
    order = declare_order()
    with open_shop(sqlite_url) as shop, shop.app.app_context():
        # As SQLAlchemy's documentation on pysqlite says.
        event.listen(shop.engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
        event.listen(shop.engine, "begin", lambda conn: conn.exec_driver_sql("BEGIN"))
        shop.engine.dispose()
        shop.edda.find_instances()
        shop.session().scalars(select(Note)).all()
        instance_id = order.options(session=None).start(1)
        shop.session().rollback()
        shop.session().add(Note(text="a"))
        shop.session().flush()
        with pytest.raises(UsageError, match="Commit first"):
            order.options(session=None).start(2)

        assert saved_instances(sqlite_url) == [instance_id]


def test_on_postgresql_nobody_waits_and_nobody_is_refused(postgres_url: str) -> None:
    order = declare_order()
    with open_shop(postgres_url) as shop, shop.app.app_context():
        shop.session().add(Note(text="a"))
        shop.session().flush()
        instance_id = order.options(session=None).start(1)
        shop.session().rollback()

        assert (saved_instances(postgres_url), saved_notes(postgres_url)) == ([instance_id], [])


def test_only_the_thread_that_has_written_waits_for_itself_and_nothing_is_kept_after_it(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    writers = Writers(engine)
    written, asked = threading.Event(), threading.Event()
    answers: list[bool] = []

    def write() -> None:
        with Session(engine) as session:
            session.add(Note(text="a"))
            session.flush()
            answers.append(writers.is_waiting_for_itself())
            written.set()
            assert asked.wait(20)

    thread = threading.Thread(target=write)
    thread.start()
    assert written.wait(20)
    elsewhere = writers.is_waiting_for_itself()
    asked.set()
    thread.join()
    with Session(engine) as session:  # on the very connection that the thread has given back
        session.add(Note(text="b"))
        session.commit()
    engine.dispose()

    assert (answers, elsewhere, writers._threads) == ([True], False, {})
