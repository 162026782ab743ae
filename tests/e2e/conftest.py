"""The shop of the fault tests, here under web servers; and the examples of the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.examples import load
from tests.faults.conftest import ledger, opened, postgres_ledger, postgres_shop, shop
from tests.faults.ledger import Ledger
from tests.faults.processes import Shop

__all__ = ["ledger", "load", "postgres_ledger", "postgres_shop", "shop"]


@pytest.fixture
def sqlite_url(bare_sqlite_url: str) -> str:
    """Without tables: here they are made by what a new user starts first."""
    return bare_sqlite_url


@pytest.fixture
def postgres_url(bare_postgres_url: str) -> str:
    """Without tables."""
    return bare_postgres_url


@pytest.fixture
def sqlite_ledger(sqlite_url: str) -> Ledger:
    """For what has nothing to do with the kind of database: each process costs a second."""
    return Ledger(sqlite_url)


@pytest.fixture
def sqlite_shop(sqlite_ledger: Ledger, tmp_path: Path) -> Iterator[Shop]:
    """Its processes are killed at the end of the test."""
    with opened(sqlite_ledger, tmp_path) as found:
        yield found
