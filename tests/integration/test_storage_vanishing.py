"""Transactions that lock rows are ended by the server when nothing is heard of them, whoever they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, text

from edda_engine.core.events import EventType, StepKey
from edda_engine.core.ports import NewInstance
from edda_engine.storage import claiming, instances
from edda_engine.storage.commit import commit_step, commit_units
from edda_engine.storage.database import Database
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.units import Holder, Step
from tests.integration.engines import run, storage

HOLDER = Holder("a", "w", 1)


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    with storage(postgres_url) as made:
        run(made, lambda conn: insert_instance(conn, NewInstance("a", "wf", "tests", "{}", "hash", 60.0)))
        yield made


def claim(conn: Connection) -> None:
    (lease,) = claiming.claim_due(conn, worker_id="w", service="tests", names=["wf"], limit=1)
    assert (lease.instance_id, lease.takeover_progress) == ("a", 0)


def step(**more: Any) -> Step:
    return Step(HOLDER, StepKey("act:1", "", 1), 1, EventType.ACTIVITY_COMPLETED, "{}", **more)


@pytest.mark.parametrize(
    "locks",
    [
        lambda conn: commit_step(conn, step()),
        lambda conn: commit_step(conn, step(had_retries=True)),
        lambda conn: commit_units(conn, [step()]),
        lambda conn: instances.renew(conn, worker_id="w", instance_ids=["a"]),
        None,
    ],
    ids=["plain step", "step", "batch", "renewal", "claim"],
)
def test_whoever_has_locked_an_instance_and_vanishes_keeps_it_for_seconds_only(
    database: Database, locks: Callable[[Connection], Any] | None
) -> None:
    if locks is not None:
        run(database, claim)
    with database.engine.connect() as conn:
        usual = conn.execute(text("SHOW idle_in_transaction_session_timeout")).scalar()
        conn.commit()
        (locks or claim)(conn)
        limited = conn.execute(text("SHOW idle_in_transaction_session_timeout")).scalar()
        conn.commit()
        afterwards = conn.execute(text("SHOW idle_in_transaction_session_timeout")).scalar()

    assert (limited, afterwards) == ("10s", usual)
    assert usual != limited
