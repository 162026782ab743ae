"""A shop on a fresh database, and the ledger that judges it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edda_engine.storage.urls import normalized_url
from tests.faults.ledger import Ledger
from tests.faults.processes import Shop


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    return Ledger(normalized_url(database_url).render_as_string(False))


@pytest.fixture
def shop(ledger: Ledger, tmp_path: Path) -> Iterator[Shop]:
    """Its processes are killed at the end of the test."""
    with opened(ledger, tmp_path) as found:
        yield found


@pytest.fixture
def postgres_ledger(postgres_url: str) -> Ledger:
    """For what only PostgreSQL can do."""
    return Ledger(normalized_url(postgres_url).render_as_string(False))


@pytest.fixture
def postgres_shop(postgres_ledger: Ledger, tmp_path: Path) -> Iterator[Shop]:
    """Its processes are killed at the end of the test."""
    with opened(postgres_ledger, tmp_path) as found:
        yield found


@contextmanager
def opened(ledger: Ledger, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(ledger.url, tmp_path / "shop")
    try:
        yield shop
    finally:
        shop.clean_up()
