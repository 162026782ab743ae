"""Create and upgrade the tables, safely when many processes start at once.

The version is looked at first, in one query, so that a start of an up-to-date database never loads Alembic.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from edda_engine.errors import NewerVersionError
from edda_engine.storage.database import Database, begin_if_needed

HEAD = "0004"
VERSION_TABLE = "edda_alembic_version"
_LOCK_KEY = 0x65646461  # "edda"


def current_revision(conn: Connection) -> str | None:
    """The revision of the tables, or ``None`` before the first upgrade."""
    if not inspect(conn).has_table(VERSION_TABLE):
        return None
    revision: str | None = conn.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return revision


def upgrade(database: Database) -> bool:
    """Bring the tables to :data:`HEAD`; False if they were there already.

    Everything happens in one transaction under a lock: of several processes that start together one upgrades and
    the others wait for it. A crash in the middle leaves the tables as they were.

    :raises NewerVersionError: a newer version of this library upgraded the tables.
    """
    with database.service.connect() as conn:
        if _is_current(current_revision(conn)):
            return False
    with database.write() as conn:
        return upgrade_within(conn)


def upgrade_within(conn: Connection) -> bool:
    """The same inside a transaction that somebody else commits or rolls back."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    else:
        # sqlite3 begins before INSERT, but not before CREATE TABLE; and a transaction that began by reading
        # could not write after somebody else has.
        begin_if_needed(conn, "BEGIN IMMEDIATE")
    if _is_current(current_revision(conn)):
        return False
    _run_alembic(conn)
    return True


def check(database: Database) -> str | None:
    """What is wrong with the tables, or ``None``."""
    with database.service.connect() as conn:
        revision = current_revision(conn)
    if _is_current(revision):
        return None
    have = "there are none yet" if revision is None else f"they are at revision {revision}"
    return f"The edda_ tables need an upgrade ({have}, this version needs {HEAD}). Run `flask edda upgrade`."


def _is_current(revision: str | None) -> bool:
    if revision is not None and revision > HEAD:
        raise NewerVersionError(
            f"The edda_ tables are at revision {revision}, made by a newer version of edda than this one (which knows"
            f" {HEAD}). Deploy the newer version here too."
        )
    return revision == HEAD


def _run_alembic(conn: Connection) -> None:
    from alembic import command  # noqa: PLC0415  slow to import, and rarely needed
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = conn
    config.attributes["version_table"] = VERSION_TABLE
    command.upgrade(config, HEAD)
