"""Pruning finds what has ended by an index; those of the inbox leave no choice but the right one."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Of instances that have not ended, and of messages that somebody was told of, they hold nothing."""
    has_ended = sa.text("completed_at IS NOT NULL")
    op.create_index(
        "ix_edda_instances_completed_at",
        "edda_instances",
        ["completed_at"],
        postgresql_where=has_ended,
        sqlite_where=has_ended,
    )
    op.drop_index("ix_edda_inbox_new", "edda_inbox")
    op.create_index(
        "ix_edda_inbox_new",
        "edda_inbox",
        ["receiver", "kind", "name"],
        postgresql_where=sa.text("is_new"),
        sqlite_where=sa.text("is_new = 1"),
    )
    op.drop_index("ix_edda_inbox_seq", "edda_inbox")
    op.create_index("ix_edda_inbox_seq", "edda_inbox", ["seq"], postgresql_using="hash")
