"""Channels: which mode they have, and which mailboxes get their messages."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from edda_engine.core.ports import ChannelMode, WaitKind
from edda_engine.storage import delivery, inboxes
from edda_engine.storage.messages import QUEUE, forget_unused
from edda_engine.storage.schema import channels, inbox, instances, subscriptions
from edda_engine.storage.serial import serialize_delivery
from edda_engine.storage.types import clock

_C = subscriptions.c


@dataclass(frozen=True, slots=True)
class ModeConflict:
    """The channel has another mode already."""

    recorded: str


def subscribe(conn: Connection, *, mailbox: str, channel: str, mode: ChannelMode) -> ModeConflict | None:
    """Let *mailbox* get what is sent to *channel* from now on; ``None`` when it is done.

    What was sent before is distributed first, so that a broadcast of the past does not reach a new subscriber.
    """
    found = conflict(conn, channel=channel, mode=mode)
    if found is not None:
        return found
    _set_mode(conn, channel, mode)
    dialect_insert: Any = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    conn.execute(
        dialect_insert(subscriptions)
        .values(mailbox=mailbox, channel=channel, mode=mode, created_at=clock())
        .on_conflict_do_nothing()
    )
    return None


def conflict(conn: Connection, *, channel: str, mode: ChannelMode) -> ModeConflict | None:
    """What keeps everybody from subscribing in this mode, if anything; it stays so until the transaction ends."""
    serialize_delivery(conn)
    delivery.distribute_all(conn)
    recorded = _recorded_mode(conn, channel)
    if recorded is None or recorded == mode:
        return None
    others = select(_C.mailbox).where(_C.channel == channel).limit(1)
    is_used = conn.execute(others).first() is not None or _has_queue(conn, channel)
    return ModeConflict(recorded) if is_used else None


def unsubscribe(conn: Connection, *, mailbox: str, channel: str) -> None:
    """Let *mailbox* get nothing more from *channel*; what it has not read is dropped, or goes back to the queue."""
    serialize_delivery(conn)
    conn.execute(delete(subscriptions).where(_C.mailbox == mailbox, _C.channel == channel))
    inboxes.empty(conn, [mailbox], channel)


def forget_instance(conn: Connection, instance_id: str) -> None:
    """An instance has ended: it gets nothing any more, and what it had from queues goes back to them."""
    box = func.coalesce(instances.c.mailbox, instances.c.instance_id)
    mailbox = conn.execute(select(box).where(instances.c.instance_id == instance_id)).scalar_one()
    forget_mailboxes(conn, [mailbox])


def forget_mailboxes(conn: Connection, mailboxes: Collection[str]) -> None:
    """The instances of these mailboxes have ended: they get nothing any more."""
    if mailboxes:
        conn.execute(delete(subscriptions).where(_C.mailbox.in_(mailboxes)))
        inboxes.empty(conn, mailboxes)


def _recorded_mode(conn: Connection, channel: str) -> str | None:
    mode: str | None = conn.execute(select(channels.c.mode).where(channels.c.channel == channel)).scalar()
    return mode


def _set_mode(conn: Connection, channel: str, wanted: ChannelMode) -> None:
    """The channel has this mode from now on: nobody uses it otherwise."""
    recorded = _recorded_mode(conn, channel)
    if recorded is None:
        dialect_insert: Any = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
        conn.execute(
            dialect_insert(channels).values(channel=channel, mode=wanted, created_at=clock()).on_conflict_do_nothing()
        )
        if wanted is not ChannelMode.COMPETING:
            # Sent while nobody knew the channel's mode: kept for competing receivers, past for the others.
            _drop_queue(conn, channel)
    elif recorded != wanted:
        conn.execute(update(channels).where(channels.c.channel == channel).values(mode=wanted))


def _has_queue(conn: Connection, channel: str) -> bool:
    query = exists().where(inbox.c.receiver == QUEUE, inbox.c.kind == WaitKind.MESSAGE, inbox.c.name == channel)
    return bool(conn.execute(select(query)).scalar_one())


def _drop_queue(conn: Connection, channel: str) -> None:
    dropped = conn.execute(
        delete(inbox)
        .where(inbox.c.receiver == QUEUE, inbox.c.kind == WaitKind.MESSAGE, inbox.c.name == channel)
        .returning(inbox.c.seq)
    )
    forget_unused(conn, list(dropped.scalars()))
