"""In a sync activity the application's ordinary session works in the step's transaction, whoever made the session."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from edda_wsgi import RetryPolicy, WorkflowContext, WorkflowFailedError, activity, workflow
from tests.integration.flask_apps import (
    KINDS,
    LITE,
    ONCE,
    SCOPED_SESSION,
    SESSIONMAKER,
    Note,
    Shop,
    open_shop,
    outside,
    saved_notes,
)
from tests.support import eventually


@pytest.fixture(params=KINDS)
def shop(request: pytest.FixtureRequest, database_url: str) -> Iterator[Shop]:
    with open_shop(database_url, kind=request.param) as opened:
        yield opened


@pytest.fixture
def flask_shop(database_url: str) -> Iterator[Shop]:
    """Flask-SQLAlchemy only, for what does not depend on who makes the sessions."""
    with open_shop(database_url) as opened:
        yield opened


class Gate:
    """Holds an activity at a point until the test has looked."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def stop_here(self) -> None:
        self._reached.set()
        assert self._open.wait(20)

    def wait_until_reached(self) -> None:
        assert self._reached.wait(20)

    def open(self) -> None:
        self._open.set()


# What a Flask developer does with a session.


def test_what_an_activity_commits_is_saved_with_its_step(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> int:
        note = Note(text="a")
        shop.session(ctx).add(note)
        shop.session(ctx).commit()
        return note.id

    assert shop.run(write) == 1
    assert saved_notes(shop.database_url) == ["a"]


def test_an_activity_that_commits_and_then_raises_leaves_nothing(shop: Shop) -> None:
    def write_then_raise(ctx: WorkflowContext) -> None:
        shop.session(ctx).add(Note(text="a"))
        shop.session(ctx).commit()
        raise ValueError("after the commit")

    with pytest.raises(WorkflowFailedError, match="after the commit"):
        shop.run(write_then_raise)

    assert saved_notes(shop.database_url) == []


def test_nothing_that_an_activity_committed_is_durable_while_it_runs(shop: Shop) -> None:
    gate = Gate()

    def write(ctx: WorkflowContext) -> None:
        shop.session(ctx).add(Note(text="a"))
        shop.session(ctx).commit()
        gate.stop_here()

    instance_id = shop.start(write)
    gate.wait_until_reached()
    while_it_runs = saved_notes(shop.database_url)
    gate.open()
    shop.edda.result(instance_id, timeout=20)

    assert while_it_runs == []
    assert saved_notes(shop.database_url) == ["a"]


def test_rollback_in_an_activity_drops_what_was_not_committed_and_keeps_what_was(shop: Shop) -> None:
    def write_twice(ctx: WorkflowContext) -> None:
        session = shop.session(ctx)
        session.add(Note(text="kept"))
        session.commit()
        session.add(Note(text="dropped"))
        session.flush()
        session.rollback()
        session.add(Note(text="after"))
        session.commit()

    shop.run(write_twice)

    assert saved_notes(shop.database_url) == ["kept", "after"]


def test_a_savepoint_in_an_activity_is_rolled_back_alone(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> None:
        session = shop.session(ctx)
        session.add(Note(text="outer"))
        savepoint = session.begin_nested()
        session.add(Note(text="inner"))
        session.flush()
        savepoint.rollback()
        with session.begin_nested():
            session.add(Note(text="second inner"))
        session.commit()

    shop.run(write)

    assert saved_notes(shop.database_url) == ["outer", "second inner"]


def test_ctx_transaction_is_a_savepoint_of_the_session(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> bool:
        session = shop.session(ctx)
        session.add(Note(text="outer"))
        session.flush()
        try:
            with ctx.transaction():
                session.add(Note(text="inner"))
                session.flush()
                raise KeyError("undo")
        except KeyError:
            pass
        return ctx.in_transaction()

    assert shop.run(write) is True
    assert saved_notes(shop.database_url) == ["outer"]


def test_an_activity_goes_on_after_a_caught_integrity_error(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> str:
        session = shop.session(ctx)
        session.add(Note(text="a"))
        session.commit()
        session.add(Note(text="a"))
        try:
            session.commit()
        except IntegrityError:
            session.rollback()
        session.add(Note(text="b"))
        session.commit()
        return "went on"

    assert shop.run(write) == "went on"
    assert saved_notes(shop.database_url) == ["a", "b"]


def test_an_activity_goes_on_after_an_integrity_error_in_a_savepoint(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> None:
        session = shop.session(ctx)
        session.add(Note(text="a"))
        session.flush()
        try:
            with session.begin_nested():
                session.add(Note(text="a"))
        except IntegrityError:
            pass
        session.add(Note(text="b"))
        session.commit()

    shop.run(write)

    assert saved_notes(shop.database_url) == ["a", "b"]


def test_a_nested_app_context_in_an_activity_writes_in_the_same_transaction(shop: Shop) -> None:
    if shop.kind == SESSIONMAKER:

        def session_of(ctx: WorkflowContext) -> object:
            return shop.db()
    else:

        def session_of(ctx: WorkflowContext) -> object:
            return shop.session(ctx)

    def write(ctx: WorkflowContext) -> list[str]:
        shop.session(ctx).add(Note(text="outer"))
        shop.session(ctx).commit()
        with shop.app.app_context():
            nested = session_of(ctx)
            seen = list(nested.scalars(select(Note.text)))  # type: ignore[attr-defined]
            nested.add(Note(text="nested"))  # type: ignore[attr-defined]
            nested.commit()  # type: ignore[attr-defined]
            nested.close()  # type: ignore[attr-defined]
        raise ValueError(seen)

    with pytest.raises(WorkflowFailedError, match="outer"):
        shop.run(write)

    assert saved_notes(shop.database_url) == []


def test_a_nested_app_context_that_ends_without_commit_drops_only_its_own_writes(flask_shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> None:
        flask_shop.db.session.add(Note(text="outer"))
        flask_shop.db.session.commit()
        with flask_shop.app.app_context():
            flask_shop.db.session.add(Note(text="nested"))
            flask_shop.db.session.flush()

    flask_shop.run(write)

    assert saved_notes(flask_shop.database_url) == ["outer"]


def test_an_outer_rollback_undoes_what_a_nested_app_context_committed_since_the_outer_commit(flask_shop: Shop) -> None:
    session = flask_shop.db.session

    def write(ctx: WorkflowContext) -> None:
        session.add(Note(text="outer"))
        session.commit()
        with flask_shop.app.app_context():
            session.add(Note(text="nested, while the outer session is between transactions"))
            session.commit()
        session.add(Note(text="outer again"))
        session.flush()
        with flask_shop.app.app_context():
            session.add(Note(text="nested, inside the savepoint of the outer session"))
            session.commit()
        session.rollback()
        session.add(Note(text="after"))

    flask_shop.run(write)

    assert saved_notes(flask_shop.database_url) == [
        "outer",
        "nested, while the outer session is between transactions",
        "after",
    ]


def test_a_rollback_in_a_nested_app_context_leaves_the_outer_session_as_it_is(flask_shop: Shop) -> None:
    session = flask_shop.db.session

    def write(ctx: WorkflowContext) -> None:
        session.add(Note(text="outer"))
        session.flush()
        with flask_shop.app.app_context():
            session.add(Note(text="nested"))
            session.flush()
            session.rollback()
        session.commit()

    flask_shop.run(write)

    assert saved_notes(flask_shop.database_url) == ["outer"]


def test_a_session_that_is_closed_without_a_commit_drops_what_it_wrote(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> str:
        session = shop.session(ctx)
        session.add(Note(text="dropped"))
        session.flush()
        session.close()
        session.add(note := Note(text="kept"))
        session.commit()
        session.refresh(note)
        session.close()
        return note.text

    assert shop.run(write) == "kept"
    assert saved_notes(shop.database_url) == ["kept"]


def test_an_activity_that_rolled_everything_back_is_done(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> str:
        shop.session(ctx).add(Note(text="dropped"))
        shop.session(ctx).flush()
        shop.session(ctx).rollback()
        return "done"

    assert shop.run(write) == "done"
    assert saved_notes(shop.database_url) == []


def test_a_late_rollback_of_a_session_whose_flush_failed_undoes_nothing_of_another(flask_shop: Shop) -> None:
    session = flask_shop.db.session

    def write(ctx: WorkflowContext) -> None:
        session.add_all([Note(text="a"), Note(text="a")])
        with pytest.raises(IntegrityError):
            session.flush()
        with flask_shop.app.app_context():
            session.add(Note(text="nested"))
            session.commit()
        session.rollback()

    flask_shop.run(write)

    assert saved_notes(flask_shop.database_url) == ["nested"]


def test_what_was_started_before_the_session_is_used_outlives_its_rollback(flask_shop: Shop) -> None:
    @workflow
    async def nothing(ctx: WorkflowContext) -> None: ...

    def start_then_roll_back(ctx: WorkflowContext) -> str:
        instance_id = nothing.start()
        flask_shop.db.session.add(Note(text="dropped"))
        flask_shop.db.session.flush()
        flask_shop.db.session.rollback()
        return instance_id

    instance_id = flask_shop.run(start_then_roll_back)

    assert flask_shop.edda.result(instance_id, timeout=20) is None
    assert saved_notes(flask_shop.database_url) == []


def test_an_activity_with_one_commit_sends_no_savepoint(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    execute = psycopg.Cursor.execute

    def listen_and_execute(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
        sent.append(str(query))
        return execute(cursor, query, *args, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", listen_and_execute)
    with open_shop(postgres_url) as shop:

        def write(ctx: WorkflowContext) -> None:
            shop.db.session.add(Note(text="a"))
            shop.db.session.commit()

        def write_twice(ctx: WorkflowContext) -> None:
            for text in ("b", "c"):
                shop.db.session.add(Note(text=text))
                shop.db.session.commit()

        shop.run(write)
        once = [query for query in sent if "SAVEPOINT" in query]
        shop.run(write_twice)
        twice = [query.rpartition("_")[0] for query in sent if "SAVEPOINT" in query]

    assert sum("INSERT INTO note" in query for query in sent) == 3
    assert (once, twice) == ([], ["SAVEPOINT sa_savepoint", "RELEASE SAVEPOINT sa_savepoint"])


def test_an_activity_that_handles_a_database_that_does_not_answer_is_done_or_tries_again_itself(shop: Shop) -> None:
    fails = [True, True]

    def fail(_conn: object) -> None:
        if fails and fails.pop():
            raise OperationalError("BEGIN", {}, Exception("no answer"))

    def give_up(ctx: WorkflowContext) -> str:
        try:
            shop.session(ctx).execute(select(Note))
        except OperationalError:
            return "gave up"
        return "was answered"

    def try_twice(ctx: WorkflowContext) -> None:
        assert give_up(ctx) == "gave up"
        shop.session(ctx).rollback()
        shop.session(ctx).add(Note(text="second try"))

    with shop.app.app_context():
        engine = shop.engine
    shop.edda.start_worker()
    in_activity = lambda conn: fail(conn) if threading.current_thread().name.startswith("edda-activity") else None  # noqa: E731
    event.listen(engine, "begin", in_activity)

    assert shop.run(give_up) == "gave up"
    shop.run(try_twice)

    assert (fails, saved_notes(shop.database_url)) == ([], ["second try"])


def test_after_a_failed_statement_that_was_not_rolled_back_postgresql_saves_nothing_and_the_activity_is_tried_again(
    postgres_url: str,
) -> None:
    attempts: list[int] = []
    twice = RetryPolicy(max_attempts=2, initial_interval=0.01)

    with open_shop(postgres_url) as shop:

        @activity(retry_policy=twice)
        def swallow(ctx: WorkflowContext) -> None:
            attempts.append(ctx.attempt)
            shop.db.session.add(Note(text=f"attempt {ctx.attempt}"))
            shop.db.session.flush()
            if ctx.attempt == 1:
                with pytest.raises(ProgrammingError):
                    shop.db.session.execute(text("SELECT nonsense"))

        @workflow
        async def flow(ctx: WorkflowContext) -> None:
            await swallow(ctx)

        shop.edda.start_worker()
        with shop.app.app_context():
            instance_id = flow.options(session=None).start()
        shop.edda.result(instance_id, timeout=20)
        (step,) = [each for each in shop.edda.history(instance_id) if each.activity_id == "swallow:1"]

    assert attempts == [1, 2]
    assert saved_notes(postgres_url) == ["attempt 2"]
    error = step.event_data["retry_metadata"]["errors"][0]
    assert error["error_type"] == "InternalError"
    assert "current transaction is aborted" in error["message"]
    assert "edda_" not in error["message"]


def test_bulk_statements_belong_to_the_step(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> None:
        session = shop.session(ctx)
        session.execute(insert(Note), [{"text": f"n{number}"} for number in range(3)])
        session.execute(update(Note).where(Note.text == "n0").values(text="changed"))
        session.bulk_save_objects([Note(text="bulk")])
        session.execute(text("INSERT INTO note (id, text) VALUES (100, 'raw')"))
        session.commit()

    def write_and_raise(ctx: WorkflowContext) -> None:
        shop.session(ctx).execute(update(Note).values(text=Note.text + "!"))
        shop.session(ctx).execute(insert(Note), [{"id": 101, "text": "gone"}])
        shop.session(ctx).commit()
        raise ValueError("undo")

    shop.run(write)
    with pytest.raises(WorkflowFailedError):
        shop.run(write_and_raise)

    assert saved_notes(shop.database_url) == ["changed", "n1", "n2", "bulk", "raw"]


def test_what_an_activity_added_and_did_not_commit_is_saved_with_its_step(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> None:
        shop.session(ctx).add(Note(text="pending"))

    shop.run(write)

    assert saved_notes(shop.database_url) == ["pending"]


def test_uncommitted_adds_that_the_database_refuses_fail_the_activity(shop: Shop) -> None:
    def write_twice_the_same(ctx: WorkflowContext) -> None:
        shop.session(ctx).add_all([Note(text="a"), Note(text="a")])

    with pytest.raises(WorkflowFailedError, match="IntegrityError"):
        shop.run(write_twice_the_same)

    assert saved_notes(shop.database_url) == []


def test_ctx_session_is_the_session_of_the_application(flask_shop: Shop) -> None:
    def compare(ctx: WorkflowContext) -> bool:
        return ctx.session is flask_shop.db.session()

    assert flask_shop.run(compare) is True


def test_ctx_session_is_the_scoped_session(database_url: str) -> None:
    with open_shop(database_url, kind=SCOPED_SESSION) as shop:

        def compare(ctx: WorkflowContext) -> bool:
            return ctx.session is shop.db()

        assert shop.run(compare) is True


def test_ctx_session_is_the_session_of_flask_sqlalchemy_lite(database_url: str) -> None:
    with open_shop(database_url, kind=LITE) as shop:

        def compare(ctx: WorkflowContext) -> bool:
            return ctx.session is shop.db.session

        assert shop.run(compare) is True


def test_sessions_that_an_activity_makes_itself_write_in_its_transaction(database_url: str) -> None:
    with open_shop(database_url, kind=SESSIONMAKER) as shop:
        gate = Gate()

        def write(ctx: WorkflowContext) -> None:
            with shop.db.begin() as session:
                session.add(Note(text="first"))
            with shop.db() as session:
                session.add(Note(text="second"))
                session.commit()
            with shop.db() as session:
                session.add(Note(text="never committed"))
                session.flush()
            gate.stop_here()

        instance_id = shop.start(write)
        gate.wait_until_reached()
        while_it_runs = saved_notes(database_url)
        gate.open()
        shop.edda.result(instance_id, timeout=20)

        assert while_it_runs == []
        assert saved_notes(database_url) == ["first", "second"]


def test_an_activity_reads_what_it_wrote_and_what_others_committed(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> None:
        shop.session(ctx).add(Note(text="earlier"))

    def write_and_read(ctx: WorkflowContext) -> list[str]:
        shop.session(ctx).add(Note(text="own"))
        shop.session(ctx).commit()
        return sorted(shop.session(ctx).scalars(select(Note.text)))

    shop.run(write)

    assert shop.run(write_and_read) == ["earlier", "own"]


def test_a_result_that_cannot_be_encoded_undoes_what_the_activity_committed(shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> object:
        shop.session(ctx).add(Note(text="a"))
        shop.session(ctx).commit()
        return object()

    with pytest.raises(WorkflowFailedError, match="PayloadError"):
        shop.run(write)

    assert saved_notes(shop.database_url) == []


def test_each_attempt_begins_with_an_empty_session(shop: Shop) -> None:
    attempts = []

    @activity(retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.01))
    def write(ctx: WorkflowContext) -> int:
        session = shop.session(ctx)
        attempts.append((len(session.new), session.scalar(text("SELECT count(*) FROM note"))))
        session.add(Note(text="a"))
        session.commit()
        session.add(Note(text="b"))
        if ctx.attempt < 3:
            raise ValueError("again")
        return ctx.attempt

    @workflow
    async def flow(ctx: WorkflowContext) -> int:
        return await write(ctx)

    shop.edda.start_worker()
    with shop.app.app_context():
        instance_id = flow.options(session=None).start()

    assert shop.edda.result(instance_id, timeout=20) == 3
    assert attempts == [(0, 0), (0, 0), (0, 0)]
    assert saved_notes(shop.database_url) == ["a", "b"]


# Other binds.


def test_a_model_on_another_bind_of_flask_sqlalchemy_is_outside_the_transaction(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other_url = f"sqlite:///{tmp_path_factory.mktemp('other') / 'other.db'}"
    with open_shop(database_url, config={"SQLALCHEMY_BINDS": {"other": other_url}}) as shop:

        class Entry(shop.db.Model):  # type: ignore[name-defined,misc]
            __bind_key__ = "other"
            id = shop.db.Column(shop.db.Integer, primary_key=True)

        with shop.app.app_context():
            shop.db.create_all(bind_key="other")

        def write(ctx: WorkflowContext) -> None:
            shop.db.session.add_all([Note(text="a"), Entry(id=7)])
            shop.db.session.commit()
            raise ValueError("after the commit")

        with pytest.raises(WorkflowFailedError, match="after the commit"):
            shop.run(write)

        with outside(other_url) as engine, engine.connect() as conn:
            assert list(conn.execute(text("SELECT id FROM entry")).scalars()) == [7]
        assert saved_notes(database_url) == []

        def drop(ctx: WorkflowContext) -> None:
            for each in (Note(text="a"), Entry(id=8)):
                shop.db.session.add(each)
                shop.db.session.flush()
            shop.db.session.close()

        shop.run(drop)

        with outside(other_url) as engine, engine.connect() as conn:
            assert list(conn.execute(text("SELECT id FROM entry")).scalars()) == [7]
        assert saved_notes(database_url) == []
        with shop.app.app_context():
            shop.db.engines["other"].dispose()


def test_a_model_on_another_bind_is_left_alone_in_an_async_activity(sqlite_url: str, tmp_path: Path) -> None:
    other_url = f"sqlite:///{tmp_path / 'other.db'}"
    with open_shop(sqlite_url, config={"SQLALCHEMY_BINDS": {"other": other_url}}) as shop:

        class Visit(shop.db.Model):  # type: ignore[name-defined,misc]
            __bind_key__ = "other"
            id = shop.db.Column(shop.db.Integer, primary_key=True)

        with shop.app.app_context():
            shop.db.create_all(bind_key="other")

        async def write(ctx: WorkflowContext) -> int:
            shop.db.session.add(Visit(id=7))
            shop.db.session.commit()
            return shop.db.session.query(Visit).count()

        assert shop.run(write) == 1
        with shop.app.app_context():
            shop.db.engines["other"].dispose()


# Connections and transactions.


def test_no_connection_is_taken_before_the_first_sql_of_an_activity(shop: Shop) -> None:
    before, after = Gate(), Gate()

    def wait_then_write(ctx: WorkflowContext) -> None:
        session = shop.session(ctx)
        session.add(Note(text="a"))
        before.stop_here()
        session.flush()
        after.stop_here()

    with shop.app.app_context():
        pool = shop.engine.pool
    instance_id = shop.start(wait_then_write)
    before.wait_until_reached()
    # Reading the row that tells of the start is over soon; then nothing is checked out.
    eventually(lambda: pool.checkedout() == 0)
    _assert_nobody_is_in_a_transaction(shop.database_url)
    before.open()
    after.wait_until_reached()
    in_transaction = pool.checkedout()
    after.open()
    shop.edda.result(instance_id, timeout=20)

    assert in_transaction == 1
    assert eventually(lambda: pool.checkedout() == 0)


def _assert_nobody_is_in_a_transaction(database_url: str) -> None:
    def none_is_open() -> bool:
        with outside(database_url) as engine, engine.connect() as conn:
            if engine.dialect.name == "sqlite":
                # Only one may write; this one could not if a transaction had written.
                conn.exec_driver_sql("PRAGMA busy_timeout = 5000")
                conn.connection.dbapi_connection.execute("BEGIN IMMEDIATE").close()  # type: ignore[union-attr]
                conn.connection.dbapi_connection.rollback()  # type: ignore[union-attr]
                return True
            found = conn.execute(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type = 'client backend'"
                )
            ).scalar()
            return found == 0

    assert eventually(none_is_open, timeout=5)


def test_five_hundred_activities_return_every_connection(shop: Shop) -> None:
    @activity
    def count(ctx: WorkflowContext, number: int) -> int:
        return shop.session(ctx).scalar(text("SELECT :n + 1"), {"n": number})

    @activity
    def fail(ctx: WorkflowContext) -> None:
        shop.session(ctx).execute(text("SELECT 1"))
        raise ValueError("nothing")

    fail_once = activity(name="fail_once", retry_policy=ONCE)(fail.function)

    @workflow
    async def fifty(ctx: WorkflowContext) -> int:
        number = 0
        for _ in range(49):
            number = await count(ctx, number)
        try:
            await fail_once(ctx)
        except Exception:
            number += 1
        return number

    shop.edda.start_worker()
    with shop.app.app_context():
        pool = shop.engine.pool
        started = [fifty.options(session=None).start() for _ in range(10)]

    assert [shop.edda.result(instance_id, timeout=60) for instance_id in started] == [50] * 10
    assert eventually(lambda: pool.checkedout() == 0)


def test_the_session_of_an_activity_is_removed_after_it(shop: Shop) -> None:
    def open_a_session(ctx: WorkflowContext) -> tuple[int, bool]:
        session = shop.session(ctx)
        was_new = "seen" not in session.info
        session.info["seen"] = True
        session.execute(text("SELECT 1"))
        return id(session), was_new

    assert all(shop.run(open_a_session)[1] for _ in range(5))


# Where a session may not be used, or may be used otherwise.


def test_a_session_in_a_workflow_body_is_refused_with_a_sentence(flask_shop: Shop) -> None:
    @workflow
    async def reads_in_its_body(ctx: WorkflowContext) -> None:
        flask_shop.db.session.scalars(select(Note.text)).all()

    flask_shop.edda.start_worker()
    with flask_shop.app.app_context():
        instance_id = reads_in_its_body.options(session=None).start()

    with pytest.raises(
        WorkflowFailedError, match=r"db\.session was used in the body of workflow 'reads_in_its_body'.*@activity"
    ):
        flask_shop.edda.result(instance_id, timeout=20)


@pytest.mark.parametrize("kind", [LITE, SCOPED_SESSION])
def test_a_session_of_any_kind_is_refused_in_a_plain_body(database_url: str, kind: str) -> None:
    with open_shop(database_url, kind=kind) as shop:

        @workflow
        def writes_in_its_body(ctx: WorkflowContext) -> None:
            shop.session().add(Note(text="a"))
            shop.session().commit()

        shop.edda.start_worker()
        with shop.app.app_context():
            instance_id = writes_in_its_body.options(session=None).start()

        with pytest.raises(WorkflowFailedError, match=r"db\.session was used in the body"):
            shop.edda.result(instance_id, timeout=20)
        assert saved_notes(database_url) == []


def test_ctx_session_in_a_body_is_refused(flask_shop: Shop) -> None:
    @workflow
    async def asks_for_a_session(ctx: WorkflowContext) -> None:
        ctx.session

    flask_shop.edda.start_worker()
    with flask_shop.app.app_context():
        instance_id = asks_for_a_session.options(session=None).start()

    with pytest.raises(WorkflowFailedError, match=r"UsageError.*session"):
        flask_shop.edda.result(instance_id, timeout=20)


def test_the_application_session_is_refused_in_an_async_activity(shop: Shop) -> None:
    async def blocks_the_loop(ctx: WorkflowContext) -> None:
        session = shop.db() if shop.kind == SESSIONMAKER else shop.session()
        session.execute(text("SELECT 1"))

    with pytest.raises(WorkflowFailedError, match=r"was used in the async activity 'blocks_the_loop:1'.*ctx\.session"):
        shop.run(blocks_the_loop)


@pytest.mark.parametrize("kind", KINDS)
def test_an_add_to_the_application_session_in_an_async_activity_is_refused_instead_of_lost(
    sqlite_url: str, kind: str
) -> None:
    with open_shop(sqlite_url, kind=kind) as shop:

        async def write(ctx: WorkflowContext) -> None:
            session = shop.db() if kind == SESSIONMAKER else shop.session(ctx)
            session.add(Note(text="never flushed"))

        with pytest.raises(WorkflowFailedError, match=r"async activity 'write:1'.*ctx\.session\.add\(\.\.\.\)"):
            shop.run(write)


def test_ctx_session_of_an_async_activity_is_saved_with_its_step(shop: Shop) -> None:
    async def write(ctx: WorkflowContext) -> list[str]:
        ctx.session.add(Note(text="a"))
        await ctx.session.commit()
        async with ctx.transaction():
            ctx.session.add(Note(text="b"))
        return list(await ctx.session.scalars(select(Note.text).order_by(Note.id)))

    assert shop.run(write) == ["a", "b"]
    assert saved_notes(shop.database_url) == ["a", "b"]


def test_an_async_activity_that_commits_and_then_raises_leaves_nothing(shop: Shop) -> None:
    async def write(ctx: WorkflowContext) -> None:
        ctx.session.add(Note(text="a"))
        await ctx.session.commit()
        raise ValueError("after the commit")

    with pytest.raises(WorkflowFailedError, match="after the commit"):
        shop.run(write)

    assert saved_notes(shop.database_url) == []


def test_an_activity_has_another_session_than_the_request_that_started_it(flask_shop: Shop) -> None:
    app, db = flask_shop.app, flask_shop.db

    def note_its_session(ctx: WorkflowContext) -> tuple[int, int]:
        return id(db.session()), len(db.session.new)

    step = activity(retry_policy=ONCE)(note_its_session)

    @workflow
    async def flow(ctx: WorkflowContext) -> tuple[int, int]:
        return await step(ctx)

    @app.get("/")
    def view() -> dict[str, object]:
        db.session.add(Note(text="never committed"))
        instance_id = flow.options(session=None).start()
        seen_id, pending = flask_shop.edda.result(instance_id, timeout=20)
        return {"same": seen_id == id(db.session()), "pending": pending}

    flask_shop.edda.start_worker()

    with app.test_client() as client:
        assert client.get("/").get_json() == {"same": False, "pending": 0}


def test_an_activity_runs_in_an_app_context_and_in_no_request(flask_shop: Shop) -> None:
    from flask import current_app, has_request_context

    def look(ctx: WorkflowContext) -> tuple[str, bool]:
        return current_app.name, has_request_context()

    step = activity(retry_policy=ONCE)(look)

    @workflow
    async def flow(ctx: WorkflowContext) -> tuple[str, bool]:
        return await step(ctx)

    @flask_shop.app.get("/")
    def view() -> list[object]:
        return list(flask_shop.edda.result(flow.options(session=None).start(), timeout=20))

    flask_shop.edda.start_worker()

    assert flask_shop.app.test_client().get("/").get_json() == ["shop", False]


def test_a_session_of_a_callback_after_the_commit_is_an_ordinary_one(flask_shop: Shop) -> None:
    def write(ctx: WorkflowContext) -> None:
        flask_shop.db.session.add(Note(text="step"))

        def note_it() -> None:
            flask_shop.db.session.add(Note(text="callback"))
            flask_shop.db.session.commit()

        ctx.register_post_commit(note_it)

    flask_shop.run(write)

    assert eventually(lambda: saved_notes(flask_shop.database_url) == ["step", "callback"])
