"""Waits: a timer, an event, a message that a body waits for.

How it thinks. To *ask* is one transaction: what is there for the wait is taken and the wait is over; otherwise the
wait is registered, with its deadline fixed once by the database's clock. Whoever delivers a message afterwards finds
it. Both happen under the lock of the instance's row, so no message can slip in between.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, bindparam, delete, exists, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from edda_engine.core.ports import DIRECT_CHANNEL, ChannelMode, WaitKind, WaitRequest
from edda_engine.storage.keys import among
from edda_engine.storage.messages import QUEUE, forget_unused
from edda_engine.storage.schema import inbox, messages, subscriptions, waits
from edda_engine.storage.serial import serialize_delivery
from edda_engine.storage.types import clock, clock_plus, seconds_since

_C = waits.c

_DUE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Ask:
    """One body's wait."""

    instance_id: str
    activity_id: str
    mailbox: str
    request: WaitRequest

    @property
    def key(self) -> tuple[str, str]:
        """Which wait of which instance."""
        return self.instance_id, self.activity_id


@dataclass(frozen=True, slots=True)
class Taken:
    """A message has come: its JSON, and where it lay."""

    message_json: str
    taken_json: str


@dataclass(frozen=True, slots=True)
class TimeIsUp:
    """The timer has fired, or nothing came before the deadline."""


@dataclass(frozen=True, slots=True)
class StillOpen:
    """Nothing is there; the wait is registered. *due_in_seconds* is ``None`` for one without a deadline."""

    due_in_seconds: float | None


@dataclass(frozen=True, slots=True)
class NotSubscribed:
    """The instance gets nothing from this channel."""


Answer = Taken | TimeIsUp | StillOpen | NotSubscribed


@dataclass(frozen=True, slots=True)
class _Lay:
    receiver: str
    kind: str
    name: str
    seq: int
    is_queued: bool


def settle(conn: Connection, asks: Sequence[Ask]) -> list[Answer]:
    """Ask for several waits, all of instances whose rows are locked; the answer of each, in order.

    A message that is there wins over a deadline that has passed.
    """
    known = _registered(conn, asks)
    modes = {ask.key: _mode(conn, ask) for ask in asks if ask.key not in known}
    refused = {ask.key for ask in asks if ask.key in modes and _needs_subscription(ask) and modes[ask.key] is None}
    may_take = {
        ask: known[ask.key].is_competing if ask.key in known else modes[ask.key] == ChannelMode.COMPETING
        for ask in asks
        if ask.key not in refused
    }
    found = _taken(conn, may_take, registered=known.keys())
    forget_unused(conn, [lay.seq for lay, _ in found.values()])
    answers: list[Answer] = []
    over: list[tuple[str, str]] = []
    for ask in asks:
        if ask.key in found:
            lay, content = found[ask.key]
            answers.append(Taken(content, _taken_json(lay)))
            over.append(ask.key)
        elif ask.key in known:
            due = known[ask.key].due_in_seconds
            is_over = due is not None and due <= _DUE_SECONDS
            answers.append(TimeIsUp() if is_over else StillOpen(due))
            over += [ask.key] if is_over else []
        elif ask.key in refused:
            answers.append(NotSubscribed())
        else:
            answers.append(_register(conn, ask, is_competing=modes[ask.key] == ChannelMode.COMPETING))
    forget(conn, [key for key in over if key in known])
    return answers


def forget(conn: Connection, keys: Collection[tuple[str, str]]) -> None:
    """These waits are over; messages of a queue that were meant for them go back to it."""
    if not keys:
        return
    _forget(conn, among(conn, (_C.instance_id, _C.activity_id), keys))


def forget_instances(conn: Connection, instance_ids: Collection[str]) -> None:
    """Every wait of these instances is over; messages of a queue that were meant for them go back to it."""
    if instance_ids:
        _forget(conn, _C.instance_id.in_(instance_ids))


