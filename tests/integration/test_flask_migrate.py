"""Flask-Migrate and plain Alembic leave the edda_ tables alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from edda_wsgi import WorkflowContext, workflow
from edda_wsgi.migrations import include_object
from tests.integration.flask_apps import Base, Shop, open_shop


@pytest.fixture
def shop(bare_database_url: str) -> Iterator[Shop]:
    """With its own table and the edda_ tables."""

    @workflow
    async def nothing(ctx: WorkflowContext) -> None: ...

    with open_shop(bare_database_url) as opened:
        with opened.app.app_context():
            nothing.options(session=None).start()
        yield opened


def differences(shop: Shop, **options: Any) -> list[Any]:
    with shop.app.app_context(), shop.engine.connect() as conn:
        return list(compare_metadata(MigrationContext.configure(conn, opts=options), Base.metadata))


def test_autogenerate_with_include_object_leaves_the_tables_of_edda_alone(shop: Shop) -> None:
    assert differences(shop, include_object=include_object) == []


def test_autogenerate_without_include_object_would_drop_them(shop: Shop) -> None:
    dropped = {change[1].name for change in differences(shop) if change[0] == "remove_table"}

    assert "edda_instances" in dropped


def test_autogenerate_with_include_object_still_sees_the_application(shop: Shop) -> None:
    with shop.app.app_context(), shop.engine.begin() as conn:
        conn.exec_driver_sql("DROP TABLE note")
        conn.exec_driver_sql("CREATE TABLE leftover (id INTEGER PRIMARY KEY)")

    found = {(change[0], change[1].name) for change in differences(shop, include_object=include_object)}

    assert ("add_table", "note") in found
    assert ("remove_table", "leftover") in found
    assert not any(name.startswith("edda_") for _, name in found)


@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated:DeprecationWarning")  # in the env.py of Flask-Migrate
def test_flask_migrate_writes_a_migration_without_the_tables_of_edda(
    bare_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from flask_migrate import Migrate, init, migrate

    folder = tmp_path_factory.mktemp("migrate") / "migrations"

    @workflow
    async def nothing(ctx: WorkflowContext) -> None: ...

    with open_shop(bare_database_url) as shop:
        Migrate(shop.app, shop.db, directory=str(folder), include_object=include_object)
        with shop.app.app_context():
            nothing.options(session=None).start()
            shop.db.Table("extra", shop.db.metadata, shop.db.Column("id", shop.db.Integer, primary_key=True))
            init(directory=str(folder))
            migrate(directory=str(folder), message="first")
        (written,) = (folder / "versions").glob("*.py")

        assert "create_table('extra'" in written.read_text()
        assert "edda_" not in written.read_text()
