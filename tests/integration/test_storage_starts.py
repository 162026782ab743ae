"""A single start writes what the same start writes among others, whatever its values are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, event

from edda_engine.core.ports import NewInstance
from edda_engine.errors import InstanceConflictError
from edda_engine.storage.database import Database
from edda_engine.storage.starts import Started, insert_instance, insert_instances
from tests.integration.engines import Tables, run

PLAIN = NewInstance("", "wf", "tests", "{}", "hash", 60.0)
FAR_OFF = datetime(2099, 6, 1, 12, 30, 15, 123456, tzinfo=timezone(timedelta(hours=5, minutes=45)))
KINDS = {
    "plain": PLAIN,
    "unicode": replace(
        PLAIN, workflow_name="größe", service="späti ☕", input_json='{"s": "ü\\u0041\\\\ \'\\"%(x)s:y$1☕"}'
    ),
    "number": replace(PLAIN, input_json="7"),
    "negative": replace(PLAIN, input_json="-0.5"),
    "string": replace(PLAIN, input_json='"7"'),
    "null": replace(PLAIN, input_json="null"),
    "urgent": replace(PLAIN, priority=32767),
    "patient": replace(PLAIN, priority=-32768),
    "short lease": replace(PLAIN, lock_timeout_seconds=0.8),
    "long lease": replace(PLAIN, lock_timeout_seconds=86400.0 * 365),
    "at": replace(PLAIN, start_at=FAR_OFF),
    "long ago": replace(PLAIN, start_at=datetime(1, 1, 2, tzinfo=UTC)),
    "in the last year": replace(PLAIN, start_at=datetime(9999, 12, 30, tzinfo=UTC)),
    "later": replace(PLAIN, delay_seconds=86400.5),
    "a moment later": replace(PLAIN, delay_seconds=0.001),
}
OF_ITSELF = {"instance_id", "created_at", "updated_at"}


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_what_it_writes_among_others(database: Database, tables: Tables, kind: str) -> None:
    one, many = replace(KINDS[kind], instance_id="1 one"), replace(KINDS[kind], instance_id="2 many")

    def both(conn: Connection) -> Any:
        return insert_instance(conn, one), insert_instances(conn, [(many, None), (many, None)])

    assert run(database, both) == (True, [Started(True), Started(False)])
    ours, theirs = tables.rows("SELECT * FROM edda_instances ORDER BY instance_id")
    is_due_by_itself = KINDS[kind].start_at is None
    differing = {name for name in ours if ours[name] != theirs[name] or type(ours[name]) is not type(theirs[name])}
    assert differing <= OF_ITSELF | ({"wake_at"} if is_due_by_itself else set())
    rows = tables.rows("SELECT instance_id, wake_at, created_at FROM edda_instances ORDER BY instance_id")
    assert all(isinstance(row["wake_at"], type(row["created_at"])) for row in rows)


def test_the_same_start_again_starts_nothing_and_another_one_of_its_id_is_refused(database: Database) -> None:
    new = replace(PLAIN, instance_id="i", input_json='{"a": 1, "b": 2}')
    again = replace(new, input_json='{"b": 2, "a": 1}')
    assert [run(database, lambda conn, each=each: insert_instance(conn, each)) for each in (new, again)] == [
        True,
        False,
    ]  # type: ignore[misc]
    for other in (replace(new, input_json='{"a": 2}'), replace(new, workflow_name="other")):
        with pytest.raises(InstanceConflictError):
            run(database, lambda conn, other=other: insert_instance(conn, other))  # type: ignore[misc]


@pytest.mark.parametrize("is_alone", [True, False])
def test_one_that_is_pruned_as_its_id_is_refused_is_started_again(
    database: Database, tables: Tables, is_alone: bool
) -> None:
    new = replace(PLAIN, instance_id="i")
    run(database, lambda conn: insert_instance(conn, new))
    pruned: list[str] = []

    def prune(conn: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT") and not pruned:
            pruned.append("i")
            conn.exec_driver_sql("DELETE FROM edda_instances")

    event.listen(database.service, "before_cursor_execute", prune)
    if is_alone:
        assert run(database, lambda conn: insert_instance(conn, new))
    else:
        assert run(database, lambda conn: insert_instances(conn, [(new, None)])) == [Started(True)]
    event.remove(database.service, "before_cursor_execute", prune)
    assert (pruned, tables.value("SELECT count(*) FROM edda_instances")) == (["i"], 1)
