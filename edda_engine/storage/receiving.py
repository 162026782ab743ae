"""An event or a message for one instance, taken by a part of one statement (see :mod:`edda_engine.storage.at_once`).

How it thinks. What was sent to an instance lies in its inbox, and the instance's row is locked, so nobody else takes it
or gives it back. The oldest that a wait asks for leaves the inbox and becomes the end of that wait in history. All of it
hangs on the row that has left the inbox: if that has gone meanwhile, nothing happens, and nothing was judged. What was
sent to more than one, what comes out of a queue, and bytes go the long way of :mod:`edda_engine.storage.waits`.
"""

from __future__ import annotations

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
from edda_engine.storage.prepared import Columns, as_rows, given_rows
from edda_engine.storage.schema import history, inbox, messages, waits
from edda_engine.storage.units import Step, Take

_PG = "postgresql"
_M = messages.c
_N = inbox.c
_W = waits.c

IsOfHolder = Callable[[FromClause, CTE], ColumnElement[bool]]

_MESSAGE = "message"
_RECEIVE: Columns = {**steps.STEP, "worker_id": Text, "epoch": Integer, "mailbox": Text, "kind": Text, "name": Text}


def is_for_one(take: Take) -> bool:
    """Whether what it asks for is usually sent to it alone."""
    kind, name = take.request.kind, take.request.name
    return kind is WaitKind.EVENT or (kind is WaitKind.MESSAGE and name == DIRECT_CHANNEL)


def as_parameter(takes: Iterable[Take]) -> str:
    """The value of the parameter; of several takes that would get the same the first."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for take in takes:
        about = {"mailbox": take.mailbox, "kind": take.request.kind, "name": take.request.name}
        holder = {"worker_id": take.holder.worker_id, "epoch": take.holder.epoch}
        rows.setdefault((take.mailbox, take.request.kind, take.request.name), _begun(take).as_row() | holder | about)
    return as_rows(list(rows.values()))


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
        .where(_N.seq == found.c[_MESSAGE])
        .returning(found.c.instance_id, found.c.activity_id, _N.seq)
        .cte("left_inbox")
    )
    is_it = and_(left.c.instance_id == found.c.instance_id, left.c.activity_id == found.c.activity_id)
    recorded = steps.inserting(_PG, found, found.join(left, is_it), is_new=True).cte("received")
    forgotten = delete(messages).where(_M.seq == left.c.seq).cte("forgotten")
    over = delete(waits).where(_W.instance_id == left.c.instance_id, _W.activity_id == left.c.activity_id)
    is_recorded = and_(recorded.c.instance_id == found.c.instance_id, recorded.c.activity_id == found.c.activity_id)
    taken = select(found.c.instance_id, found.c.activity_id, found.c.event_data).join_from(found, recorded, is_recorded)
    return taken.cte("taken"), (forgotten, over.cte("over_waits"))


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
    is_recorded = exists().where(
        history.c.instance_id == given.c.instance_id, history.c.activity_id == given.c.activity_id
    )
    is_for_one = and_(_M.seq == oldest, _M.addressee.is_not(None), _M.data_binary.is_(None))
    columns = {name: given.c[name] for name in _RECEIVE} | {"event_data": _event_data(given), _MESSAGE: _M.seq}
    return (
        select(*(column.label(name) for name, column in columns.items()))
        .select_from(given.join(held, may_take).join(waits, of_wait).join(messages, is_for_one))
        .where(~is_recorded)
        .cte("found")
    )


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
