"""Pruning of instances: what ended long ago goes with all that is recorded of it; nothing else does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, text

from edda_engine.core.ports import NewInstance
from edda_engine.storage import migrate, pruning
from edda_engine.storage.database import Database
from edda_engine.storage.pruning import BATCH, prune_instances
from edda_engine.storage.starts import insert_instances
from tests.integration.engines import edda, until
from tests.integration.flask_apps import open_shop

DAY = 86_400.0
LONG_AGO, JUST_NOW = "2020-01-01 00:00:00.000+00:00", "2999-01-01 00:00:00.000+00:00"


class Instances:
    """Instances that never ran, each with a step of history, as old as the test wants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def make(
        self, *ids: str, status: str = "completed", ended: str | None = LONG_AGO, mailbox: str | None = None
    ) -> None:
        with self.database.write() as conn:
            insert_instances(conn, [(NewInstance(each, "flow", "edda", "{}", "hash", 300.0), None) for each in ids])
            conn.execute(
                text(
                    "UPDATE edda_instances SET status = :s, completed_at = :e, created_at = :c, mailbox = :m, wake_at = NULL"
                    f" WHERE instance_id IN ({', '.join(repr(each) for each in ids)})"
                ),
                {"s": status, "e": ended, "c": LONG_AGO, "m": mailbox},
            )
            step = text("INSERT INTO edda_history VALUES (:i, 'step:1', 1, '', 1, 'ActivityCompleted', '{}', 1, :c)")
            conn.execute(step, [{"i": each, "c": LONG_AGO} for each in ids])

    def record(self, instance_id: str, steps: int) -> None:
        """That an instance has made so many steps more."""
        step = text("INSERT INTO edda_history VALUES (:i, :a, :n, '', :n, 'ActivityCompleted', '{}', 1, :c)")
        rows = [{"i": instance_id, "a": f"more:{n}", "n": n + 2, "c": LONG_AGO} for n in range(steps)]
        with self.database.write() as conn:
            conn.execute(step, rows)

    def prune(self, *, days: float = 1.0) -> int:
        with self.database.write() as conn:
            return prune_instances(conn, older_than_seconds=days * DAY)

    def left(self, table: str = "edda_instances") -> set[str]:
        with self.database.read() as conn:
            return set(conn.execute(text(f"SELECT instance_id FROM {table}")).scalars())


@pytest.fixture
def stored(database_url: str) -> Iterator[Instances]:
    database = Database.from_url(database_url)
    migrate.upgrade(database)
    yield Instances(database)
    database.close()


def test_what_ended_long_ago_goes_with_its_history_and_nothing_else_does(stored: Instances) -> None:
    for status in ("completed", "failed", "cancelled", "recurred"):
        stored.make(f"old {status}", status=status)
    stored.make("ended late", ended=JUST_NOW)
    for status in ("pending", "running", "waiting_for_timer", "waiting_for_event"):
        stored.make(f"old and {status}", status=status, ended=None)

    assert stored.prune() == 4

    kept = {"ended late", *(f"old and {s}" for s in ("pending", "running", "waiting_for_timer", "waiting_for_event"))}
    assert stored.left() == stored.left("edda_history") == kept


def test_the_first_run_of_a_chain_that_goes_on_is_kept_and_the_runs_between_are_not(stored: Instances) -> None:
    stored.make("first", status="recurred")
    stored.make("second", status="recurred", mailbox="first")
    stored.make("last", status="running", ended=None, mailbox="first")

    stored.prune()

    assert stored.left() == {"first", "last"}


def test_a_batch_is_bounded_and_after_the_last_one_there_is_none(stored: Instances) -> None:
    stored.make(*(f"i{number}" for number in range(BATCH + 3)))

    assert [stored.prune(), stored.prune(), stored.prune()] == [BATCH, 3, 0]
    assert stored.left() == stored.left("edda_history") == set()


def test_a_batch_deletes_no_more_rows_than_it_may_unless_one_instance_has_more(
    stored: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "ROWS", 10)
    for number in range(8):
        stored.make(f"i{number}", ended=f"2020-01-01 00:00:0{number}.000+00:00")
        stored.record(f"i{number}", 3)
    stored.make("long", ended="2020-01-01 00:00:09.000+00:00")
    stored.record("long", 30)

    batches = []
    while (before := len(stored.left())) and stored.prune():
        batches.append(before - len(stored.left()))

    # Of four rows each two fit; the long one goes alone.
    assert batches[-1] == 1
    assert sum(batches) == 9
    assert max(batches) == 2
    assert stored.left("edda_history") == set()


def test_what_has_ended_is_found_by_an_index_that_holds_nothing_else(stored: Instances) -> None:
    asked: list[tuple[str, Any]] = []
    event.listen(stored.database.service, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
    stored.prune()

    statement, parameters = next(each for each in asked if "completed_at" in each[0])
    with stored.database.write() as conn:
        if stored.database.is_sqlite:
            plan = str(conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all())
        else:
            conn.exec_driver_sql("SET LOCAL enable_seqscan = off")
            conn.exec_driver_sql("SET LOCAL enable_sort = off")
            plan = str(conn.exec_driver_sql(f"EXPLAIN {statement}", parameters).all())
    assert "ix_edda_instances_completed_at" in plan
    assert "SCAN edda_instances'" not in plan


def test_a_worker_prunes_by_itself_if_it_is_told_how_old(
    database_url: str, stored: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edda_engine.runtime.upkeep.INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(pruning, "ROWS", 2)
    stored.make("old", "older", "oldest", "as old", "and one more")

    async def main() -> None:
        async with edda(database_url, instance_retention_days=1):
            await until(lambda: stored.left() == set())

    asyncio.run(main())


def test_the_command_prunes_in_batches_and_tells_how_many(database_url: str, stored: Instances) -> None:
    stored.make(*(f"i{number}" for number in range(BATCH + 2)))
    stored.make("ended late", ended=JUST_NOW)

    with open_shop(database_url) as shop:
        runner = shop.app.test_cli_runner()
        unsaid = runner.invoke(args=["edda", "prune"])
        done = runner.invoke(args=["edda", "prune", "--older-than", "1", "--json"])

    assert unsaid.exit_code == 2
    assert "--older-than DAYS" in unsaid.output
    assert json.loads(done.stdout) == {"deleted": BATCH + 2}
    assert stored.left() == {"ended late"}