def _forget(conn: Connection, which: ColumnElement[bool]) -> None:
    over = delete(waits).where(which).returning(_C.mailbox, _C.name, _C.is_competing)
    for mailbox, name, is_competing in conn.execute(over).all():
        if is_competing:
            _give_back(conn, mailbox, name)


@dataclass(frozen=True, slots=True)
class Standing:
    """A wait that is registered, and what may end it."""

    instance_id: str
    activity_id: str
    is_competing: bool
    due_in_seconds: float | None
    has_mail: bool

    @property
    def key(self) -> tuple[str, str]:
        """Which wait of which instance."""
        return self.instance_id, self.activity_id


def standing(conn: Connection, instance_ids: Collection[str]) -> list[Standing]:
    """Every wait of these instances."""
    query = select(_C.instance_id, _C.activity_id, _C.is_competing, -seconds_since(_C.expires_at), _HAS_MAIL)
    rows = conn.execute(query.where(_C.instance_id.in_(instance_ids)))
    return [Standing(row[0], row[1], bool(row[2]), row[3], bool(row[4])) for row in rows]


def with_mail(conn: Connection, instance_ids: Collection[str]) -> list[tuple[str, str]]:
    """The waits of these instances for which something is there."""
    query = select(_C.instance_id, _C.activity_id).where(_C.instance_id.in_(instance_ids), _HAS_MAIL)
    return [(row[0], row[1]) for row in conn.execute(query)]


_HAS_MAIL = exists().where(inbox.c.receiver == _C.mailbox, inbox.c.kind == _C.kind, inbox.c.name == _C.name)


@dataclass(frozen=True, slots=True)
class _Known:
    due_in_seconds: float | None
    is_competing: bool


def _registered(conn: Connection, asks: Sequence[Ask]) -> dict[tuple[str, str], _Known]:
    keys = [ask.key for ask in asks]
    query = select(_C.instance_id, _C.activity_id, -seconds_since(_C.expires_at), _C.is_competing).where(
        among(conn, (_C.instance_id, _C.activity_id), keys)
    )
    return {(row[0], row[1]): _Known(row[2], bool(row[3])) for row in conn.execute(query)}


def _first_of(receiver: Any, kind: Any, name: Any) -> Any:
    oldest = (
        select(func.min(inbox.c.seq))
        .where(inbox.c.receiver == receiver, inbox.c.kind == kind, inbox.c.name == name)
        .scalar_subquery()
    )
    return (
        delete(inbox)
        .where(inbox.c.receiver == receiver, inbox.c.kind == kind, inbox.c.name == name, inbox.c.seq == oldest)
        .returning(inbox.c.receiver, inbox.c.kind, inbox.c.name, inbox.c.seq, inbox.c.is_queued)
    )


def _taken(
    conn: Connection, may_take: Mapping[Ask, bool], *, registered: Collection[tuple[str, str]]
) -> dict[tuple[str, str], tuple[_Lay, str]]:
    """What is there for some of the waits, with its content; each wait with whether it shares a queue."""
    found: dict[tuple[str, str], tuple[_Lay, str]] = {}
    asking = dict(may_take)
    while asking:
        lays = {
            ask: lay
            for ask, shares in asking.items()
            if (lay := _take_queued(conn, ask, ask.key in registered) if shares else _take(conn, ask)) is not None
        }
        contents = _contents(conn, [lay.seq for lay in lays.values()])
        found |= {ask.key: (lay, contents[lay.seq]) for ask, lay in lays.items() if lay.seq in contents}
        # Somebody has deleted the message and not what leads to it: that is gone now, and the next one counts.
        asking = {ask: asking[ask] for ask, lay in lays.items() if lay.seq not in contents}
    return found


_TAKE = _first_of(bindparam("receiver"), bindparam("kind"), bindparam("name"))


