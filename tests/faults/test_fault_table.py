"""Every point, every fault, both databases: the end is the same, and what was written is there once.

`make faults` tries every cell, `make test` each place and fault on one of the databases.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from edda_engine.runtime.probes import POINTS
from edda_engine.storage import migrate
from edda_engine.storage.database import Database
from tests.faults.books import Books
from tests.faults.forks import Forks
from tests.faults.matrix import PROPERTY, drawn, key
from tests.faults.stage import Stage
from tests.faults.stories import STORIES
from tests.faults.table import APPLICATION_POINTS, DATABASES, PLACES, Cell, Fault, cells, on_one_database
from tests.faults.trial import Trial

DECLARED_IN = ("tests.faults.store",)

_DIES_WITH_LOOP = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

TRIED = [
    pytest.param(
        cell,
        id=f"{cell.place.name}-{cell.fault}-{cell.database}",
        marks=[_DIES_WITH_LOOP] if cell.place.story == "dead loop" else [],
    )
    for cell in cells()
    if not cell.why_not and (os.environ.get("EDDA_EVERY_FAULT") or on_one_database(cell))
]


def with_tables(url: str) -> None:
    Books(url).make_entries()
    database = Database.from_url(url)
    migrate.upgrade(database)
    database.close()


@pytest.fixture(scope="module")
def sqlite_books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "store.db"
    with_tables(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="module")
def postgres_books(postgres_admin_url: str, testrun_uid: str, worker_id: str) -> Iterator[Books]:
    """One database for all: it is emptied before each cell."""
    name = f"edda_table_{testrun_uid[:8]}_{worker_id}"
    with psycopg.connect(postgres_admin_url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
    url = make_url(postgres_admin_url).set(database=name).render_as_string(False)
    with_tables(url)
    yield Books(url)
    with psycopg.connect(postgres_admin_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    found = Forks(tmp_path)
    yield found
    found.clean_up()


def books_for(request: pytest.FixtureRequest, story: str, database: str, tmp_path: Path) -> Books:
    """An empty database, with the tables if the story begins with them."""
    if not STORIES[story].has_tables:
        books = Books(request.getfixturevalue("bare_sqlite_url" if database == "sqlite" else "bare_postgres_url"))
        books.make_entries()
        return books
    if database == "sqlite":
        file = shutil.copy(request.getfixturevalue("sqlite_books"), tmp_path / "store.db")
        return Books(f"sqlite:///{file}")
    books: Books = request.getfixturevalue("postgres_books")
    books.clear()
    return books


def test_every_point_of_the_code_is_in_the_table_and_no_other() -> None:
    assert {place.point for place in PLACES} == set(POINTS) | APPLICATION_POINTS
    assert len({place.name for place in PLACES}) == len(PLACES)


def test_the_report_has_no_empty_cell_and_says_of_each_that_is_not_tried_why() -> None:
    lines = drawn({key(cell): 1 for cell in cells() if not cell.why_not})

    grid = lines[2 : 2 + len(PLACES)]
    start = max(len(place.name) for place in PLACES) + 2
    for line in grid:
        shown = [line[start + 8 * column :][:8].strip() for column in range(len(Fault) * len(DATABASES))]
        assert all(text[:1] in ("1", "(") for text in shown), line
    reasons = {cell.why_not for cell in cells() if cell.why_not}
    assert {line.partition("not reachable; ")[2] for line in lines if line.startswith("(")} == reasons


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("story", [name for name, story in STORIES.items() if not story.is_orphan])
def test_a_story_ends_as_it_should_and_every_commit_in_it_has_a_name(
    story: str, database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    books = books_for(request, story, database, tmp_path)
    STORIES[story].begin(books)

    with Stage(books.url, tmp_path, mishap=STORIES[story].mishap) as here:
        STORIES[story].live(here)

    assert STORIES[story].is_relays or books.account() == STORIES[story].ends
    assert here.has_passed("tables.before_commit") == (story == "tables")  # the name of what has no other


@pytest.mark.parametrize("cell", TRIED)
def test_everything_ends_as_it_does_without_the_fault(
    cell: Cell, forks: Forks, request: pytest.FixtureRequest, tmp_path: Path, record_property: Any
) -> None:
    record_property(PROPERTY, [*key(cell), 0])

    times = Trial(cell, books_for(request, cell.place.story, cell.database, tmp_path), forks).run()

    record_property(PROPERTY, [*key(cell), times])
