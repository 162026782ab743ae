"""Waits, channels, messages, inbox; an order in the outbox; received events."""

import sqlalchemy as sa
from alembic import op

from edda_engine.storage.types import JsonText, UtcTimestamp

revision = "0002"
down_revision = "0001"

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create what waiting and talking need; rows that are there keep their meaning."""
    op.add_column("edda_instances", sa.Column("mailbox", sa.String(length=255), nullable=True))
    for counter in ("takeovers", "takeover_progress"):
        op.add_column("edda_instances", sa.Column(counter, sa.Integer(), nullable=False, server_default="0"))
    is_last_run = "mailbox IS NOT NULL AND status <> 'recurred'"
    _partial_index("ix_edda_instances_mailbox", "edda_instances", ["mailbox"], is_last_run)
    op.create_table(
        "edda_waits",
        sa.Column("instance_id", sa.String(length=255), nullable=False),
        sa.Column("activity_id", sa.String(length=255), nullable=False),
        sa.Column("mailbox", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("is_competing", sa.Boolean(), nullable=False),
        sa.Column("expires_at", UtcTimestamp(), nullable=True),
        sa.Column("created_at", UtcTimestamp(), nullable=False),
        sa.CheckConstraint("kind IN ('timer', 'event', 'message')", name=op.f("ck_edda_waits_kind")),
        sa.PrimaryKeyConstraint("instance_id", "activity_id", name=op.f("pk_edda_waits")),
    )
    op.create_index("ix_edda_waits_name", "edda_waits", ["kind", "name", "created_at"])
    op.create_table(
        "edda_channels",
        sa.Column("channel", sa.String(length=255), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("created_at", UtcTimestamp(), nullable=False),
        sa.CheckConstraint("mode IN ('broadcast', 'competing', 'direct')", name=op.f("ck_edda_channels_mode")),
        sa.PrimaryKeyConstraint("channel", name=op.f("pk_edda_channels")),
    )
    op.create_table(
        "edda_subscriptions",
        sa.Column("mailbox", sa.String(length=255), nullable=False),
        sa.Column("channel", sa.String(length=255), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("created_at", UtcTimestamp(), nullable=False),
        sa.PrimaryKeyConstraint("mailbox", "channel", name=op.f("pk_edda_subscriptions")),
    )
    op.create_index("ix_edda_subscriptions_channel", "edda_subscriptions", ["channel"])
    op.create_table(
        "edda_messages",
        sa.Column("seq", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("message_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("addressee", sa.String(length=255), nullable=True),
        sa.Column("data", JsonText(), nullable=True),
        sa.Column("data_binary", sa.LargeBinary(), nullable=True),
        sa.Column("metadata", JsonText(), nullable=False),
        sa.Column("is_new", sa.Boolean(), nullable=False),
        sa.Column("published_at", UtcTimestamp(), nullable=False),
        sa.CheckConstraint("kind IN ('event', 'message')", name=op.f("ck_edda_messages_kind")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_edda_messages")),
        sqlite_autoincrement=True,
    )
    _partial_index("ix_edda_messages_new", "edda_messages", ["seq"], "is_new", sqlite="is_new = 1")
    op.create_index("ix_edda_messages_published_at", "edda_messages", ["published_at"])
    op.create_table(
        "edda_inbox",
        sa.Column("receiver", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("seq", _SEQUENCE, autoincrement=False, nullable=False),
        sa.Column("is_queued", sa.Boolean(), nullable=False),
        sa.Column("is_new", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("receiver", "kind", "name", "seq", name=op.f("pk_edda_inbox")),
    )
    op.create_index("ix_edda_inbox_seq", "edda_inbox", ["seq"])
    _partial_index("ix_edda_inbox_new", "edda_inbox", ["receiver"], "is_new", sqlite="is_new = 1")
    op.create_table(
        "edda_received_events",
        sa.Column("service", sa.String(length=100), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("event_id", sa.String(length=255), nullable=False),
        sa.Column("expires_at", UtcTimestamp(), nullable=False),
        sa.PrimaryKeyConstraint("service", "source", "event_id", name=op.f("pk_edda_received_events")),
    )
    op.create_index("ix_edda_received_events_expires_at", "edda_received_events", ["expires_at"])
    _number_the_outbox()


def _number_the_outbox() -> None:
    """Give the outbox a sequence, in the order in which its rows were written."""
    op.execute("ALTER TABLE edda_outbox RENAME TO edda_outbox_0001")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE edda_outbox_0001 DROP CONSTRAINT pk_edda_outbox")
    op.drop_index("ix_edda_outbox_due", table_name="edda_outbox_0001")
    columns = [
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("instance_id", sa.String(length=255), nullable=True),
        sa.Column("activity_id", sa.String(length=255), nullable=True),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("content_type", sa.String(length=255), nullable=False),
        sa.Column("data", JsonText(), nullable=True),
        sa.Column("data_binary", sa.LargeBinary(), nullable=True),
        sa.Column("ordering_key", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", UtcTimestamp(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("locked_by", sa.String(length=255), nullable=True),
        sa.Column("lock_expires_at", UtcTimestamp(), nullable=True),
        sa.Column("created_at", UtcTimestamp(), nullable=False),
        sa.Column("published_at", UtcTimestamp(), nullable=True),
    ]
    names = ", ".join(column.name for column in columns)
    op.create_table(
        "edda_outbox",
        sa.Column("seq", _SEQUENCE, autoincrement=True, nullable=False),
        *columns,
        sa.CheckConstraint(
            "status IN ('pending', 'publishing', 'published', 'dead')", name=op.f("ck_edda_outbox_status")
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_edda_outbox")),
        sa.UniqueConstraint("event_id", name=op.f("uq_edda_outbox_event_id")),
        sqlite_autoincrement=True,
    )
    op.execute(
        f"INSERT INTO edda_outbox ({names}) SELECT {names} FROM edda_outbox_0001 ORDER BY created_at, event_id"  # noqa: S608
    )
    op.drop_table("edda_outbox_0001")
    _partial_index("ix_edda_outbox_due", "edda_outbox", ["next_attempt_at"], "next_attempt_at IS NOT NULL")
    _partial_index(
        "ix_edda_outbox_ordering_key",
        "edda_outbox",
        ["ordering_key", "seq"],
        "ordering_key IS NOT NULL AND next_attempt_at IS NOT NULL",
    )
    is_publishing = "status = 'publishing' AND ordering_key IS NOT NULL"
    _partial_index("ix_edda_outbox_publishing", "edda_outbox", ["ordering_key"], is_publishing)
    _partial_index("ix_edda_outbox_published_at", "edda_outbox", ["published_at"], "published_at IS NOT NULL")


def _partial_index(name: str, table: str, columns: list[str], condition: str, *, sqlite: str | None = None) -> None:
    op.create_index(
        name, table, columns, postgresql_where=sa.text(condition), sqlite_where=sa.text(sqlite or condition)
    )
