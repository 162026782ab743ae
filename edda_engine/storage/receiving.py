"""An event or a message for one instance, taken by a part of one statement, in one of two ways.

How it thinks. The instance's row is locked, so nobody else takes what was sent to it or gives it back. The oldest that a
wait asks for becomes the end of that wait in history. What was sent to more than one, what comes out of a queue, and bytes
go the long way of :mod:`edda_engine.storage.waits`.

* Who holds the instance asks for it (:mod:`edda_engine.storage.at_once`): it leaves the inbox. All of it hangs on the row
  that has left: if that has gone meanwhile, nothing happens, and nothing was judged.
* Who waits has written down what history is to say then, and under which lease. If the worker of that lease claims the
  instance, with nobody in between, and something has just been sent (:mod:`edda_engine.storage.claim_at_once`), it comes
  into no inbox: the claim records it, and the body is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Integer,
    Text,
    and_,
    cast,
    column,
    delete,
    exists,
    false,
    func,
    literal_column,
    select,
)

from edda_engine.core.events import EventType, event_json
from edda_engine.core.ports import DIRECT_CHANNEL, WaitKind
from edda_engine.storage import history as steps
from edda_engine.storage.prepared import Columns, as_rows, given_rows, is_one_of_few
from edda_engine.storage.schema import history, inbox, messages, waits
from edda_engine.storage.units import Step, Take

_PG = "postgresql"
_H = history.c
_M = messages.c
_N = inbox.c
_W = waits.c
_ONE: ColumnElement[int] = literal_column("1")

IsOfHolder = Callable[[FromClause, CTE], ColumnElement[bool]]

MESSAGE = "message"
"""The column with the number of the message that was taken."""

_RECEIVE: Columns = {**steps.STEP, "worker_id": Text, "epoch": Integer, "mailbox": Text, "kind": Text, "name": Text}


def is_for_one(take: Take) -> bool:
    """Whether what it asks for is usually sent to it alone."""
    kind, name = take.request.kind, take.request.name
    return kind is WaitKind.EVENT or (kind is WaitKind.MESSAGE and name == DIRECT_CHANNEL)


def as_parameter(takes: Iterable[Take]) -> str:
    """The value of the parameter; of several takes that would get the same the first."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for take in takes:
        rows.setdefault((take.mailbox, take.request.kind, take.request.name), _as_row(take))
    return as_rows(list(rows.values()))


def begun_json(take: Take) -> str | None:
    """What a wait keeps, so that a claim can record its end; ``None`` if that can only be done in the long way."""
    return json.dumps(_as_row(take)) if is_for_one(take) else None


def _as_row(take: Take) -> dict[str, Any]:
    about = {"mailbox": take.mailbox, "kind": take.request.kind, "name": take.request.name}
    return _begun(take).as_row() | {"worker_id": take.holder.worker_id, "epoch": take.holder.epoch} | about


def ended(take: Take, event_data: str) -> Step:
    """What is recorded of a take, as the statement has told it."""
    kind = EventType.EVENT_RECEIVED if take.request.kind is WaitKind.EVENT else EventType.MESSAGE_RECEIVED
    return take.ended(kind, event_data)


def _begun(take: Take) -> Step:
    return ended(take, event_json(take.about).removesuffix("}"))  # what was taken is added by the statement


def receiving(parameter: str, held: CTE, is_of_holder: IsOfHolder) -> tuple[CTE, tuple[CTE, ...]]:
    """What was taken, with the ``event_data`` of its step; and what goes with it.

    :param held: The instances that are locked, with ``is_cancelled``.
    :param is_of_holder: Whether a given row is of one who holds its instance.
    """
    found = _found(parameter, held, is_of_holder)
    left = (
        delete(inbox)
        .where(_N.receiver == found.c.mailbox, _N.kind == found.c.kind, _N.name == found.c.name)
        .where(_N.seq == found.c[MESSAGE])
        .returning(found.c.instance_id, found.c.activity_id, _N.seq)
        .cte("left_inbox")
    )
    is_it = and_(left.c.instance_id == found.c.instance_id, left.c.activity_id == found.c.activity_id)
    recorded = steps.inserting(_PG, found, found.join(left, is_it), is_new=True).cte("received")
    is_recorded = and_(recorded.c.instance_id == found.c.instance_id, recorded.c.activity_id == found.c.activity_id)
    taken = select(found.c.instance_id, found.c.activity_id, found.c.event_data).join_from(found, recorded, is_recorded)
    return taken.cte("taken"), _over(left, left.c.seq)


def receiving_new(new: FromClause, ready: CTE, claimer: ColumnElement[str]) -> tuple[CTE, tuple[CTE, ...]]:
    """What was recorded of what is in no inbox yet, the columns of a step and :data:`MESSAGE`; and what goes with it.

    :param new: Messages, which are locked, with ``seq``, ``kind``, ``name`` and ``addressee``.
    :param ready: The instances that wait for some of it, which are locked, with ``instance_id`` and ``lock_epoch``.
    :param claimer: The worker that claims: only waits that it has registered itself count, under the last lease.
    """
    found = _found_new(new, ready, claimer)
    recorded = steps.inserting(_PG, found, found, is_new=True).cte("received")
    return found, (recorded, *_over(found, found.c[MESSAGE]))


