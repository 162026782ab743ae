"""Outbox rows: events written with the step that caused them, and how relays share them.

How it thinks. A writer only adds rows. A relay claims due ones: from then on they are *publishing*, its own until
its lock ends, and every later change of theirs is conditional on that lock. ``next_attempt_at`` answers "is it
due?" for pending and publishing rows alike, so the rows of a crashed relay are found by the same question.

Events of one ordering key go out in the order of ``seq``, one at a time. A row is claimed only together with, or
after, all earlier rows of its key that are not done. Done is for ever, so a look that is out of date can only be too
careful. But an earlier row may appear later: its transaction took longer, or it was dead and is tried again. It waits
until nobody publishes later ones of its key any more; that nobody begins meanwhile is why claims of one key take turns.

Rows that are due but have to wait are *postponed*, lest every claim look at all of them again; whoever is done
with a row makes the next ones of its key due at once, and those that have appeared before it. For that no row may be
postponed while the one it waits for gets done unnoticed: that one is locked meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Float, bindparam, exists, func, insert, literal, or_, select, text, true, update

from edda_engine.core.ports import OutboxEvent
from edda_engine.storage.schema import outbox
from edda_engine.storage.serial import try_to_serialize_keys
from edda_engine.storage.types import clock, clock_plus
from edda_engine.storage.vanishing import silence_is_limited

POSTPONED_SECONDS = 600.0
"""How long a row that has to wait for another one is left alone, unless that one is done before."""

ROWS_OF_A_KEY = 16
"""So many rows of one ordering key are claimed together: the others of their relay's rows are of other keys."""

_LOOKED_AT = 1000
"""So many rows a claim looks at, if those that wait are in the way of those whose turn it is."""

_C = outbox.c
_IS_PUBLISHING = text("edda_outbox.status = 'publishing' AND edda_outbox.ordering_key IS NOT NULL")
"""Written out, so that the partial index is found by it."""
_GIVE_BACK = {"status": "pending", "locked_by": None, "lock_expires_at": None}
_NOT_DUE = {"next_attempt_at": None, "locked_by": None, "lock_expires_at": None}


@dataclass(frozen=True, slots=True)
class ClaimedEvent:
    """A row that a relay is to publish."""

    seq: int
    attempts: int
    """How often it was tried in vain."""
    created_at: datetime
    instance_id: str | None
    event: OutboxEvent


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim took, in the order of writing, and how many rows it postponed."""

    events: tuple[ClaimedEvent, ...]
    postponed: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """The row's event was taken."""

    seq: int


