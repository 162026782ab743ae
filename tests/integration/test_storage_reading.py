"""Looks at what is committed: nobody else notices them, and what the driver has prepared stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import NotSupportedError
from sqlalchemy.pool import StaticPool

from edda_engine.core.ports import NewInstance
from edda_engine.storage.database import Database
from edda_engine.storage.starts import insert_instance
from tests.integration.engines import storage
from tests.integration.flask_apps import driver_url

NEW = NewInstance("", "wf", "tests", "{}", "hash", 60.0)


def test_it_keeps_what_the_driver_has_prepared(postgres_url: str) -> None:
    """At a rollback psycopg forgets it, and the next start in a session is parsed and planned anew."""
    with storage(postgres_url) as database:
        for number in range(7):
            with database.write(service=False) as conn:
                insert_instance(conn, replace(NEW, instance_id=f"i{number}"))
        with database.read() as conn:
            assert conn.execute(text("SELECT count(*) FROM edda_instances")).scalar() == 7
        with pytest.raises(LookupError), database.read() as conn:
            raise LookupError(conn.execute(text("SELECT 'nobody'")).scalar())
        with database.write(service=False) as conn:
            prepared = conn.exec_driver_sql("SELECT statement FROM pg_prepared_statements").scalars()
            assert any("INSERT INTO edda_instances" in statement for statement in prepared)


def test_who_listens_to_the_applications_commits_hears_nothing(database: Database) -> None:
    heard: list[Connection] = []
    event.listen(database.engine, "commit", heard.append)
    with database.read() as conn:
        conn.execute(text("SELECT 1"))
    assert heard == []


def test_on_a_connection_that_all_share_it_commits_nothing_of_others(database_url: str) -> None:
    database = Database(create_engine(driver_url(database_url), poolclass=StaticPool), owns_engine=True)
    with database.engine.begin() as conn:
        conn.execute(text("CREATE TABLE things (n INTEGER)"))
    with database.engine.connect() as mine:
        mine.execute(text("INSERT INTO things VALUES (1)"))
        with database.read() as conn:
            conn.execute(text("SELECT 1"))
        mine.rollback()
    with database.engine.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM things")).scalar() == 0
    database.close()


def test_what_fails_because_of_what_is_prepared_fails_once(postgres_url: str) -> None:
    """The plan of a statement does not fit a column that has another type since: psycopg must forget it."""
    with storage(postgres_url) as database:
        with database.write(service=False) as conn:
            conn.execute(text("CREATE TABLE things (n INTEGER)"))
        for _ in range(7):
            with database.read() as conn:
                conn.execute(text("SELECT n FROM things")).all()
        with database.write() as conn:
            conn.execute(text("ALTER TABLE things ALTER COLUMN n TYPE TEXT"))
        with pytest.raises(NotSupportedError, match="cached plan"), database.read() as conn:
            conn.execute(text("SELECT n FROM things")).all()
        with database.read() as conn:
            assert conn.execute(text("SELECT n FROM things")).all() == []
