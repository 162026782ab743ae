"""Messages as senders write them: one row each, whoever will get them.

A sender only adds rows, so that a request's transaction never waits for a workflow, nor a workflow for it.
Who receives a message is decided after its commit, by :mod:`edda_engine.storage.delivery`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, exists, insert, literal, select

from edda_engine.core.ports import OutgoingMessage
from edda_engine.storage.schema import inbox, instances, messages
from edda_engine.storage.types import clock

QUEUE = ""
"""The receiver of what lies in a channel's queue."""

_CHUNK = 500
_AT_MOST = 2000

_C = messages.c

_VALUES: dict[str, Any] = {
    "message_id": bindparam("message_id", type_=_C.message_id.type),
    "kind": bindparam("kind", type_=_C.kind.type),
    "name": bindparam("name", type_=_C.name.type),
    "addressee": bindparam("addressee", type_=_C.addressee.type),
    "data": bindparam("data", type_=_C.data.type),
    "data_binary": bindparam("data_binary", type_=_C.data_binary.type),
    "metadata": bindparam("metadata", type_=_C.metadata.type),
    "is_new": literal(True),
    "published_at": clock(),
}
_INSERT = insert(messages).values(_VALUES)


def insert_messages(conn: Connection, outgoing: Sequence[OutgoingMessage]) -> None:
    """Send: they are received after the transaction of *conn* has committed, or never."""
    for message in outgoing:  # one by one: the sequence must follow the order of sending
        conn.execute(_INSERT, _as_row(message))


def insert_if_known(conn: Connection, message: OutgoingMessage) -> bool:
    """Send to the instance it is for; False, and nothing is sent, if there is no such instance."""
    return conn.execute(_INSERT_IF_KNOWN, _as_row(message)).first() is not None


_IS_KNOWN = exists().where(instances.c.instance_id == _VALUES["addressee"])
_INSERT_IF_KNOWN = (
    insert(messages)
    .from_select(list(_VALUES), select(*_VALUES.values()).where(_IS_KNOWN), include_defaults=False)
    .returning(_C.seq)
)


def _as_row(message: OutgoingMessage) -> dict[str, Any]:
    return {
        "message_id": message.message_id,
        "kind": message.kind,
        "name": message.name,
        "addressee": message.addressee,
        "data": message.data_json,
        "data_binary": message.data_binary,
        "metadata": message.metadata_json,
    }


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
