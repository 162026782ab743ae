"""The tables, all prefixed ``edda_``.

Every table that has one is keyed by ``instance_id`` first. There are no foreign keys between them: rows of one
instance are written and deleted together by this library alone, and a check on each insert would cost more than
it could ever find.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

from edda_engine.core.status import Status
from edda_engine.storage.types import JsonText, UtcTimestamp

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_STATUSES = ", ".join(f"'{status}'" for status in Status)

instances = Table(
    "edda_instances",
    metadata,
    Column("instance_id", String(255), primary_key=True),
    Column("workflow_name", String(255), nullable=False),
    Column("service", String(100), nullable=False),
    Column("status", String(32), nullable=False),
    Column("input", JsonText(), nullable=False),
    Column("output", JsonText()),
    # The failure of a failed instance; on one that is not finished, what keeps it from going on.
    Column("error", JsonText()),
    Column("source_hash", String(64), nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    # When it is due. Of a running instance: when its lease ends. NULL: nobody will claim it.
    Column("wake_at", UtcTimestamp()),
    Column("locked_by", String(255)),
    Column("lock_expires_at", UtcTimestamp()),
    Column("lock_epoch", BigInteger, nullable=False, server_default="0"),
    Column("lock_timeout_seconds", Float, nullable=False),
    Column("parent_instance_id", String(255)),
    Column("continued_from", String(255)),
    Column("cancel_requested_at", UtcTimestamp()),
    Column("cancel_reason", Text),
    Column("created_at", UtcTimestamp(), nullable=False),
    Column("started_at", UtcTimestamp()),
    Column("updated_at", UtcTimestamp(), nullable=False),
    Column("completed_at", UtcTimestamp()),
    CheckConstraint(f"status IN ({_STATUSES})", name="status"),
    CheckConstraint("lock_epoch >= 0", name="lock_epoch"),
)
Index(
    "ix_edda_instances_due",
    instances.c.service,
    instances.c.wake_at,
    postgresql_where=instances.c.wake_at.is_not(None),
    sqlite_where=instances.c.wake_at.is_not(None),
)
Index(
    "ix_edda_instances_locked_by",
    instances.c.locked_by,
    postgresql_where=instances.c.locked_by.is_not(None),
    sqlite_where=instances.c.locked_by.is_not(None),
)
Index("ix_edda_instances_created_at", instances.c.created_at, instances.c.instance_id)

history = Table(
    "edda_history",
    metadata,
    Column("instance_id", String(255), primary_key=True),
    Column("activity_id", String(255), primary_key=True),
    # The order of recording within the instance; gaps are allowed.
    Column("seq", Integer, nullable=False),
    # Where in the body the call was made; see edda_engine.core.replay.
    Column("branch", String(255), nullable=False),
    Column("position", Integer, nullable=False),
    Column("event_type", String(64), nullable=False),
    Column("event_data", JsonText(), nullable=False),
    Column("format", SmallInteger, nullable=False),
    Column("created_at", UtcTimestamp(), nullable=False),
)

retries = Table(
    "edda_retries",
    metadata,
    Column("instance_id", String(255), primary_key=True),
    Column("activity_id", String(255), primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("first_attempt_at", UtcTimestamp(), nullable=False),
    Column("next_attempt_at", UtcTimestamp(), nullable=False),
    Column("errors", JsonText(), nullable=False),
    CheckConstraint("attempts >= 1", name="attempts"),
)

outbox = Table(
    "edda_outbox",
    metadata,
    Column("event_id", String(64), primary_key=True),
    Column("instance_id", String(255)),
    Column("activity_id", String(255)),
    Column("type", String(255), nullable=False),
    Column("source", Text, nullable=False),
    Column("subject", Text),
    Column("content_type", String(255), nullable=False),
    Column("data", JsonText()),
    Column("data_binary", LargeBinary),
    Column("ordering_key", String(255)),
    Column("status", String(32), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", UtcTimestamp()),
    Column("last_error", Text),
    Column("locked_by", String(255)),
    Column("lock_expires_at", UtcTimestamp()),
    Column("created_at", UtcTimestamp(), nullable=False),
    Column("published_at", UtcTimestamp()),
    CheckConstraint("status IN ('pending', 'publishing', 'published', 'dead')", name="status"),
)
Index(
    "ix_edda_outbox_due",
    outbox.c.next_attempt_at,
    postgresql_where=outbox.c.next_attempt_at.is_not(None),
    sqlite_where=outbox.c.next_attempt_at.is_not(None),
)

workers = Table(
    "edda_workers",
    metadata,
    Column("worker_id", String(255), primary_key=True),
    Column("service", String(100), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    # With the pid it names one process for ever: pids are used again.
    Column("process_started", String(64), nullable=False),
    Column("advisory_key", BigInteger),
    Column("workflows", JsonText(), nullable=False),
    Column("version", String(64), nullable=False),
    Column("started_at", UtcTimestamp(), nullable=False),
    Column("heartbeat_at", UtcTimestamp(), nullable=False),
)

definitions = Table(
    "edda_definitions",
    metadata,
    Column("workflow_name", String(255), primary_key=True),
    Column("source_hash", String(64), primary_key=True),
    Column("source", Text, nullable=False),
    Column("created_at", UtcTimestamp(), nullable=False),
)

TABLE_NAMES = frozenset(metadata.tables) | {"edda_alembic_version"}
