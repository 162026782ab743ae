"""A shop on a fresh database, and the ledger that judges it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edda_engine.storage.database import normalized_url
from tests.faults.ledger import Ledger
from tests.faults.processes import Shop


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    return Ledger(normalized_url(database_url).render_as_string(False))


@pytest.fixture
def shop(ledger: Ledger, tmp_path: Path) -> Iterator[Shop]:
    """Its processes are killed at the end of the test."""
    found = Shop(ledger.url, tmp_path / "shop")
    yield found
    found.clean_up()
