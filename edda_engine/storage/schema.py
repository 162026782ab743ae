"""The tables, all prefixed ``edda_``.

Every table that has one is keyed by ``instance_id`` first. There are no foreign keys between them: rows of one
instance are written and deleted together by this library alone, and a check on each insert would cost more than
it could ever find.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
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
    UniqueConstraint,
    and_,
    text,
)

from edda_engine.core.status import Status
from edda_engine.storage.types import JsonText, UtcTimestamp

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(constraint_name)s",
    }
)

# SQLite counts by itself only in a column of type INTEGER.
_SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")

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
    # So often in a row was it taken over from a worker that died, with nothing recorded since this much was.
    Column("takeovers", Integer, nullable=False, server_default="0"),
    Column("takeover_progress", Integer, nullable=False, server_default="0"),
    Column("parent_instance_id", String(255)),
    Column("continued_from", String(255)),
    # Under which address it gets messages; shared by the runs of a chain of recurrences. NULL: its own id.
    Column("mailbox", String(255)),
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
# For pruning: who looks for what has ended passes by what has not.
Index(
    "ix_edda_instances_completed_at",
    instances.c.completed_at,
    postgresql_where=instances.c.completed_at.is_not(None),
    sqlite_where=instances.c.completed_at.is_not(None),
)
_IS_LAST_RUN = text("mailbox IS NOT NULL AND status <> 'recurred'")
Index(
    "ix_edda_instances_mailbox",
    instances.c.mailbox,
    postgresql_where=_IS_LAST_RUN,
    sqlite_where=_IS_LAST_RUN,
)

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

# What a body waits for: a timer, an event, a message. Deleted in the transaction that records how the wait ended.
waits = Table(
    "edda_waits",
    metadata,
    Column("instance_id", String(255), primary_key=True),
    Column("activity_id", String(255), primary_key=True),
    Column("mailbox", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    # The event type or the channel; empty for a timer.
    Column("name", String(255), nullable=False),
    # True when the wait takes from the channel's queue, which it shares with others.
    Column("is_competing", Boolean, nullable=False),
    Column("expires_at", UtcTimestamp()),
    Column("created_at", UtcTimestamp(), nullable=False),
    # What history will say of its end, and under which lease it was asked for; see edda_engine.storage.receiving.
    Column("step", JsonText()),
    CheckConstraint("kind IN ('timer', 'event', 'message')", name="kind"),
)
Index("ix_edda_waits_name", waits.c.kind, waits.c.name, waits.c.created_at)

channels = Table(
    "edda_channels",
    metadata,
    Column("channel", String(255), primary_key=True),
    Column("mode", String(16), nullable=False),
    Column("created_at", UtcTimestamp(), nullable=False),
    CheckConstraint("mode IN ('broadcast', 'competing', 'direct')", name="mode"),
)

subscriptions = Table(
    "edda_subscriptions",
    metadata,
    Column("mailbox", String(255), primary_key=True),
    Column("channel", String(255), primary_key=True),
    Column("mode", String(16), nullable=False),
    Column("created_at", UtcTimestamp(), nullable=False),
)
Index("ix_edda_subscriptions_channel", subscriptions.c.channel)

# Events and messages as they were sent. A sender only adds a row; delivery turns it into rows of the inbox.
messages = Table(
    "edda_messages",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("message_id", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(255), nullable=False),
    # The instance it is for; NULL for whoever waits or has subscribed.
    Column("addressee", String(255)),
    Column("data", JsonText()),
    Column("data_binary", LargeBinary),
    Column("metadata", JsonText(), nullable=False),
    Column("is_new", Boolean, nullable=False),
    Column("published_at", UtcTimestamp(), nullable=False),
    CheckConstraint("kind IN ('event', 'message')", name="kind"),
    sqlite_autoincrement=True,
)
Index(
    "ix_edda_messages_new",
    messages.c.seq,
    postgresql_where=messages.c.is_new,
    sqlite_where=text("is_new = 1"),
)
Index("ix_edda_messages_published_at", messages.c.published_at)

# One row for each receiver of a message, until it takes it; receiver "" is the queue of a channel.
inbox = Table(
    "edda_inbox",
    metadata,
    Column("receiver", String(255), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=False),
    # It came from a channel's queue, and goes back there if its receiver ends without taking it.
    Column("is_queued", Boolean, nullable=False),
    # Nobody has been woken for it yet.
    Column("is_new", Boolean, nullable=False),
)
# A hash has no order: with one, the server may look for the oldest message of one receiver through those of all others.
Index("ix_edda_inbox_seq", inbox.c.seq, postgresql_using="hash")
# As many columns as those by which a queue is known: of two indexes that seem to fit as well the server may take the one
# that holds all that was ever sent, for as long as nobody has counted the rows anew.
Index(
    "ix_edda_inbox_new",
    inbox.c.receiver,
    inbox.c.kind,
    inbox.c.name,
    postgresql_where=inbox.c.is_new,
    sqlite_where=text("is_new = 1"),
)

outbox = Table(
    "edda_outbox",
    metadata,
    # The order of writing, in which events of one ordering_key are published.
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("event_id", String(64), nullable=False),
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
    UniqueConstraint("event_id", name="event_id"),
    sqlite_autoincrement=True,
)
# Due: waiting to be published, or being published by a relay whose lock may have expired.
Index(
    "ix_edda_outbox_due",
    outbox.c.next_attempt_at,
    postgresql_where=outbox.c.next_attempt_at.is_not(None),
    sqlite_where=outbox.c.next_attempt_at.is_not(None),
)
Index(
    "ix_edda_outbox_ordering_key",
    outbox.c.ordering_key,
    outbox.c.seq,
    postgresql_where=and_(outbox.c.ordering_key.is_not(None), outbox.c.next_attempt_at.is_not(None)),
    sqlite_where=and_(outbox.c.ordering_key.is_not(None), outbox.c.next_attempt_at.is_not(None)),
)
_IS_PUBLISHING = text("status = 'publishing' AND ordering_key IS NOT NULL")
Index(
    "ix_edda_outbox_publishing",
    outbox.c.ordering_key,
    postgresql_where=_IS_PUBLISHING,
    sqlite_where=_IS_PUBLISHING,
)
Index(
    "ix_edda_outbox_published_at",
    outbox.c.published_at,
    postgresql_where=outbox.c.published_at.is_not(None),
    sqlite_where=outbox.c.published_at.is_not(None),
)

# CloudEvents that came over HTTP: one that is delivered again does nothing again.
received_events = Table(
    "edda_received_events",
    metadata,
    # Who has done with it what was to be done; empty: the instances that wait, of all services.
    Column("service", String(100), primary_key=True),
    Column("source", String(255), primary_key=True),
    Column("event_id", String(255), primary_key=True),
    Column("expires_at", UtcTimestamp(), nullable=False),
)
Index("ix_edda_received_events_expires_at", received_events.c.expires_at)

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
