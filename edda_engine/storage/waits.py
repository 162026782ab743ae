"""Waits: a timer, an event, a message that a body waits for.

How it thinks. To *ask* is one transaction: what is there for the wait is taken and the wait is over; otherwise the
wait is registered, with its deadline fixed once by the database's clock. Whoever delivers a message afterwards finds
it. Both happen under the lock of the instance's row, so no message can slip in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Float,
    and_,
    delete,
    exists,
    literal,
    select,
    update,
)

from edda_engine.core.ports import DIRECT_CHANNEL, ChannelMode, WaitKind, WaitRequest
from edda_engine.storage import inboxes
from edda_engine.storage.inboxes import Content, Lay
from edda_engine.storage.messages import QUEUE
from edda_engine.storage.prepared import Prepared, as_texts, given_texts, insert_for, is_among, is_one_of
from edda_engine.storage.schema import history, inbox, subscriptions, waits
from edda_engine.storage.serial import serialize_delivery
from edda_engine.storage.types import clock, clock_plus, seconds_since

_C = waits.c

DUE_SECONDS = 0.001
"""What is due so soon is due now."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One body's wait."""

    instance_id: str
    activity_id: str
    mailbox: str
    request: WaitRequest
    step_json: str | None = None
    """What a claim needs to record its end (see :mod:`edda_engine.storage.receiving`)."""

    @property
    def key(self) -> tuple[str, str]:
        """Which wait of which instance."""
        return self.instance_id, self.activity_id

    @property
    def channel(self) -> str:
        """The channel it waits for, if it does."""
        return self.request.name if self.request.kind is WaitKind.MESSAGE else ""


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
class Asked:
    """How a wait stands before it is asked for."""

    is_recorded: bool
    """History has its end already."""
    is_registered: bool
    due_in_seconds: float | None
    is_competing: bool
    mode: str | None
    """In which mode its instance has subscribed to the channel, if it has."""


def look(conn: Connection, asks: Sequence[Ask]) -> dict[tuple[str, str], Asked]:
    """How several waits stand, all of instances whose rows are locked; by their keys."""
    rows = as_texts(_ASKED, [(*ask.key, ask.mailbox, ask.channel) for ask in asks])
    return {
        (row[0], row[1]): Asked(
            is_recorded=bool(row[2]),
            is_registered=row[3] is not None,
            due_in_seconds=row[4],
            is_competing=bool(row[3]) if row[3] is not None else row[5] == ChannelMode.COMPETING,
            mode=row[5],
        )
        for row in conn.execute(_LOOK.on(conn), rows).all()
    }


_ASKED = ("instance_id", "activity_id", "mailbox", "name")


@Prepared
def _LOOK(dialect: str) -> Any:
    given = given_texts(dialect, _ASKED)
    is_recorded = exists().where(
        history.c.instance_id == given.c.instance_id, history.c.activity_id == given.c.activity_id
    )
    is_it = and_(_C.instance_id == given.c.instance_id, _C.activity_id == given.c.activity_id)
    has_subscribed = and_(subscriptions.c.mailbox == given.c.mailbox, subscriptions.c.channel == given.c.name)
    return select(
        given.c.instance_id,
        given.c.activity_id,
        is_recorded,
        _C.is_competing,
        -seconds_since(_C.expires_at),
        subscriptions.c.mode,
    ).select_from(given.outerjoin(waits, is_it).outerjoin(subscriptions, has_subscribed))


def settle(conn: Connection, asks: Sequence[Ask], known: Mapping[tuple[str, str], Asked] | None = None) -> list[Answer]:
    """Ask for several waits, all of instances whose rows are locked; the answer of each, in order.

    A message that is there wins over a deadline that has passed.
    """
    known = look(conn, asks) if known is None else known
    refused = {ask for ask in asks if _is_refused(ask, known[ask.key])}
    found = _taken(conn, {ask: known[ask.key] for ask in asks if ask not in refused})
    inboxes.forget_messages(conn, found.values())
    answers: list[Answer] = []
    over: list[tuple[str, str]] = []
    for ask in asks:
        standing = known[ask.key]
        if ask in refused:
            answers.append(NotSubscribed())
        elif ask.key in found:
            lay, content = found[ask.key]
            answers.append(Taken(content.json, lay.as_json()))
            over.append(ask.key)
        elif standing.is_registered:
            due = standing.due_in_seconds
            is_over = due is not None and due <= DUE_SECONDS
            answers.append(TimeIsUp() if is_over else StillOpen(due))
            over += [ask.key] if is_over else []
        else:
            answers.append(_register(conn, ask, is_competing=standing.is_competing))
    forget(conn, [key for key in over if known[key].is_registered])
    return answers


