"""Statements that are given to the driver: their rows, their errors, and the connections that they leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy import (
    Float,
    Text,
    bindparam,
    cast,
    create_engine,
    event,
    func,
    literal,
    literal_column,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import psycopg as psycopg_of_sqlalchemy
from sqlalchemy.dialects.postgresql import psycopg2 as psycopg2_of_sqlalchemy
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from edda_engine.storage import at_once, claim_at_once, outlook
from edda_engine.storage.alone import Alone
from edda_engine.storage.database import Database, is_outage, may_be_repeated
from edda_engine.storage.prepared import is_one_of
from edda_engine.storage.types import UtcTimestamp, clock
from tests.integration.engines import storage
from tests.support import eventually

_SAID = Alone(
    lambda: select(
        literal("a%b").label("text"),
        literal_column("'100%'").label("percent"),
        literal("it's a \\ and a $1").label("quoted"),
        cast(1.5, Float).label("number"),
        clock().label("now"),
        literal(datetime(2026, 1, 2, 3, 4, 5, 6, UTC), UtcTimestamp()).label("then"),
        is_one_of("postgresql", literal("x"), "names").label("is_named"),
    )
)
_MISSING = Alone(lambda: select(literal_column("1").label("one")).select_from(text("not_there")))
_DIVIDED = Alone(lambda: select((literal_column("1") / func.length(literal_column("''"))).label("infinite")))
_OURS = Alone(lambda: select(func.pg_backend_pid().label("pid")))


@pytest.fixture(params=["psycopg", "psycopg2", "client side", "no pool"])
def database(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[Database]:
    """As applications set it up."""
    driver = "psycopg2" if request.param == "psycopg2" else "psycopg"
    with storage(postgres_url):
        options: dict[str, Any] = {
            "client side": {"connect_args": {"cursor_factory": psycopg.ClientCursor, "prepare_threshold": None}},
            "no pool": {"poolclass": NullPool},
        }.get(request.param, {})
        made = Database(create_engine(make_url(postgres_url).set(drivername=f"postgresql+{driver}"), **options))
        yield made
        made.close()
        made.engine.dispose()


def test_its_rows_are_those_of_sqlalchemy(database: Database) -> None:
    (found,) = database.execute_alone(_SAID, {"names": ["x", "y%"]})
    with database.autocommitting() as conn:
        (other,) = conn.execute(_SAID.statement, {"names": ["x", "y%"]}).all()
    assert found._fields == other._fields
    without_now = [name for name in found._fields if name != "now"]
    assert [getattr(found, name) for name in without_now] == [getattr(other, name) for name in without_now]
    assert (found.text, found.percent, found.is_named) == ("a%b", "100%", True)
    assert found.quoted == "it's a \\ and a $1"
    assert found.now.tzinfo is other.now.tzinfo is UTC
    assert database.execute_alone(_SAID, {"names": []})[0].is_named is False


_ODD = ["", "NULL", "None", "a,b", '"', "\\", '\\"', "{}", "\n\t ", "ü'%s$1", "\x01"]


@pytest.mark.parametrize("odd", _ODD)
def test_a_list_holds_whatever_texts_can_be(database: Database, odd: str) -> None:
    is_there = Alone(lambda: select(is_one_of("postgresql", bindparam("odd", type_=Text()), "names").label("is_there")))
    others = [other for other in _ODD if other != odd]
    for names, expected in (([*others, odd], True), (others, False)):
        given = {"odd": odd, "names": names}
        assert database.execute_alone(is_there, given)[0].is_there is expected
        with database.autocommitting() as conn:
            assert conn.execute(is_there.statement, given).scalar_one() is expected


_ALL_OF_OURS = [claim_at_once._CLAIM, outlook._LOOK_ALONE, at_once._ALL, at_once._OFTEN, *at_once._PURE.values()]


@pytest.mark.parametrize("statement", _ALL_OF_OURS, ids=range(len(_ALL_OF_OURS)))
def test_ours_have_a_form_with_names_and_one_with_numbers_for_what_is_given(statement: Alone) -> None:
    """The first is made when a driver or a tracer needs it, which should not be the first to find out."""
    compiled = statement._for(psycopg_of_sqlalchemy.dialect())
    assert compiled._numbered is not None
    constants = set(compiled._numbered.names) - set(compiled._numbered._processes)
    assert all(isinstance(compiled._numbered._always[name], float) for name in constants)
    assert compiled._named._processes.keys() == compiled._numbered._processes.keys()
    assert statement._for(psycopg2_of_sqlalchemy.dialect())._numbered is None


def test_a_cursor_class_of_the_application_sees_it(postgres_url: str) -> None:
    seen: list[Any] = []

    class Traced(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(query)
            return super().execute(query, *args, **kwargs)

    made = Database(
        create_engine(
            make_url(postgres_url).set(drivername="postgresql+psycopg"), connect_args={"cursor_factory": Traced}
        )
    )
    try:
        made.execute_alone(_OURS, {})
        assert any("pg_backend_pid" in str(query) for query in seen)
    finally:
        made.close()
        made.engine.dispose()


def test_it_is_committed_and_its_connection_is_an_ordinary_one_again(database: Database) -> None:
    (ours,) = database.execute_alone(_OURS, {})
    with database.write() as conn:
        if not isinstance(database.service.pool, NullPool):
            assert conn.execute(select(func.pg_backend_pid())).scalar_one() == ours.pid
        raw: Any = conn.connection.dbapi_connection
        assert raw.autocommit is False
        conn.execute(text("CREATE TABLE kept (n integer)"))
        conn.rollback()
    with database.read() as conn:
        assert conn.execute(text("SELECT to_regclass('kept')")).scalar_one() is None


@pytest.mark.parametrize("statement", [_MISSING, _DIVIDED])
def test_what_the_database_refuses_is_an_error_of_sqlalchemy_that_is_no_outage(
    database: Database, statement: Alone
) -> None:
    with pytest.raises(DBAPIError) as refused:
        database.execute_alone(statement, {})
    with database.autocommitting() as conn, pytest.raises(DBAPIError) as other:
        conn.execute(statement.statement)
    assert type(refused.value) is type(other.value)
    assert not is_outage(refused.value)
    assert not may_be_repeated(refused.value)
    assert database.execute_alone(_OURS, {})


def test_a_connection_that_broke_is_an_outage_and_is_not_used_again(database: Database) -> None:
    (ours,) = database.execute_alone(_OURS, {})
    with database.read() as conn:
        conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": ours.pid})
    if isinstance(database.service.pool, NullPool):
        return
    with pytest.raises(OperationalError) as broken:
        database.execute_alone(_OURS, {})
    assert is_outage(broken.value)
    assert broken.value.connection_invalidated
    assert "pg_backend_pid" in str(broken.value)
    (another,) = database.execute_alone(_OURS, {})
    assert another.pid != ours.pid


def test_when_one_connection_has_broken_the_others_of_its_age_are_not_tried(database: Database) -> None:
    if isinstance(database.service.pool, NullPool):
        return
    several = [database.service.connect() for _ in range(3)]
    pids = [conn.execute(select(func.pg_backend_pid())).scalar_one() for conn in several]
    for conn in several:
        conn.close()
    with database.read() as conn:
        conn.execute(text("SELECT pg_terminate_backend(pid) FROM unnest(:pids) AS given (pid)"), {"pids": pids})
    with pytest.raises(OperationalError):
        database.execute_alone(_OURS, {})
    assert [database.execute_alone(_OURS, {})[0].pid in pids for _ in range(3)] == [False] * 3


def test_what_a_listener_of_the_pool_has_begun_is_not_in_the_way(database: Database) -> None:
    @event.listens_for(database.service.pool, "checkout")
    def _set_role(connection: Any, *_: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE NONE")

    assert database.execute_alone(_OURS, {})[0].pid


def test_where_nobody_can_connect_it_is_an_outage_too(postgres_url: str) -> None:
    gone = make_url(postgres_url).set(drivername="postgresql+psycopg", database="gone")
    database = Database(create_engine(gone))
    with pytest.raises(OperationalError) as nowhere:
        database.execute_alone(_OURS, {})
    assert is_outage(nowhere.value)


def test_who_listens_to_the_statements_hears_them(database: Database) -> None:
    heard: list[str] = []

    def hear(*about: Any) -> None:
        heard.append(about[2])

    event.listen(database.service, "before_cursor_execute", hear)
    database.execute_alone(_OURS, {})
    event.remove(database.service, "before_cursor_execute", hear)
    database.execute_alone(_OURS, {})
    assert len(heard) == 1


def test_the_values_of_a_statement_are_not_told(database: Database) -> None:
    secret = Alone(lambda: select((literal_column("1") / func.length(literal(""))).label("n"), _named()))
    with pytest.raises(DBAPIError) as refused:
        database.execute_alone(secret, {"names": ["password"]})
    assert "password" not in str(refused.value)


def _named() -> Any:
    return is_one_of("postgresql", literal("x"), "names").label("is_named")


def test_one_statement_follows_the_other_on_a_connection_that_is_kept(database: Database) -> None:
    checked_out = getattr(database.service.pool, "checkedout", lambda: 0)
    before = checked_out()
    kept = database.kept()
    first, second = (kept.execute(_OURS, {})[0].pid for _ in range(2))
    assert first == second
    assert database.execute_alone(_OURS, {})[0].pid != first
    kept.close()
    kept.close()  # again is nothing
    assert kept.execute(_OURS, {})[0].pid
    kept.close()
    assert checked_out() == before


@pytest.mark.parametrize("is_used", [True, False], ids=["used again", "given back"])
def test_a_kept_connection_that_broke_is_not_given_to_others(database: Database, is_used: bool) -> None:
    kept = database.kept()
    (ours,) = kept.execute(_OURS, {})
    with database.read() as conn:
        conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": ours.pid})
    if is_used:
        with pytest.raises(OperationalError) as broken:
            kept.execute(_OURS, {})
        assert is_outage(broken.value)
        (another,) = kept.execute(_OURS, {})
        assert another.pid != ours.pid
        kept.close()
    else:
        eventually(lambda: not is_there(database, ours.pid))
        kept.close()
        with suppress(OperationalError):  # as of any connection that nobody has used since
            database.execute_alone(_OURS, {})
    assert database.execute_alone(_OURS, {})[0].pid != ours.pid


def test_what_a_listener_of_the_pool_breaks_harms_only_its_connection(database: Database) -> None:
    kept = database.kept()
    first = kept.execute(_OURS, {})[0].pid

    @event.listens_for(database.service.pool, "checkin")
    def _tidy(connection: Any, *_: Any) -> None:
        raise ConnectionError("the database went away")

    kept.close()
    event.remove(database.service.pool, "checkin", _tidy)
    assert kept.execute(_OURS, {})[0].pid != first
    kept.close()


def test_a_kept_connection_that_cannot_be_made_ordinary_again_is_thrown_away(database: Database) -> None:
    kept = database.kept()
    first = kept.execute(_OURS, {})[0].pid

    class Interrupted:
        def __init__(self, raw: Any) -> None:
            object.__setattr__(self, "raw", raw)

        def __setattr__(self, name: str, value: object) -> None:
            raise KeyboardInterrupt

    pooled: Any = kept._pooled
    pooled.dbapi_connection, raw = Interrupted(pooled.dbapi_connection), pooled.dbapi_connection
    with pytest.raises(KeyboardInterrupt):
        kept.close()
    raw.close()
    assert database.execute_alone(_OURS, {})[0].pid != first


def is_there(database: Database, pid: int) -> bool:
    query = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
    with database.read() as conn:
        return conn.execute(query, {"pid": pid}).scalar_one() == 1
