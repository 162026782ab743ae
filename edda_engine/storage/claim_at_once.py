"""A claim in one statement: of what is due, and of those who wait for what was sent to them alone.

How it thinks. Usually a worker is woken because a timer is up, or because an event was sent to one instance that waits for
it. Delivering the event and claiming the instance take ten statements, each of which waits for the server. Here one
does both, in three parts that each lock before they conclude:

* What is new and addressed is locked under the turn of delivery. A row that is locked is read as it is then, so what
  somebody else has delivered since the statement began is not new any more.
* Who waits for it was read as the statement began. An instance counts if its row, when it is locked, has the same epoch and
  no holder: then nobody has held it in between, and what it waits for has not changed.
* What is due is claimed with them.

If the claimer itself was the last to hold an instance, and that waits for nothing else, what has come is recorded as well:
its body, which is usually suspended there, goes on at once (:mod:`edda_engine.storage.receiving`). For others it lies in the
inbox, and whoever has replayed the body takes it.

If anything else is new, something for all or for a channel, or if an instance is held or has recurred, nothing of that is
touched, and :class:`Claimed` says that there is more to deliver (:mod:`edda_engine.storage.delivery`). Only on PostgreSQL:
SQLite has no ``INSERT`` in a ``WITH``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Dialect,
    Integer,
    Select,
    and_,
    any_,
    bindparam,
    exists,
    false,
    func,
    not_,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import array

from edda_engine.core.codec import parse
from edda_engine.core.events import Recorded
from edda_engine.core.status import WAITING
from edda_engine.storage.alone import Alone, Execute
from edda_engine.storage.claiming import CLAIM_NEW, LEASED, Lease, as_lease, claiming, due, is_of_worker
from edda_engine.storage.outlook import is_any_in_order
from edda_engine.storage.prepared import insert_for, is_one_of_few
from edda_engine.storage.receiving import MESSAGE, receiving_new
from edda_engine.storage.schema import inbox, instances, messages, waits
from edda_engine.storage.serial import turn

_PG = "postgresql"
_I = instances.c
_M = messages.c
_N = inbox.c
_W = waits.c


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim has brought."""

    leases: tuple[Lease, ...]
    has_mail: bool
    """Something is new that it has not delivered."""


