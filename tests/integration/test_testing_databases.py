"""Databases of tests are put back as they were, and made afresh."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, inspect, text

from edda_engine.errors import ConfigurationError, UsageError
from edda_engine.storage.database import Database
from edda_engine.storage.urls import normalized_url
from edda_engine.testing.databases import fresh_postgresql, hasty_sqlite
from edda_engine.testing.rows import Rows, differences, read_rows
from edda_engine.testing.snapshots import snapshot_of


@pytest.fixture
def database(bare_database_url: str) -> Iterator[Database]:
    """With tables that refer to each other, one of them to itself."""
    found = Database.from_url(bare_database_url)
    number = "INTEGER PRIMARY KEY" if found.is_sqlite else "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    with found.write(service=False) as conn:
        conn.execute(text(f"CREATE TABLE zoo (id {number}, name VARCHAR(20) UNIQUE)"))
        conn.execute(
            text(
                f"CREATE TABLE animal (id {number}, zoo_id INTEGER NOT NULL REFERENCES zoo (id), parent_id INTEGER REFERENCES"
                " animal (id), weight INTEGER, heavy INTEGER GENERATED ALWAYS AS (weight / 100) STORED)"
            )
        )
        # edda's own, as far as they are read.
        conn.execute(
            text(
                "CREATE TABLE edda_outbox (type TEXT, source TEXT, subject TEXT, content_type TEXT, data TEXT,"
                " ordering_key TEXT)"
            )
        )
        conn.execute(text("CREATE TABLE edda_instances (workflow_name TEXT, status TEXT, input TEXT)"))
        conn.execute(text("INSERT INTO zoo (name) VALUES ('north'), ('south')"))
        conn.execute(text("INSERT INTO animal (zoo_id, parent_id, weight) VALUES (1, NULL, 250), (1, 1, 40)"))
        conn.execute(text("INSERT INTO edda_outbox (type) VALUES ('zoo.opened')"))
    yield found
    found.close()


def rows(database: Database) -> Rows:
    with database.read() as conn:
        return read_rows(conn)


def insert_zoo(conn: Connection, name: str) -> int:
    return conn.execute(text("INSERT INTO zoo (name) VALUES (:name) RETURNING id"), {"name": name}).scalar_one()


def test_everything_is_put_back_as_often_as_asked_and_numbering_goes_on_as_before(database: Database) -> None:
    before = rows(database)
    with snapshot_of(database) as snapshot:
        for _ in range(2):
            with database.write(service=False) as conn:
                assert insert_zoo(conn, "west") == 3
                conn.execute(text("UPDATE animal SET weight = 1, parent_id = NULL"))
                conn.execute(text("DELETE FROM edda_outbox"))
                conn.execute(text("DELETE FROM animal WHERE id = 1"))
            assert differences(before, rows(database), leaving_out=()) != {}
            snapshot.restore()
            assert rows(database) == before


def test_a_reader_with_an_open_transaction_does_not_keep_it_from_being_put_back(database: Database) -> None:
    before = rows(database)
    with snapshot_of(database) as snapshot, database.engine.connect() as reader:
        reader.execute(text("SELECT * FROM zoo")).all()
        with database.write(service=False) as conn:
            insert_zoo(conn, "west")
        snapshot.restore()
    assert rows(database) == before


def test_references_and_generated_keys_are_recognized(database: Database) -> None:
    tables = rows(database).tables
    assert (tables["zoo"].key, tables["animal"].key) == ("id", "id")
    assert tables["animal"].references == {"zoo_id": "zoo", "parent_id": "animal"}
    assert rows(database).rows["animal"] == [("1", "1", "None", "250", "2"), ("2", "1", "1", "40", "0")]
    assert rows(database).rows["events for other services"][0][0] == "'zoo.opened'"


def test_rows_of_a_partitioned_table_are_put_back_once(bare_postgres_url: str) -> None:
    database = Database.from_url(bare_postgres_url)
    with database.write(service=False) as conn:
        conn.execute(text("CREATE TABLE day (number INTEGER PRIMARY KEY) PARTITION BY RANGE (number)"))
        conn.execute(text("CREATE TABLE first_days PARTITION OF day FOR VALUES FROM (0) TO (9)"))
        conn.execute(text("INSERT INTO day VALUES (1), (2)"))
    with snapshot_of(database) as snapshot:
        with database.write(service=False) as conn:
            conn.execute(text("DELETE FROM day WHERE number = 1"))
        snapshot.restore()
    with database.read() as conn:
        assert conn.execute(text("SELECT number FROM day ORDER BY number")).scalars().all() == [1, 2]
    database.close()


def test_a_writer_that_does_not_end_is_told_of(bare_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database.from_url(bare_postgres_url)
    with database.write(service=False) as conn:
        conn.execute(text("CREATE TABLE zoo (id INTEGER PRIMARY KEY)"))
        conn.execute(text("INSERT INTO zoo VALUES (1)"))
    monkeypatch.setattr("edda_engine.testing.snapshots._LOCK_TIMEOUT", "10ms")
    with snapshot_of(database) as snapshot, database.engine.begin() as writer:
        writer.execute(text("UPDATE zoo SET id = 2"))
        with pytest.raises(UsageError, match="End transactions that the test itself has open"):
            snapshot.restore()
    database.close()


def test_a_fresh_database_is_empty_and_gone_afterwards_even_with_somebody_connected(postgres_admin_url: str) -> None:
    with fresh_postgresql(postgres_admin_url) as url:
        engine = create_engine(normalized_url(url))
        with engine.connect() as conn:
            assert inspect(conn).get_table_names() == []
            name = conn.execute(text("SELECT current_database()")).scalar_one()
            assert conn.execute(text("SHOW synchronous_commit")).scalar_one() == "off"
            assert name in names_of_databases(postgres_admin_url)
            still_connected = psycopg.connect(url.replace("+psycopg", ""))
    assert name not in names_of_databases(postgres_admin_url)
    still_connected.close()
    engine.dispose()


def names_of_databases(admin_url: str) -> list[str]:
    with psycopg.connect(admin_url) as conn:
        return [row[0] for row in conn.execute("SELECT datname FROM pg_database")]


def test_a_server_that_is_no_postgresql_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is no PostgreSQL"), fresh_postgresql("sqlite:///x.db"):
        pass


def test_sqlite_does_not_wait_for_the_disk_inside_the_block_only(bare_sqlite_url: str) -> None:
    engine = create_engine(bare_sqlite_url)

    def waits() -> bool:
        with engine.connect() as conn:
            return bool(conn.exec_driver_sql("PRAGMA synchronous").scalar_one())

    assert waits()
    with hasty_sqlite():
        assert not waits()
    engine.dispose()
    assert waits()
    engine.dispose()
