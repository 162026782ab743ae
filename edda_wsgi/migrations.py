"""For applications with their own Alembic migrations: keep autogenerate away from the ``edda_`` tables."""

from __future__ import annotations

from typing import Any

from edda_engine.storage.schema import TABLE_NAMES


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Say False to everything of edda. In a migrations ``env.py``::

        from edda_wsgi.migrations import include_object
        context.configure(..., include_object=include_object)

    With Flask-Migrate: ``Migrate(app, db, include_object=include_object)``.
    """
    table = name if type_ == "table" else getattr(getattr(object_, "table", None), "name", None)
    return table not in TABLE_NAMES
