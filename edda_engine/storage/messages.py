"""Messages as senders write them: one row each, whoever will get them.

A sender only adds rows, so that a request's transaction never waits for a workflow, nor a workflow for it.
Who receives a message is decided after its commit, by :mod:`edda_engine.storage.delivery`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, exists, insert, literal, select

from edda_engine.core.ports import OutgoingMessage
from edda_engine.storage.schema import inbox, messages
from edda_engine.storage.types import clock

QUEUE = ""
"""The receiver of what lies in a channel's queue."""

_CHUNK = 500
_AT_MOST = 2000

_C = messages.c

_INSERT = insert(messages).values(
    message_id=bindparam("message_id"),
    kind=bindparam("kind"),
    name=bindparam("name"),
    addressee=bindparam("addressee"),
    data=bindparam("data"),
    data_binary=bindparam("data_binary"),
    metadata=bindparam("metadata"),
    is_new=literal(True),
    published_at=clock(),
)


def insert_messages(conn: Connection, outgoing: Sequence[OutgoingMessage]) -> None:
    """Send: they are received after the transaction of *conn* has committed, or never."""
    rows: list[dict[str, Any]] = [
        {
            "message_id": message.message_id,
            "kind": message.kind,
            "name": message.name,
            "addressee": message.addressee,
            "data": message.data_json,
            "data_binary": message.data_binary,
            "metadata": message.metadata_json,
        }
        for message in outgoing
    ]
    for row in rows:  # one by one: the sequence must follow the order of sending
        conn.execute(_INSERT, row)


def forget_unused(conn: Connection, seqs: Collection[int]) -> int:
    """Delete those messages that no inbox holds any more; returns how many. One that is locked is left for pruning.

    Locked first and looked at afterwards: somebody may be putting one of them back. Of very many the rest is left for
    pruning, too.
    """
    all_seqs = list(seqs)[:_AT_MOST]
    deleted = 0
    for start in range(0, len(all_seqs), _CHUNK):
        some = all_seqs[start : start + _CHUNK]
        mine = conn.execute(select(_C.seq).where(_C.seq.in_(some)).with_for_update(skip_locked=True)).scalars().all()
        is_used = exists().where(inbox.c.seq == _C.seq).correlate(messages)
        deleted += conn.execute(delete(messages).where(_C.seq.in_(mine), ~is_used)).rowcount
    return deleted
