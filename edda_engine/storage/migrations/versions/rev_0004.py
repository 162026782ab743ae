"""Pruning finds what has ended by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Of instances that have not ended it holds nothing."""
    has_ended = sa.text("completed_at IS NOT NULL")
    op.create_index(
        "ix_edda_instances_completed_at",
        "edda_instances",
        ["completed_at"],
        postgresql_where=has_ended,
        sqlite_where=has_ended,
    )
