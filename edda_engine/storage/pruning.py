"""Pruning: deletes instances that have ended, with all that is recorded of them, in bounded batches.

It walks the instances in the order of their starts, by the index that lists them. Nothing of an instance that has not
ended is touched, however old, nor the first run of a chain of recurrences that still goes on: the others know the chain
by its id.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Float, bindparam, delete, exists, select

from edda_engine.core.status import FINISHED, Status
from edda_engine.storage.prepared import Prepared, is_one_of
from edda_engine.storage.schema import history, instances, retries, waits
from edda_engine.storage.types import clock_plus

BATCH = 500

_C = instances.c


@Prepared
def _ENDED(_dialect: str) -> Any:
    ago = clock_plus(-bindparam("seconds", type_=Float))
    run = instances.alias("run")
    goes_on = exists().where(run.c.mailbox == _C.instance_id, run.c.status.not_in(list(FINISHED)))
    return (
        select(_C.instance_id)
        .where(_C.created_at < ago, _C.completed_at < ago, _C.status.in_(list(FINISHED)))
        .where((_C.status != Status.RECURRED) | _C.mailbox.is_not(None) | ~goes_on)
        .order_by(_C.created_at)
        .limit(BATCH)
        # Of two that prune at once each takes other ones.
        .with_for_update(skip_locked=True)
    )


def prune_instances(conn: Connection, *, older_than_seconds: float) -> int:
    """Delete a batch of instances that ended so long ago; returns how many. Fewer than a batch: there are no more."""
    ids = list(conn.execute(_ENDED.on(conn), {"seconds": older_than_seconds}).scalars())
    if ids:
        for statements in _DELETES:
            conn.execute(statements.on(conn), {"ids": ids})
    return len(ids)


def _delete_of(table: Any) -> Prepared[Any]:
    return Prepared(lambda dialect: delete(table).where(is_one_of(dialect, table.c.instance_id, "ids")))


_DELETES = [_delete_of(table) for table in (history, retries, waits, instances)]