def _is_refused(ask: Ask, standing: Asked) -> bool:
    """An instance that gets nothing from a channel is not left waiting for it."""
    needs_subscription = ask.request.kind is WaitKind.MESSAGE and ask.request.name != DIRECT_CHANNEL
    return needs_subscription and not standing.is_registered and standing.mode is None


def forget(conn: Connection, keys: Collection[tuple[str, str]]) -> None:
    """These waits are over; messages of a queue that were meant for them go back to it."""
    if keys:
        _give_all_back(conn, conn.execute(_FORGET.on(conn), as_texts(_KEY, list(keys))).all())


_KEY = ("instance_id", "activity_id")
_OVER = (_C.mailbox, _C.name, _C.is_competing)
_FORGET = Prepared(
    lambda dialect: delete(waits).where(is_among(dialect, (_C.instance_id, _C.activity_id))).returning(*_OVER)
)


def forget_instances(conn: Connection, instance_ids: Collection[str]) -> None:
    """Every wait of these instances is over; messages of a queue that were meant for them go back to it."""
    if instance_ids:
        _give_all_back(conn, conn.execute(_FORGET_ALL.on(conn), {"ids": list(instance_ids)}).all())


_FORGET_ALL = Prepared(lambda dialect: delete(waits).where(is_one_of(dialect, _C.instance_id, "ids")).returning(*_OVER))


def _give_all_back(conn: Connection, over: Sequence[Any]) -> None:
    for mailbox, name, is_competing in over:
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


def _taken(conn: Connection, asks: Mapping[Ask, Asked]) -> dict[tuple[str, str], tuple[Lay, Content]]:
    """What is there for some of the waits, with its content."""
    found: dict[tuple[str, str], tuple[Lay, Content]] = {}
    asking = {ask: standing for ask, standing in asks.items() if ask.request.kind is not WaitKind.TIMER}
    while asking:
        lays = {ask: lay for ask, standing in asking.items() if (lay := _take(conn, ask, standing)) is not None}
        contents = inboxes.contents(conn, [lay.seq for lay in lays.values()])
        found |= {ask.key: (lay, contents[lay.seq]) for ask, lay in lays.items() if lay.seq in contents}
        # Somebody has deleted the message and not what leads to it: that is gone now, and the next one counts.
        asking = {ask: asking[ask] for ask, lay in lays.items() if lay.seq not in contents}
    return found


def _take(conn: Connection, ask: Ask, standing: Asked) -> Lay | None:
    """The oldest message for this wait, out of the instance's inbox or else out of the channel's queue."""
    kind, name = ask.request.kind, ask.request.name
    if standing.is_registered or not standing.is_competing:
        lay = inboxes.take(conn, ask.mailbox, kind, name)
        if lay is not None or not standing.is_competing:
            return lay
    # Under the lock of delivery: either it sees this wait, or this sees what it has put into the queue.
    serialize_delivery(conn)
    if not standing.is_registered:
        # Handed over for an earlier wait of this instance, while that one was given up: it is first in line again.
        _give_back(conn, ask.mailbox, name)
    # Here too once more: whoever had the lock until now may have handed it over.
    return inboxes.take(conn, ask.mailbox, kind, name) or inboxes.take(conn, QUEUE, kind, name)


def _register(conn: Connection, ask: Ask, *, is_competing: bool) -> Answer:
    request = ask.request
    if request.seconds is not None and request.seconds <= 0:
        return TimeIsUp()
    if request.until is not None:
        expires_at: Any = literal(request.until, _C.expires_at.type)
    else:
        expires_at = clock_plus(literal(request.seconds, Float)) if request.seconds is not None else None
    conn.execute(
        insert_for(conn.dialect.name)(waits)
        .values(
            instance_id=ask.instance_id,
            activity_id=ask.activity_id,
            mailbox=ask.mailbox,
            kind=request.kind,
            name=request.name,
            is_competing=is_competing,
            expires_at=expires_at,
            created_at=clock(),
            step=ask.step_json,
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
    if due > DUE_SECONDS:
        return StillOpen(due)
    forget(conn, [ask.key])
    return TimeIsUp()


def _give_back(conn: Connection, mailbox: str, channel: str) -> None:
    """Put what a channel's queue has handed to an instance back, unless another wait of it is there to take it."""
    other = exists().where(_C.mailbox == mailbox, _C.kind == WaitKind.MESSAGE, _C.name == channel)
    conn.execute(
        update(inbox)
        .where(inbox.c.receiver == mailbox, inbox.c.kind == WaitKind.MESSAGE, inbox.c.name == channel)
        .where(inbox.c.is_queued, ~other)
        .values(receiver=QUEUE, is_new=True)
    )