@dataclass(frozen=True, slots=True)
class Delayed:
    """The row's event was not taken; it is tried again after *delay_seconds*."""

    seq: int
    delay_seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class Dead:
    """The row's event was refused for good."""

    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The row was not tried. *waits*: for an earlier row of its key."""

    seq: int
    waits: bool = False


Outcome = Published | Delayed | Dead | HandedBack


def insert_events(conn: Connection, events: Iterable[tuple[str | None, str | None, OutboxEvent]]) -> None:
    """Write events with the instance and step they come from."""
    rows: list[dict[str, Any]] = [
        {
            "event_id": event.event_id,
            "instance_id": instance_id,
            "activity_id": activity_id,
            "type": event.type,
            "source": event.source,
            "subject": event.subject,
            "content_type": event.content_type,
            "data": event.data_json,
            "data_binary": event.data_binary,
            "ordering_key": event.ordering_key,
        }
        for instance_id, activity_id, event in events
    ]
    if rows:
        statement = insert(outbox).values(
            {name: bindparam(name) for name in rows[0]}
            | {"status": "pending", "created_at": clock(), "next_attempt_at": clock()}
        )
        conn.execute(statement, rows)


def has_due(conn: Connection) -> bool:
    """Whether a claim could find something; takes no lock."""
    return bool(conn.execute(select(exists().where(_C.next_attempt_at <= clock()))).scalar_one())


def claim_due(
    conn: Connection,
    *,
    relay_id: str,
    limit: int,
    lock_seconds: float,
    under_way: Collection[int] = (),
    takes_over: bool = True,
) -> Claim:
    """Take up to *limit* due rows, the longest-waiting first, and give each a lock of *lock_seconds*.

    :param under_way: Rows that the relay is at work on; it does not take them once more if their lock has expired.
    :param takes_over: Whether rows count as due whose relay has let its lock expire.
    """
    limit_idle_time(conn)
    taken: list[int] = []
    postponed = 0
    for look_at in (limit, _LOOKED_AT):
        due = _lock_due(conn, look_at, under_way, takes_over=takes_over)
        free, waiting = _in_order(conn, due, _published_now(conn, due, under_way, takes_over=takes_over))
        free = free[: limit - len(taken)]
        _lock(conn, free, relay_id=relay_id, lock_seconds=lock_seconds)
        postponed += _postpone(conn, waiting, lock_seconds=lock_seconds)
        taken += free
        if not waiting or len(taken) > limit // 2:
            break
    if not taken:
        return Claim((), postponed)
    rows = conn.execute(select(outbox).where(_C.seq.in_(taken)).order_by(_C.seq)).mappings()
    return Claim(tuple(_claimed(row) for row in rows), postponed)


def _lock_due(conn: Connection, limit: int, under_way: Collection[int], *, takes_over: bool) -> dict[int, str | None]:
    query = (
        select(_C.seq, _C.ordering_key)
        .where(_C.next_attempt_at <= clock(), _C.status.in_(("pending", "publishing") if takes_over else ("pending",)))
        .order_by(_C.next_attempt_at, _C.seq)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    if under_way:
        query = query.where(_C.seq.not_in(under_way))
    return {row.seq: row.ordering_key for row in conn.execute(query)}


def _published_now(
    conn: Connection, due: dict[int, str | None], under_way: Collection[int], *, takes_over: bool
) -> dict[str, int]:
    """The keys of these rows of which a row is being published, each with that row; whose turn it is not is left out.

    A relay that has let its lock expire counts only if nobody may take over from it.
    """
    keys = {key for key in due.values() if key is not None}
    if not keys:
        return {}
    ours = try_to_serialize_keys(conn, keys)
    for seq in [seq for seq, key in due.items() if key is not None and key not in ours]:
        del due[seq]  # somebody claims for this key at this moment
    is_under_way = [_C.next_attempt_at > clock(), _C.seq.in_(under_way)] if takes_over else [true()]
    query = (
        select(_C.ordering_key, func.max(_C.seq))
        .where(_IS_PUBLISHING, _C.ordering_key.in_(ours), or_(*is_under_way))
        .group_by(_C.ordering_key)
    )
    return {row[0]: row[1] for row in conn.execute(query)}


def _in_order(
    conn: Connection, due: dict[int, str | None], published_now: dict[str, int]
) -> tuple[list[int], dict[int, int]]:
    """Split rows that are locked into those whose turn it is, and those that wait, each with the row it waits for."""
    unkeyed = [seq for seq, key in due.items() if key is None]
    keyed = [seq for seq, key in due.items() if key is not None]
    if not keyed:
        return unkeyed, {}
    earlier = outbox.alias("earlier")
    before = (
        select(earlier.c.seq)
        .where(
            earlier.c.ordering_key == _C.ordering_key, earlier.c.next_attempt_at.is_not(None), earlier.c.seq < _C.seq
        )
        .order_by(earlier.c.seq.desc())
        .limit(1)
        .scalar_subquery()
    )
    places: dict[int, int] = {}  # of the rows whose turn it is, within their key
    waiting: dict[int, int] = {}
    rows = conn.execute(select(_C.seq, _C.ordering_key, before).where(_C.seq.in_(keyed)).order_by(_C.seq))
    for seq, key, previous in rows:
        place = 1 if previous is None else places.get(previous, ROWS_OF_A_KEY) + 1
        if key in published_now:
            waiting[seq] = published_now[key] if previous is None else previous
        elif place <= ROWS_OF_A_KEY:
            places[seq] = place
        else:
            waiting[seq] = previous
    return sorted([*unkeyed, *places]), waiting


def _lock(conn: Connection, seqs: Sequence[int], *, relay_id: str, lock_seconds: float) -> None:
    if seqs:
        lock_end = clock_plus(literal(lock_seconds, Float))
        conn.execute(
            update(outbox)
            .where(_C.seq.in_(seqs))
            .values(status="publishing", locked_by=relay_id, lock_expires_at=lock_end, next_attempt_at=lock_end)
        )


def _postpone(conn: Connection, waiting: dict[int, int], *, lock_seconds: float) -> int:
    """Leave rows alone that wait for another one, if that one can be kept from being done until we have committed."""
    if not waiting:
        return 0
    others = set(waiting.values()) - waiting.keys()
    query = select(_C.seq).where(_C.seq.in_(others), _C.next_attempt_at.is_not(None))
    still_there = set(conn.execute(query.with_for_update(read=True, skip_locked=True)).scalars())
    for_earlier: set[int] = set()
    for_later: set[int] = set()
    for seq, other in sorted(waiting.items()):
        if other in still_there or other in for_earlier or other in for_later:
            (for_earlier if other < seq else for_later).add(seq)
    # A later one that is handed back does not get done, and waits for the earlier one in its turn.
    for seqs, seconds in ((for_earlier, POSTPONED_SECONDS), (for_later, lock_seconds)):
        if seqs:
            until = clock_plus(literal(seconds, Float))
            conn.execute(update(outbox).where(_C.seq.in_(seqs)).values(next_attempt_at=until, **_GIVE_BACK))
    return len(for_earlier) + len(for_later)


def _claimed(row: Any) -> ClaimedEvent:
    event = OutboxEvent(
        event_id=row["event_id"],
        type=row["type"],
        source=row["source"],
        content_type=row["content_type"],
        data_json=row["data"],
        data_binary=row["data_binary"],
        subject=row["subject"],
        ordering_key=row["ordering_key"],
    )
    return ClaimedEvent(row["seq"], row["attempts"], row["created_at"], row["instance_id"], event)


def record(conn: Connection, *, relay_id: str, outcomes: Sequence[Outcome]) -> set[int]:
    """Write what became of claimed rows; those whose lock is gone are left as they are.

    :returns: The rows that were still the relay's own.
    """
    limit_idle_time(conn)
    held = _held(conn, relay_id=relay_id, seqs=[outcome.seq for outcome in outcomes])
    ours = sorted((outcome for outcome in outcomes if outcome.seq in held), key=lambda outcome: outcome.seq)
    published = [outcome.seq for outcome in ours if isinstance(outcome, Published)]
    dead = [outcome.seq for outcome in ours if isinstance(outcome, Dead)]
    _record_published(conn, published)
    for outcome in ours:
        match outcome:
            case Delayed():
                _make_pending(
                    conn, outcome.seq, outcome.delay_seconds, attempts=_C.attempts + 1, last_error=outcome.error
                )
            case HandedBack():
                _make_pending(conn, outcome.seq, POSTPONED_SECONDS if outcome.waits else 0.0)
            case Dead():
                values = {"status": "dead", "attempts": _C.attempts + 1, "last_error": outcome.reason}
                conn.execute(update(outbox).where(_C.seq == outcome.seq).values(values | _NOT_DUE))
    make_next_due(conn, {seq: held[seq] for seq in published + dead})
    _make_earlier_due(
        conn,
        {outcome.seq: held[outcome.seq] for outcome in ours if not (isinstance(outcome, HandedBack) and outcome.waits)},
    )
    return set(held)


def _held(conn: Connection, *, relay_id: str, seqs: Collection[int]) -> dict[int, str | None]:
    """Lock those rows that the relay still holds; each with its ordering key."""
    query = (
        select(_C.seq, _C.ordering_key)
        .where(_C.seq.in_(seqs), _C.locked_by == relay_id, _C.status == "publishing")
        .order_by(_C.seq)
        .with_for_update()
    )
    return {row.seq: row.ordering_key for row in conn.execute(query)}


def _record_published(conn: Connection, seqs: Sequence[int]) -> None:
    if seqs:
        values = {"status": "published", "attempts": _C.attempts + 1, "last_error": None, "published_at": clock()}
        conn.execute(update(outbox).where(_C.seq.in_(seqs)).values(values | _NOT_DUE))


def _make_pending(conn: Connection, seq: int, delay_seconds: float, **values: Any) -> None:
    due_at = clock_plus(literal(delay_seconds, Float))
    conn.execute(update(outbox).where(_C.seq == seq).values(next_attempt_at=due_at, **_GIVE_BACK, **values))


def make_next_due(conn: Connection, done: dict[int, str | None]) -> None:
    """The rows *done*, with their ordering keys, keep nobody waiting any more."""
    after = [{"key": key, "after": seq} for seq, key in done.items() if key is not None]
    if not after:
        return
    following = (
        select(_C.seq)
        .where(
            _C.ordering_key == bindparam("key"), _C.next_attempt_at.is_not(None), _C.seq > bindparam("after")
        )
        .order_by(_C.seq)
        .limit(ROWS_OF_A_KEY)
    )  # fmt: skip
    conn.execute(
        update(outbox)
        .where(_C.seq.in_(following), _C.status == "pending", _C.next_attempt_at > clock())
        .values(next_attempt_at=clock()),
        after,
    )


def _make_earlier_due(conn: Connection, ended: dict[int, str | None]) -> None:
    """Rows that have appeared before these, whose publication has ended well or badly, wait for them no more."""
    first: dict[str, int] = {}
    for seq, key in ended.items():
        if key is not None:
            first[key] = min(seq, first.get(key, seq))
    if first:
        conn.execute(
            update(outbox)
            .where(_C.ordering_key == bindparam("key"), _C.next_attempt_at.is_not(None), _C.seq < bindparam("before"))
            .where(_C.status == "pending", _C.next_attempt_at > clock())
            .values(next_attempt_at=clock()),
            [{"key": key, "before": seq} for key, seq in first.items()],
        )


def renew(conn: Connection, *, relay_id: str, seqs: Collection[int], lock_seconds: float) -> set[int]:
    """Let the locks of a relay last longer; returns the rows that it still holds."""
    held = set(_held(conn, relay_id=relay_id, seqs=seqs))
    if held:
        lock_end = clock_plus(literal(lock_seconds, Float))
        conn.execute(update(outbox).where(_C.seq.in_(held)).values(lock_expires_at=lock_end, next_attempt_at=lock_end))
    return held


def release_relay(conn: Connection, relay_id: str, *, except_for: Collection[int] = ()) -> bool:
    """Hand back what a relay holds, or what it does not know of. False if something is left that somebody has locked."""
    # Only what is locked still: a lock that has expired is due anyway, and so is all that waits in vain.
    held = [_C.next_attempt_at > clock(), _C.status == "publishing", _C.locked_by == relay_id]
    if except_for:
        held.append(_C.seq.not_in(except_for))
    free = select(_C.seq).where(*held).order_by(_C.seq).with_for_update(skip_locked=True).cte("free")
    conn.execute(update(outbox).where(_C.seq.in_(select(free.c.seq))).values(next_attempt_at=clock(), **_GIVE_BACK))
    return not conn.execute(select(exists().where(*held))).scalar_one()


def limit_idle_time(conn: Connection) -> None:
    """A process that is stopped in the middle of this transaction must not keep its rows from the others for ever."""
    if conn.dialect.name == "postgresql":
        conn.execute(select(silence_is_limited()))