def _take(conn: Connection, ask: Ask, *, receiver: str | None = None) -> _Lay | None:
    """The oldest message for this wait in the instance's inbox, or in that of another *receiver*."""
    request = ask.request
    if request.kind is WaitKind.TIMER:
        return None
    whose = {"receiver": ask.mailbox if receiver is None else receiver}
    row = conn.execute(_TAKE, {**whose, "kind": request.kind, "name": request.name}).first()
    return None if row is None else _Lay(*row)


def _take_queued(conn: Connection, ask: Ask, is_registered: bool) -> _Lay | None:
    """What the channel's queue has handed over for this wait, or else the oldest message in it."""
    if is_registered and (handed := _take(conn, ask)) is not None:
        return handed
    # Under the lock of delivery: either it sees this wait, or this sees what it has put into the queue.
    serialize_delivery(conn)
    if not is_registered:
        # Handed over for an earlier wait of this instance, while that one was given up: it is first in line again.
        _give_back(conn, ask.mailbox, ask.request.name)
    # Here too once more: whoever had the lock until now may have handed it over.
    handed = _take(conn, ask)
    return handed if handed is not None else _take(conn, ask, receiver=QUEUE)


def _mode(conn: Connection, ask: Ask) -> str | None:
    if not _needs_subscription(ask):
        return None
    query = select(subscriptions.c.mode).where(
        subscriptions.c.mailbox == ask.mailbox, subscriptions.c.channel == ask.request.name
    )
    return conn.execute(query).scalar()


def _needs_subscription(ask: Ask) -> bool:
    return ask.request.kind is WaitKind.MESSAGE and ask.request.name != DIRECT_CHANNEL


def _register(conn: Connection, ask: Ask, *, is_competing: bool) -> Answer:
    request = ask.request
    if request.seconds is not None and request.seconds <= 0:
        return TimeIsUp()
    if request.until is not None:
        expires_at: Any = literal(request.until, _C.expires_at.type)
    else:
        expires_at = clock_plus(literal(request.seconds, Float)) if request.seconds is not None else None
    dialect_insert: Any = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    conn.execute(
        dialect_insert(waits)
        .values(
            instance_id=ask.instance_id,
            activity_id=ask.activity_id,
            mailbox=ask.mailbox,
            kind=request.kind,
            name=request.name,
            is_competing=is_competing,
            expires_at=expires_at,
            created_at=clock(),
        )
        .on_conflict_do_nothing()
    )
    if request.until is None:
        return StillOpen(request.seconds)
    due: float = conn.execute(
        select(-seconds_since(_C.expires_at)).where(
            _C.instance_id == ask.instance_id, _C.activity_id == ask.activity_id
        )
    ).scalar_one()
    if due > _DUE_SECONDS:
        return StillOpen(due)
    forget(conn, [ask.key])
    return TimeIsUp()


def _contents(conn: Connection, seqs: Collection[int]) -> dict[int, str]:
    """The messages as JSON texts, by number."""
    if not seqs:
        return {}
    columns = (
        messages.c.seq, messages.c.message_id, messages.c.name, messages.c.data, messages.c.data_binary,
        messages.c.metadata, messages.c.published_at,
    )  # fmt: skip
    found = {}
    for row in conn.execute(select(*columns).where(messages.c.seq.in_(seqs))):
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
        found[row.seq] = "{" + ",".join(parts) + "}"
    return found


def _taken_json(lay: _Lay) -> str:
    return json.dumps({"kind": lay.kind, "name": lay.name, "seq": lay.seq, "is_queued": lay.is_queued})


def _give_back(conn: Connection, mailbox: str, channel: str) -> None:
    """Put what a channel's queue has handed to an instance back, unless another wait of it is there to take it."""
    other = exists().where(_C.mailbox == mailbox, _C.kind == WaitKind.MESSAGE, _C.name == channel)
    conn.execute(
        update(inbox)
        .where(inbox.c.receiver == mailbox, inbox.c.kind == WaitKind.MESSAGE, inbox.c.name == channel)
        .where(inbox.c.is_queued, ~other)
        .values(receiver=QUEUE, is_new=True)
    )
