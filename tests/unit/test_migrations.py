"""For applications with their own Alembic migrations: autogenerate leaves the ``edda_`` tables alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Index, Integer, MetaData, Table, create_engine

from edda_engine.storage import migrate
from edda_engine.storage.database import Database
from edda_engine.storage.schema import TABLE_NAMES, instances, metadata
from edda_wsgi.migrations import include_object


@pytest.mark.parametrize("name", sorted(TABLE_NAMES))
def test_a_table_of_edda_is_not_included(name: str) -> None:
    assert include_object(metadata.tables.get(name), name, "table", True, None) is False


def test_the_version_table_is_one_of_eddas() -> None:
    assert "edda_alembic_version" in TABLE_NAMES


def test_columns_and_indexes_of_eddas_tables_are_not_included() -> None:
    parts = [(column, column.name, "column") for column in instances.columns]
    indexes = [(index, index.name, "index") for index in instances.indexes]
    constraints = [(check, check.name, "check_constraint") for check in instances.constraints]
    for part, name, kind in (*parts, *indexes, *constraints):
        assert include_object(part, None if name is None else str(name), kind, True, None) is False


def test_the_applications_own_tables_and_their_parts_are_included() -> None:
    own = Table("orders", MetaData(), Column("id", Integer, primary_key=True), Column("edda_instances", Integer))
    index = Index("ix_orders_id", own.c.id)
    assert include_object(own, "orders", "table", False, None) is True
    assert include_object(own.c.edda_instances, "edda_instances", "column", False, None) is True
    assert include_object(index, "ix_orders_id", "index", False, None) is True


def test_a_table_that_only_begins_like_eddas_is_the_applications() -> None:
    own = Table("edda_customers", MetaData(), Column("id", Integer, primary_key=True))
    assert include_object(own, "edda_customers", "table", True, None) is True


def test_autogenerate_would_drop_nothing_of_edda(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    database = Database.from_url(url)
    migrate.upgrade(database)
    database.close()
    theirs = MetaData()
    Table("orders", theirs, Column("id", Integer, primary_key=True))
    engine = create_engine(url)
    with engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"include_object": include_object})
        differences = compare_metadata(context, theirs)
    engine.dispose()
    assert [(kind, table.name) for kind, table in differences if kind.endswith("table")] == [("add_table", "orders")]
    assert len(differences) == 1
