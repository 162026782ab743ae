"""Fixtures of the tests of storage: a database with its tables, on both kinds, and an eye on the tables beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edda_engine.storage.database import Database
from tests.integration.engines import Tables, storage


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with storage(database_url) as made:
        yield made


@pytest.fixture
def tables(database_url: str) -> Tables:
    return Tables(database_url)
