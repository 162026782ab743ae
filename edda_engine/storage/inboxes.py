"""Inboxes: what lies in one goes back to the queue it came from, or away, when its reader does not want it any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from edda_engine.core.ports import WaitKind
from edda_engine.storage.keys import among
from edda_engine.storage.messages import QUEUE, forget_unused
from edda_engine.storage.schema import inbox, instances

_N = inbox.c
_TO_QUEUE = {"receiver": QUEUE, "is_new": True}


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