def claim_at_once(execute: Execute, *, worker_id: str, service: str, names: Collection[str], limit: int) -> Claimed:
    """Take up to *limit* instances, no more than half of them because of what was sent to them.

    Waits for no lock of another transaction.
    """
    given = {"worker_id": worker_id, "of_service": service, "names": names, "at_most": limit, "at_most_new": limit // 2}
    rows = execute(_CLAIM, given)
    return Claimed(tuple(_as_lease(row) for row in rows if row.instance_id is not None), bool(rows[0].has_mail))


def _as_lease(row: Any) -> Lease:
    if row.event_data is None:
        return as_lease(row[1:])
    received = Recorded(row.activity_id, row.branch, row.position, row.event_type, parse(row.event_data))
    return as_lease(row[1:], received)


def prepare(dialect: Dialect) -> None:
    """Build the statements, which takes a while, before somebody waits for them."""
    _CLAIM.prepare(dialect)
    CLAIM_NEW.prepare(dialect)


def _claim() -> Select[Any]:
    oldest = _oldest()
    new = _new(oldest)
    ready = _ready(oldest, new)
    received, with_it = receiving_new(new, ready, bindparam("worker_id"))
    put = _putting(new, ready, received)
    delivered = update(messages).where(is_one_of_few(_M.seq, select(put.c.seq))).values(is_new=False).cte("delivered")
    found = due(_PG, bindparam("at_most", type_=Integer) - _count(ready))
    of_both = union_all(select(found.c.instance_id), select(ready.c.instance_id))
    claimed = claiming(is_one_of_few(_I.instance_id, of_both)).returning(*LEASED).cte("claimed")
    is_left = is_any_in_order(
        _M.seq, _M.is_new, _M.seq.not_in(select(put.c.seq)), _M.seq.not_in(select(received.c[MESSAGE]))
    )
    said = select(or_(is_left, _IS_TO_BE_SEEN).label("has_mail")).cte("said")
    of_claimed = received.c.instance_id == claimed.c.instance_id
    recorded = (received.c[name] for name in ("activity_id", "branch", "position", "event_type", "event_data"))
    return (
        select(said.c.has_mail, *claimed.c, *recorded)
        .select_from(said.outerjoin(claimed, true()).outerjoin(received, of_claimed))
        .add_cte(delivered, *with_it)
    )


_IS_TO_BE_SEEN = is_any_in_order(_N.receiver, _N.is_new)


def _oldest() -> CTE:
    return (
        select(_M.seq, _M.addressee)
        .where(_M.is_new)
        .order_by(_M.seq)
        .limit(bindparam("at_most_new", type_=Integer))
        .cte("oldest")
        .prefix_with("MATERIALIZED")
    )


def _new(oldest: CTE) -> CTE:
    """The oldest that is new, locked; nothing at all unless all of it is addressed, and it is our turn."""
    is_for_more = exists().where(oldest.c.addressee.is_(None))
    has_new = exists().select_from(oldest)
    ours = select(turn(_PG).label("is_ours")).where(has_new, not_(is_for_more), not_(_IS_TO_BE_SEEN)).cte("ours")
    return (
        select(_M.seq, _M.kind, _M.name, _M.addressee)
        .join_from(messages, ours, ours.c.is_ours)
        .where(_M.is_new, is_one_of_few(_M.seq, select(oldest.c.seq)))
        .order_by(_M.seq)
        .with_for_update(of=messages, skip_locked=True)
        .cte("new")
    )


def _ready(oldest: CTE, new: CTE) -> CTE:
    """The instances that wait for some of it, locked as they were seen; none if something could not be locked.

    What comes after that might be for the same instance, and would overtake it.
    """
    # Not by the index of names, which the planner likes as long as it knows nothing of the table: very many may wait for one.
    is_that = and_(_W.kind.concat("") == new.c.kind, _W.name.concat("") == new.c.name)
    is_awaited = and_(_W.instance_id == new.c.addressee, is_that)
    is_whole = _count(new) == _count(oldest)
    is_free = and_(
        _I.locked_by.is_(None),
        _I.status == any_(array(sorted(str(status) for status in WAITING))),
        _I.error.is_(None),
        _I.cancel_requested_at.is_(None),
        _I.mailbox.is_(None),
    )
    seen = (
        select(_I.instance_id, _I.lock_epoch)
        .distinct()
        .join_from(instances, waits, _W.instance_id == _I.instance_id)
        .join(new, and_(is_awaited, _W.is_competing == false()))
        .where(
            is_one_of_few(_I.instance_id, select(new.c.addressee)),
            is_one_of_few(_W.instance_id, select(new.c.addressee)),
        )
        .where(is_of_worker(_PG), is_free, is_whole)
        .cte("seen")
        .prefix_with("MATERIALIZED")
    )
    is_as_seen = and_(seen.c.instance_id == _I.instance_id, seen.c.lock_epoch == _I.lock_epoch)
    return (
        select(_I.instance_id, _I.lock_epoch)
        .join_from(instances, seen, is_as_seen)
        .where(is_one_of_few(_I.instance_id, select(seen.c.instance_id)), is_free)
        .order_by(_I.instance_id)
        .with_for_update(of=instances, skip_locked=True)
        .cte("ready")
    )


def _putting(new: CTE, ready: CTE, received: CTE) -> CTE:
    """Into their inboxes, where it is not new any more: who is claimed looks for it."""
    columns = ["receiver", "kind", "name", "seq", "is_queued", "is_new"]
    rows = (
        select(new.c.addressee, new.c.kind, new.c.name, new.c.seq, false(), false())
        .join_from(new, ready, ready.c.instance_id == new.c.addressee)
        .where(new.c.seq.not_in(select(received.c[MESSAGE])))
    )
    into = insert_for(_PG)(inbox).from_select(columns, rows, include_defaults=False).on_conflict_do_nothing()
    return into.returning(_N.seq).cte("put")  # type: ignore[no-any-return]


def _count(found: CTE) -> ColumnElement[int]:
    return select(func.count()).select_from(found).scalar_subquery()


_CLAIM = Alone(_claim)
