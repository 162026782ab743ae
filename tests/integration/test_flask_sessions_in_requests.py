"""In a request the application's session is what it was without edda."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from edda_wsgi import WorkflowContext, workflow
from tests.integration.flask_apps import FLASK_SQLALCHEMY, LITE, SCOPED_SESSION, Note, Shop, open_shop, saved_notes


@pytest.fixture(params=[FLASK_SQLALCHEMY, LITE, SCOPED_SESSION])
def shop(request: pytest.FixtureRequest, database_url: str) -> Iterator[Shop]:
    """With everything in place that could disturb a request: tables, shared factory, a running engine."""
    with open_shop(database_url, kind=request.param) as opened:
        opened.edda.start_worker()
        yield opened


def test_a_request_that_commits_is_saved(shop: Shop) -> None:
    @shop.app.post("/")
    def view() -> str:
        shop.session().add(Note(text="a"))
        shop.session().commit()
        return "ok"

    shop.app.test_client().post("/")

    assert saved_notes(shop.database_url) == ["a"]


def test_a_commit_in_a_request_is_durable_at_once(shop: Shop) -> None:
    @shop.app.post("/")
    def view() -> list[str]:
        shop.session().add(Note(text="a"))
        shop.session().commit()
        return saved_notes(shop.database_url)

    assert shop.app.test_client().post("/").get_json() == ["a"]


def test_a_request_that_ends_without_commit_leaves_nothing(shop: Shop) -> None:
    @shop.app.post("/")
    def view() -> str:
        shop.session().add(Note(text="a"))
        shop.session().flush()
        return "ok"

    shop.app.test_client().post("/")

    assert saved_notes(shop.database_url) == []


def test_rollback_in_a_request_undoes_everything_since_the_commit(shop: Shop) -> None:
    @shop.app.post("/")
    def view() -> str:
        session = shop.session()
        session.add(Note(text="a"))
        session.commit()
        session.add(Note(text="b"))
        session.flush()
        session.rollback()
        session.add(Note(text="c"))
        session.commit()
        return "ok"

    shop.app.test_client().post("/")

    assert saved_notes(shop.database_url) == ["a", "c"]


def test_a_savepoint_in_a_request_is_rolled_back_alone(shop: Shop) -> None:
    @shop.app.post("/")
    def view() -> str:
        session = shop.session()
        session.add(Note(text="outer"))
        session.flush()
        savepoint = session.begin_nested()
        session.add(Note(text="inner"))
        session.flush()
        savepoint.rollback()
        session.commit()
        return "ok"

    shop.app.test_client().post("/")

    assert saved_notes(shop.database_url) == ["outer"]


def test_a_savepoint_that_comes_first_in_a_request_is_not_committed_by_its_release(shop: Shop) -> None:
    @shop.app.post("/")
    def view() -> list[str]:
        session = shop.session()
        with session.begin_nested():
            session.add(Note(text="released, not committed"))
        seen = saved_notes(shop.database_url)
        session.rollback()
        return seen

    assert shop.app.test_client().post("/").get_json() == []
    assert saved_notes(shop.database_url) == []


def test_a_savepoint_whose_integrity_error_is_caught_leaves_the_request_usable(shop: Shop) -> None:
    @shop.app.post("/")
    def view() -> str:
        session = shop.session()
        session.add(Note(text="a"))
        session.flush()
        try:
            with session.begin_nested():
                session.add(Note(text="a"))
        except IntegrityError:
            pass
        session.add(Note(text="b"))
        session.commit()
        return "ok"

    shop.app.test_client().post("/")

    assert saved_notes(shop.database_url) == ["a", "b"]


def test_two_app_contexts_have_sessions_of_their_own(database_url: str) -> None:
    with open_shop(database_url) as shop, shop.app.app_context():
        outer = shop.db.session()
        with shop.app.app_context():
            inner = shop.db.session()

        assert outer is not inner


def test_a_request_does_not_see_what_an_other_one_has_not_committed(shop: Shop) -> None:
    if shop.kind == SCOPED_SESSION:
        first, second = shop.db.session_factory(), shop.db.session_factory()
        first.add(Note(text="a"))
        first.flush()
        seen = second.scalars(select(Note.text)).all()
        first.close()
        second.close()
    else:
        with shop.app.app_context():
            shop.session().add(Note(text="a"))
            shop.session().flush()
            with shop.app.app_context():
                seen = shop.session().scalars(select(Note.text)).all()

    assert seen == []


def test_requests_return_their_connections(shop: Shop) -> None:
    @shop.app.get("/")
    def view() -> list[str]:
        return list(shop.session().scalars(select(Note.text)))

    with shop.app.app_context():
        pool = shop.engine.pool
    client = shop.app.test_client()
    for _ in range(50):
        client.get("/")

    assert pool.checkedout() == 0


def test_readers_in_requests_do_not_wait_for_an_activity_that_writes(shop: Shop) -> None:
    seen: list[list[str]] = []

    @shop.app.get("/")
    def view() -> list[str]:
        return list(shop.session().scalars(select(Note.text)))

    def write(ctx: WorkflowContext) -> None:
        shop.session(ctx).add(Note(text="in the activity"))
        shop.session(ctx).flush()
        import contextvars
        import threading

        # A request comes on a thread of its own, with nothing of the activity's context.
        request = threading.Thread(
            target=contextvars.Context().run, args=(lambda: seen.append(shop.app.test_client().get("/").get_json()),)
        )
        request.start()
        request.join(10)

    shop.run(write)

    assert seen == [[]]


def test_a_plain_session_outside_any_activity_is_untouched_by_sharing(database_url: str) -> None:
    with open_shop(database_url, kind="sessionmaker") as shop:

        @workflow
        async def nothing(ctx: WorkflowContext) -> None:
            return None

        with shop.app.app_context():
            nothing.start()
        with shop.db.begin() as session:
            session.add(Note(text="a"))
        with shop.db() as session:
            session.add(Note(text="never committed"))
            session.flush()

        assert saved_notes(database_url) == ["a"]
