"""The pytest plugin: fixtures, and nothing that happens by itself.

It is loaded by pytest wherever the package is installed; a project uses it by asking for its fixtures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from edda_engine.testing.databases import fresh_postgresql
from edda_wsgi.testing.runner import WorkflowRunner

OPTION = "--edda-database-url"
VARIABLE = "EDDA_TEST_DATABASE_URL"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say on which database the tests run."""
    parser.getgroup("edda").addoption(
        OPTION,
        metavar="URL",
        default=os.environ.get(VARIABLE),
        help=f"for the fixture edda_database_url: a PostgreSQL server on which each test gets a database of its own;"
        f" SQLite files if left out ({VARIABLE} in the environment)",
    )


@pytest.fixture
def edda_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database for this test: a SQLite file, or one on the server of ``--edda-database-url``."""
    server = request.config.getoption(OPTION)
    if not server:
        yield f"sqlite:///{tmp_path / 'edda.db'}"
        return
    with fresh_postgresql(server) as url:
        yield url


@pytest.fixture
def edda_runner(request: pytest.FixtureRequest) -> Iterator[WorkflowRunner]:
    """Runs the workflows of the application that the fixture ``app`` returns; see :class:`WorkflowRunner`.

    ``app`` is a fixture of your own, as pytest-flask wants it too: a Flask application with ``TESTING``, on a database
    that no other test uses.
    """
    try:
        app = request.getfixturevalue("app")
    except pytest.FixtureLookupError as error:
        if error.argname != "app":
            raise
        raise pytest.UsageError(
            "edda_runner needs a fixture `app` that returns your Flask application. Write one in conftest.py: it makes the"
            " application with TESTING, on the database that the fixture edda_database_url names."
        ) from None
    if not isinstance(app, Flask):
        raise pytest.UsageError(f"edda_runner needs a fixture `app` that returns a Flask application, not {app!r}.")
    with WorkflowRunner(app) as runner:
        yield runner
