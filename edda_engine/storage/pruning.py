"""Pruning: deletes instances that have ended, with all that is recorded of them, in bounded batches.

It takes them in the order in which they ended, by an index that has only such. Nothing of an instance that has not
ended is touched, however old, nor the first run of a chain of recurrences that still goes on: the others know the chain
by its id.

An instance goes as a whole, in one transaction: what has lost a part of its history could still be taken up again, and would
do again what it has done. So a batch holds no more instances than together have a bounded number of rows, but at least one.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Float, Integer, bindparam, delete, exists, func, select

from edda_engine.core.status import FINISHED, Status
from edda_engine.storage.prepared import Prepared, is_one_of
from edda_engine.storage.schema import history, instances, retries, waits
from edda_engine.storage.types import clock_plus

BATCH = 500
"""Instances, at most."""

ROWS = 5000
"""Rows of history that a batch deletes, at most, unless a single instance has more."""

_C = instances.c


@Prepared
def _ENDED(_dialect: str) -> Any:
    ago = clock_plus(-bindparam("seconds", type_=Float))
    run = instances.alias("run")
    goes_on = exists().where(run.c.mailbox == _C.instance_id, run.c.status.not_in(list(FINISHED)))
    return (
        select(_C.instance_id)
        .where(_C.completed_at < ago, _C.status.in_(list(FINISHED)))
        .where((_C.status != Status.RECURRED) | _C.mailbox.is_not(None) | ~goes_on)
        .order_by(_C.completed_at)
        .limit(BATCH)
        # Of two that prune at once each takes other ones.
        .with_for_update(skip_locked=True)
    )


@Prepared
def _ROWS(dialect: str) -> Any:
    some = (
        select(history.c.instance_id)
        .where(is_one_of(dialect, history.c.instance_id, "ids"))
        .limit(bindparam("most", type_=Integer))
    )
    return select(func.count()).select_from(some.subquery())


def _rows_of(conn: Connection, ids: list[str]) -> int:
    """How many rows of history they have together; it counts no further than it has to."""
    count: int = conn.execute(_ROWS.on(conn), {"ids": ids, "most": ROWS + 1}).scalar_one()
    return count


def prune_instances(conn: Connection, *, older_than_seconds: float) -> int:
    """Delete a batch of instances that ended so long ago; returns how many. None: there are no more."""
    ids = list(conn.execute(_ENDED.on(conn), {"seconds": older_than_seconds}).scalars())
    while len(ids) > 1 and _rows_of(conn, ids) > ROWS:
        ids = ids[: len(ids) // 2]
    if ids:
        for statements in _DELETES:
            conn.execute(statements.on(conn), {"ids": ids})
    return len(ids)


def _delete_of(table: Any) -> Prepared[Any]:
    return Prepared(lambda dialect: delete(table).where(is_one_of(dialect, table.c.instance_id, "ids")))


_DELETES = [_delete_of(table) for table in (history, retries, waits, instances)]
