"""History: one row a step, ``(instance_id, activity_id)`` unique."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Integer, Text, cast, delete, func, select, text, update

from edda_engine.core.codec import parse
from edda_engine.core.events import EventType, HistoryEvent, Recorded
from edda_engine.storage.keys import among
from edda_engine.storage.prepared import Columns, Prepared, as_rows, given_rows, insert_for, is_one_of
from edda_engine.storage.schema import history
from edda_engine.storage.types import clock

_C = history.c
STEP: Columns = {
    "instance_id": Text,
    "activity_id": Text,
    "seq": Integer,
    "branch": Text,
    "position": Integer,
    "event_type": Text,
    "event_data": Text,
    "format": Integer,
}
_RECORDED = (_C.instance_id, _C.activity_id, _C.branch, _C.position, _C.event_type, _C.event_data, _C.format, _C.seq)


def inserting(dialect: str, given: FromClause, rows: FromClause, *, is_new: bool = False) -> Any:
    """Write the steps among *rows* that are not recorded yet, and return their keys; *given* has the columns.

    :param is_new: None of them can be recorded; if one is, the statement fails.
    """
    values: list[ColumnElement[Any]] = [given.c[name] for name in STEP]
    if dialect == "postgresql":  # SQLite would make a number of it
        values = [cast(given.c[name], _C.event_data.type) if name == "event_data" else given.c[name] for name in STEP]
    # SQLite would read ON CONFLICT as a join's condition if there were no WHERE before it.
    query = select(*values, clock()).select_from(rows).where(text("1 = 1"))
    writing = insert_for(dialect)(history).from_select([*STEP, "created_at"], query, include_defaults=False)
    if not is_new:
        writing = writing.on_conflict_do_nothing(index_elements=["instance_id", "activity_id"])
    return writing.returning(_C.instance_id, _C.activity_id)


@Prepared
def _INSERT(dialect: str) -> Any:
    given = given_rows(dialect, "rows", STEP)
    return inserting(dialect, given, given)


def insert_steps(conn: Connection, rows: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Write steps; returns the keys of those that were not recorded before."""
    return {(row[0], row[1]) for row in conn.execute(_INSERT.on(conn), {"rows": as_rows(rows)}).all()}


def replace_step(conn: Connection, key: tuple[str, str], event_type: EventType, event_json: str) -> None:
    """Record another end of a step: only for a wait that is withdrawn before its body saw what it had taken."""
    conn.execute(
        update(history)
        .where(_C.instance_id == key[0], _C.activity_id == key[1])
        .values(event_type=event_type, event_data=event_json)
    )


@Prepared
def _LOAD(dialect: str) -> Any:
    of_instances = is_one_of(dialect, _C.instance_id, "ids")
    return select(*_RECORDED).where(of_instances).order_by(_C.instance_id, _C.seq)


def load(conn: Connection, instance_ids: Collection[str]) -> dict[str, tuple[list[Recorded], int]]:
    """The recorded steps of instances, and the last ``seq`` of each."""
    found: dict[str, tuple[list[Recorded], int]] = {}
    rows = conn.execute(_LOAD.on(conn), {"ids": instance_ids}).all()
    # Taken apart at once: by their names the values of a long history cost as much as its replay.
    for instance_id, of_instance in groupby(rows, key=itemgetter(0)):
        steps: list[Recorded] = []
        last = 0
        for _, activity_id, branch, position, event_type, event_data, format_number, seq in of_instance:
            steps.append(Recorded(activity_id, branch, position, event_type, parse(event_data), format_number))
            last = seq
        found[instance_id] = steps, last
    return found


def load_steps(conn: Connection, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], Recorded]:
    """Single steps, for those who found them recorded already."""
    query = select(*_RECORDED).where(among(conn, (_C.instance_id, _C.activity_id), keys))
    return {(row.instance_id, row.activity_id): _recorded(row) for row in conn.execute(query)}


def timeline(conn: Connection, instance_id: str) -> list[HistoryEvent]:
    """The steps of an instance in the order in which they were recorded, as users read them."""
    query = (
        select(_C.activity_id, _C.event_type, _C.event_data, _C.created_at)
        .where(_C.instance_id == instance_id)
        .order_by(_C.seq, _C.created_at)
    )
    return [HistoryEvent(row[0], row[1], parse(row[2]), row[3]) for row in conn.execute(query)]


def subscriptions(conn: Connection, instance_id: str) -> dict[str, str]:
    """The channels that an instance has subscribed to and not left again, each with its mode."""
    query = (
        select(_C.event_type, _C.event_data)
        .where(_C.instance_id == instance_id, _C.event_type.in_([EventType.SUBSCRIBED, EventType.UNSUBSCRIBED]))
        .order_by(_C.seq)
    )
    found: dict[str, str] = {}
    for event_type, event_data in conn.execute(query):
        change = parse(event_data)["input"]
        if event_type == EventType.SUBSCRIBED:
            found[change["channel"]] = change["mode"]
        else:
            found.pop(change["channel"], None)
    return found


def forget_last_failure(conn: Connection, instance_id: str) -> str | None:
    """Delete the last step if it is a failed activity, so that it is tried anew; returns its id."""
    last = conn.execute(
        select(_C.activity_id, _C.event_type).where(_C.instance_id == instance_id).order_by(_C.seq.desc()).limit(1)
    ).first()
    if last is None or last.event_type != EventType.ACTIVITY_FAILED:
        return None
    conn.execute(delete(history).where(_C.instance_id == instance_id, _C.activity_id == last.activity_id))
    return str(last.activity_id)


def count(conn: Connection, instance_id: str) -> int:
    """How many steps are recorded."""
    return int(conn.execute(select(func.count()).where(_C.instance_id == instance_id)).scalar_one())


def _recorded(row: Any) -> Recorded:
    return Recorded(row.activity_id, row.branch, row.position, row.event_type, parse(row.event_data), row.format)
