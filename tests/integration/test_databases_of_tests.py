"""The databases that tests get: what one has left behind the next does not find."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.databases import Databases

MAKE_FUNCTION = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"


@pytest.fixture
def databases(postgres_admin_url: str, postgres_template: str) -> Iterator[Databases]:
    found = Databases(postgres_admin_url, postgres_template)
    yield found
    found.drop_all()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)


def oid(url: str) -> int:
    with psycopg.connect(url) as conn:
        (found,) = conn.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone() or (0,)
        return int(found)


def test_rows_sequences_and_tables_of_a_test_are_gone_for_the_next(databases: Databases) -> None:
    insert = (
        "INSERT INTO edda_messages (message_id, kind, name, metadata, is_new, published_at)"
        " VALUES ('m', 'event', 'paid', '{}', true, now())"
    )
    with databases.lent() as url:
        first = oid(url)
        execute(
            url,
            "CREATE TABLE notes (id serial PRIMARY KEY, note text)",
            "CREATE TABLE edges (note integer REFERENCES notes)",
            "INSERT INTO notes (note) VALUES ('one')",
            insert,
        )
        outlives = psycopg.connect(url)
    with pytest.raises(psycopg.OperationalError):
        outlives.execute("SELECT 1")
    outlives.close()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    with databases.lent() as url:
        assert oid(url) == first
        with psycopg.connect(url) as conn:
            query = "SELECT to_regclass('notes'), (SELECT count(*) FROM edda_messages)"
            assert conn.execute(query).fetchone() == (None, 0)
            assert conn.execute(f"{insert} RETURNING seq").fetchone() == (1,)


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE VIEW v AS SELECT 1"],
        [MAKE_FUNCTION],
        [MAKE_FUNCTION, "CREATE TRIGGER t BEFORE INSERT ON edda_history FOR EACH ROW EXECUTE FUNCTION f()"],
        ["CREATE RULE r AS ON DELETE TO edda_waits DO ALSO NOTHING"],
        ["CREATE SCHEMA other"],
        ["CREATE INDEX i ON edda_history (instance_id)"],
        ["ALTER TABLE edda_history ADD COLUMN more integer"],
        ["ALTER TABLE edda_messages ALTER COLUMN data SET NOT NULL"],
        ["ALTER TABLE edda_history SET (autovacuum_enabled = off)"],
        ["DROP TABLE edda_waits"],
        ["ANALYZE"],
        ["DELETE FROM edda_alembic_version"],
        [
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Kathmandu''', current_database()); END $$"
        ],
    ],
    ids=lambda statements: " ".join(statements[-1].split()[:4]),
)
def test_a_database_that_is_not_like_a_new_one_is_not_used_again(databases: Databases, statements: list[str]) -> None:
    with databases.lent() as url:
        first = oid(url)
        execute(url, *statements)
    with databases.lent() as url:
        assert oid(url) != first
