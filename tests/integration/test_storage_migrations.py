"""Upgrades: many processes at once, tables of a newer version, a crash in the middle."""

from __future__ import annotations

import asyncio
import multiprocessing
from typing import Any

import pytest
from sqlalchemy import Connection, inspect

from edda_engine import NewerVersionError
from edda_engine.storage import migrate
from edda_engine.storage.database import Database
from edda_engine.storage.schema import TABLE_NAMES
from tests.integration.engines import Tables, edda, run, storage


def _upgrade(url: str, start: Any, answers: Any) -> None:
    database = Database.from_url(url)
    try:
        start.wait(60)
        answers.put(migrate.upgrade(database))
    except BaseException as error:
        answers.put(repr(error))
    finally:
        database.close()


def test_of_several_processes_that_upgrade_at_once_one_does_it(bare_database_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    start, answers = spawn.Barrier(3), spawn.Queue()
    processes = [spawn.Process(target=_upgrade, args=(bare_database_url, start, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=90) for _ in processes]
    for process in processes:
        process.join(30)
    answers.close()
    answers.join_thread()
    assert sorted(found, key=str) == [False, False, True]
    tables = Tables(bare_database_url)
    assert tables.rows("SELECT version_num FROM edda_alembic_version") == [{"version_num": migrate.HEAD}]
    assert tables.rows("SELECT * FROM edda_instances") == []


def test_an_upgrade_of_current_tables_does_nothing(bare_database_url: str) -> None:
    with storage(bare_database_url) as database:
        assert migrate.upgrade(database) is False
        assert migrate.check(database) is None


def test_an_upgrade_makes_all_tables_and_only_ours(bare_database_url: str) -> None:
    with storage(bare_database_url) as database:
        assert set(run(database, lambda conn: inspect(conn).get_table_names())) == set(TABLE_NAMES)


def test_an_upgrade_that_is_rolled_back_leaves_nothing(bare_database_url: str) -> None:
    database = Database.from_url(bare_database_url)

    def upgrade_and_fail(conn: Connection) -> None:
        assert migrate.upgrade_within(conn) is True
        raise RuntimeError("before the commit")

    try:
        with pytest.raises(RuntimeError):
            run(database, upgrade_and_fail)
        assert run(database, lambda conn: inspect(conn).get_table_names()) == []
        assert migrate.upgrade(database) is True
    finally:
        database.close()


def test_missing_tables_are_told_with_the_command_that_makes_them(bare_database_url: str) -> None:
    database = Database.from_url(bare_database_url)
    try:
        problem = migrate.check(database)
    finally:
        database.close()
    assert problem is not None
    assert "there are none yet" in problem
    assert "flask edda upgrade" in problem


def test_tables_of_a_newer_version_are_refused_with_a_sentence(bare_database_url: str) -> None:
    with storage(bare_database_url):
        Tables(bare_database_url).execute("UPDATE edda_alembic_version SET version_num = '9999'")

    async def main() -> None:
        async with edda(bare_database_url):
            pass

    with pytest.raises(NewerVersionError, match=r"at revision 9999, made by a newer version of edda.*Deploy the newer"):
        asyncio.run(main())


def test_the_tables_of_the_application_are_left_alone(bare_database_url: str) -> None:
    tables = Tables(bare_database_url)
    tables.make_notes()
    tables.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
    tables.execute("INSERT INTO alembic_version VALUES ('of-the-application')")
    with storage(bare_database_url):
        pass
    assert tables.rows("SELECT * FROM alembic_version") == [{"version_num": "of-the-application"}]
    assert tables.notes() == []