def _over(taken: CTE, seq: ColumnElement[int]) -> tuple[CTE, ...]:
    """The waits are over, and the messages nobody's any more."""
    is_it = and_(_W.instance_id == taken.c.instance_id, _W.activity_id == taken.c.activity_id)
    return (
        delete(messages).where(is_one_of_few(_M.seq, select(seq))).cte("forgotten"),
        delete(waits).where(is_it, is_one_of_few(_W.instance_id, select(taken.c.instance_id))).cte("over_waits"),
    )


def _found(parameter: str, held: CTE, is_of_holder: IsOfHolder) -> CTE:
    given = given_rows(_PG, parameter, _RECEIVE, name="receives")
    oldest = (
        select(func.min(_N.seq))
        .where(_N.receiver == given.c.mailbox, _N.kind == given.c.kind, _N.name == given.c.name)
        .scalar_subquery()
    )
    may_take = and_(is_of_holder(given, held), ~held.c.is_cancelled)
    of_wait = and_(
        _W.instance_id == given.c.instance_id, _W.activity_id == given.c.activity_id, _W.is_competing == false()
    )
    is_for_one = and_(_M.seq == oldest, _M.addressee.is_not(None), _M.data_binary.is_(None))
    return (
        select(*_found_columns(given))
        .select_from(given.join(held, may_take).join(waits, of_wait).join(messages, is_for_one))
        .where(~exists().where(_H.instance_id == given.c.instance_id, _H.activity_id == given.c.activity_id))
        .cte("found")
    )


def _found_new(new: FromClause, ready: CTE, claimer: ColumnElement[str]) -> CTE:
    """For instances with one wait alone: of several the worker that holds them finds out which one ends.

    Each is looked up by an index, however many the planner expects: with NOT EXISTS it might read whole tables.
    """
    typed = (column(name, kind()) for name, kind in _RECEIVE.items())
    given = func.json_to_record(_W.step).table_valued(*typed).render_derived(name="given", with_types=True)
    of_lease = and_(given.c.epoch == ready.c.lock_epoch, given.c.worker_id == claimer)
    oldest = (
        select(func.min(new.c.seq))
        .where(new.c.addressee == _W.instance_id, new.c.kind == _W.kind, new.c.name == _W.name)
        .correlate(waits)
        .scalar_subquery()
    )
    other = waits.alias("other")
    others = select(_ONE).where(other.c.instance_id == _W.instance_id, other.c.activity_id != _W.activity_id)
    lying = select(_ONE).where(_N.receiver == given.c.mailbox, _N.kind == given.c.kind, _N.name == given.c.name)
    recorded = select(_ONE).where(_H.instance_id == given.c.instance_id, _H.activity_id == given.c.activity_id)
    return (
        select(*_found_columns(given))
        .select_from(
            ready.join(waits, _W.instance_id == ready.c.instance_id)
            .join(given, of_lease)
            .join(messages, _M.seq == oldest)
        )
        .where(is_one_of_few(_W.instance_id, select(ready.c.instance_id)))
        .where(_W.is_competing == false(), _M.data_binary.is_(None))
        .where(*(query.limit(1).scalar_subquery().is_(None) for query in (others, lying, recorded)))
        .cte("found")
    )


def _found_columns(given: FromClause) -> list[ColumnElement[Any]]:
    columns = {name: given.c[name] for name in _RECEIVE} | {"event_data": _event_data(given), MESSAGE: _M.seq}
    return [value.label(name) for name, value in columns.items()]


def _event_data(given: FromClause) -> ColumnElement[str]:
    """As :func:`edda_engine.core.events.event_json` has it, with the message as ``inboxes`` writes it."""
    time = func.to_char(func.timezone(_text("UTC"), _M.published_at), _text('YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'))
    lay = ("kind", given.c.kind), ("name", given.c.name), ("seq", _M.seq), ("is_queued", false())
    return _joined(
        given.c.event_data,
        _text(',"result":{"id":'), _json(_M.message_id),
        _text(',"name":'), _json(_M.name),
        _text(',"metadata":'), cast(_M.metadata, Text),
        _text(',"published_at":'), _json(time),
        func.coalesce(_joined(_text(',"data":'), cast(_M.data, Text)), _text("")),
        _text('},"taken":'), cast(func.json_build_object(*(part for name, value in lay for part in (_text(name), value))), Text),
        _text("}"),
    )  # fmt: skip


def _joined(first: ColumnElement[str], *others: ColumnElement[str]) -> ColumnElement[str]:
    return reduce(lambda joined, each: joined.concat(each), others, first)


def _json(text: ColumnElement[str]) -> ColumnElement[str]:
    return cast(func.to_json(cast(text, Text)), Text)


def _text(text: str) -> ColumnElement[str]:
    return literal_column(f"'{text}'", Text)
