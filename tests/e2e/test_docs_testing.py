"""The test files that the page on testing shows are run as a user would run them: by pytest, with the installed plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.examples import EXAMPLES


def run_pytest(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Its exit status and what it said; warnings are errors."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:randomly",
         "-c", os.devnull, "--rootdir", str(folder), *arguments],
        cwd=EXAMPLES, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(EXAMPLES), **(environment or {})},
    )  # fmt: skip
    return ran.returncode, ran.stdout + ran.stderr


def test_the_examples_pass_on_sqlite(tmp_path: Path) -> None:
    """``test_shop.py``, ``test_invoices.py`` of ``invoices.py`` with its crashes, and ``test_users.py``."""
    files = [str(EXAMPLES / f"test_{name}.py") for name in ("shop", "invoices", "users")]
    status, said = run_pytest(tmp_path, *files)
    assert (status, "11 passed" in said) == (0, True), said


def test_the_examples_pass_on_the_postgresql_that_is_named(tmp_path: Path, postgres_admin_url: str) -> None:
    status, said = run_pytest(
        tmp_path, str(EXAMPLES / "test_invoices.py"), str(EXAMPLES / "test_shop.py"), "-k", "not crash",
        "--edda-database-url", postgres_admin_url,
    )  # fmt: skip
    assert (status, "9 passed, 1 deselected" in said) == (0, True), said


PROJECT = """
import pytest
from flask import Flask


def test_nothing_happens_by_itself(request):
    assert not [name for name in request.fixturenames if "edda" in name]


def test_without_an_application(edda_runner):
    pass


class TestOther:
    @pytest.fixture
    def app(self):
        return "an application"

    def test_what_is_no_application(self, edda_runner):
        pass


class TestMine:
    @pytest.fixture
    def app(self, edda_database_url):
        assert edda_database_url.startswith("postgresql+psycopg://")
        app = Flask("mine")
        app.testing = True
        return app

    def test_an_application_without_edda(self, edda_runner):
        pass
"""


def test_a_project_that_lacks_something_is_told_what(tmp_path: Path, postgres_admin_url: str) -> None:
    (tmp_path / "test_project.py").write_text(PROJECT)
    environment = {"EDDA_TEST_DATABASE_URL": postgres_admin_url}
    status, said = run_pytest(tmp_path, str(tmp_path / "test_project.py"), environment=environment)
    assert (status, "1 passed, 3 errors" in said) == (1, True), said
    assert "edda_runner needs a fixture `app` that returns your Flask application. Write one in conftest.py" in said
    assert "returns a Flask application, not 'an application'" in said
    assert "The application 'mine' has no edda" in said
