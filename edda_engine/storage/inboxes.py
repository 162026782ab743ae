"""Inboxes: what lies in one is taken, oldest first.

It goes back to the queue it came from, or away, when its reader does not want it any more.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, bindparam, delete, func, select, update

from edda_engine.core.ports import WaitKind
from edda_engine.storage.keys import among
from edda_engine.storage.messages import QUEUE, forget_unused
from edda_engine.storage.prepared import Prepared, is_one_of
from edda_engine.storage.schema import inbox, instances, messages

_M = messages.c
_N = inbox.c
_TO_QUEUE = {"receiver": QUEUE, "is_new": True}


@dataclass(frozen=True, slots=True)
class Lay:
    """Where a message lay that was taken."""

    receiver: str
    kind: str
    name: str
    seq: int
    is_queued: bool

    def as_json(self) -> str:
        """All that is needed to put it back, but for whose inbox it was."""
        return json.dumps({"kind": self.kind, "name": self.name, "seq": self.seq, "is_queued": self.is_queued})


@dataclass(frozen=True, slots=True)
class Content:
    """A message: its JSON, and whether it is for one instance alone."""

    json: str
    is_addressed: bool


def take(conn: Connection, receiver: str, kind: WaitKind, name: str) -> Lay | None:
    """Take the oldest message of that kind and name, if there is one."""
    row = conn.execute(_TAKE, {"receiver": receiver, "kind": kind, "name": name}).first()
    return None if row is None else Lay(*row)


_IS_SUCH = (_N.receiver == bindparam("receiver"), _N.kind == bindparam("kind"), _N.name == bindparam("name"))
_TAKE = (
    delete(inbox)
    .where(*_IS_SUCH, _N.seq == select(func.min(_N.seq)).where(*_IS_SUCH).scalar_subquery())
    .returning(_N.receiver, _N.kind, _N.name, _N.seq, _N.is_queued)
)


def contents(conn: Connection, seqs: Sequence[int]) -> dict[int, Content]:
    """The messages of these numbers, if they are there."""
    if not seqs:
        return {}
    rows = conn.execute(_CONTENTS.on(conn), {"seqs": seqs}).all()
    return {row.seq: Content(_as_json(row), row.addressee is not None) for row in rows}


_CONTENTS = Prepared(
    lambda dialect: select(
        _M.seq, _M.message_id, _M.name, _M.addressee, _M.data, _M.data_binary, _M.metadata, _M.published_at
    ).where(is_one_of(dialect, _M.seq, "seqs", BigInteger))
)


def _as_json(row: Any) -> str:
    parts = [
        f'"id":{json.dumps(row.message_id)}',
        f'"name":{json.dumps(row.name)}',
        f'"metadata":{row.metadata}',
        f'"published_at":{json.dumps(row.published_at.isoformat())}',
    ]
    if row.data is not None:
        parts.append(f'"data":{row.data}')
    if row.data_binary is not None:
        parts.append(f'"data_base64":{json.dumps(base64.b64encode(row.data_binary).decode())}')
    return "{" + ",".join(parts) + "}"


def forget_messages(conn: Connection, taken: Collection[tuple[Lay, Content]]) -> None:
    """Nobody else ever gets what was for one; what was for all is forgotten with the last who takes it."""
    addressed = [lay.seq for lay, content in taken if content.is_addressed]
    if addressed:
        conn.execute(_FORGET.on(conn), {"seqs": addressed})
    forget_unused(conn, [lay.seq for lay, content in taken if not content.is_addressed])


_FORGET = Prepared(lambda dialect: delete(messages).where(is_one_of(dialect, _M.seq, "seqs", BigInteger)))


def empty(conn: Connection, mailboxes: Collection[str], channel: str | None = None) -> bool:
    """Nobody reads these mailboxes any more, or this channel of theirs; True if something went back to a queue."""
    mine: list[ColumnElement[bool]] = [_N.receiver.in_(mailboxes)]
    if channel is not None:
        mine += [_N.kind == WaitKind.MESSAGE, _N.name == channel]
    returned = conn.execute(update(inbox).where(*mine, _N.is_queued).values(_TO_QUEUE)).rowcount
    dropped = conn.execute(delete(inbox).where(*mine).returning(_N.seq))
    forget_unused(conn, list(dropped.scalars()))
    return returned > 0


def return_queued(conn: Connection, instance_ids: Collection[str]) -> None:
    """These instances take nothing for now: what queues have handed to them goes back."""
    boxes = select(func.coalesce(instances.c.mailbox, instances.c.instance_id)).where(
        instances.c.instance_id.in_(instance_ids)
    )
    conn.execute(update(inbox).where(_N.receiver.in_(boxes), _N.is_queued).values(_TO_QUEUE))


def return_surplus(
    conn: Connection, handed: Collection[tuple[str, str]], wanted: Mapping[tuple[str, str], int]
) -> bool:
    """Put back what queues have handed to mailboxes that want less of it by now; True if there was such.

    :param handed: Mailboxes and channels to look at.
    :param wanted: How many messages each of them waits for; no entry means none.
    """
    if not handed:
        return False
    key = (_N.receiver, _N.name, _N.seq)
    of_handed = among(conn, (_N.receiver, _N.kind, _N.name), [(box, WaitKind.MESSAGE, name) for box, name in handed])
    room = Counter(wanted)
    surplus = []
    for receiver, name, seq in conn.execute(select(*key).where(of_handed, _N.is_queued).order_by(_N.seq)).all():
        room[receiver, name] -= 1
        if room[receiver, name] < 0:
            surplus.append((receiver, WaitKind.MESSAGE, name, seq))
    if surplus:
        conn.execute(
            update(inbox).where(among(conn, (_N.receiver, _N.kind, _N.name, _N.seq), surplus)).values(_TO_QUEUE)
        )
    return bool(surplus)
