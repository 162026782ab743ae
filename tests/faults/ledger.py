"""What the shop has done, read from its database by the test: the judge of "exactly once".

The shop's table has no unique constraint on purpose: a row written twice must be seen, not refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, delete, func, inspect, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from edda_engine.core.status import Status
from edda_engine.storage import schema

entries = Table(
    "ledger_entries",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("instance_id", String(255), nullable=False),
    Column("what", String(100), nullable=False),
    Column("pid", Integer, nullable=False),
)

_FULFILLED = {"placed", "reserved", "charged", "packed 1", "packed 2"}
ROWS = {"fulfil": _FULFILLED, "fulfil_plainly": _FULFILLED, "held": {"placed", "held"}, "thought": {"placed"}}
EVENTS = {
    "fulfil": {("reserve:1", "order.reserved"), ("label:1", "order.labelled")},
    "fulfil_plainly": {("reserve:1", "order.reserved"), ("3/label:1", "order.labelled")},
    "held": {("hold:1", "order.held")},
    "thought": set[tuple[str, str]](),
}
STEPS = {
    "fulfil": {"quote:1", "reserve:1", "charge:1", "pack:1", "pack:2", "label:1"},
    "fulfil_plainly": {"quote:1", "reserve:1", "charge:1", "1/pack:1", "2/pack:1", "3/label:1"},
    "held": {"quote:1", "hold:1", "quote:2"},
    "thought": {"think:1"},
}
_INSTANCES, _HISTORY, _OUTBOX, _WORKERS = schema.instances.c, schema.history.c, schema.outbox.c, schema.workers.c

_LOCK_ALL = "SELECT 1 FROM edda_instances FOR UPDATE NOWAIT"


class Ledger:
    """Reads with connections that are closed at once, so that no test process keeps a killed one's lock."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = create_engine(url, poolclass=NullPool)
        entries.metadata.create_all(self._engine)

    @property
    def is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    def can_be_written(self) -> bool:
        """Whether nobody holds a lock that would keep a worker from claiming."""
        arguments = {"timeout": 0.2} if self.is_sqlite else {}
        engine = create_engine(self.url, poolclass=NullPool, connect_args=arguments)
        try:
            with engine.connect() as conn:
                conn.exec_driver_sql("BEGIN IMMEDIATE" if self.is_sqlite else _LOCK_ALL)
        except OperationalError:
            return False
        return True

    def statuses(self) -> dict[str, str]:
        """Of every instance there is."""
        with self._engine.connect() as conn:
            if not inspect(conn).has_table("edda_instances"):
                return {}
            return {row[0]: row[1] for row in conn.execute(select(_INSTANCES.instance_id, _INSTANCES.status))}

    def finished(self) -> int:
        return sum(status == Status.COMPLETED for status in self.statuses().values())

    def have_completed(self, instance_ids: Iterable[str]) -> bool:
        statuses = self.statuses()
        return all(statuses.get(instance_id) == Status.COMPLETED for instance_id in instance_ids)

    def rows(self) -> Counter[tuple[str, str]]:
        with self._engine.connect() as conn:
            return Counter(tuple(row) for row in conn.execute(select(entries.c.instance_id, entries.c.what)))

    def forget(self, instance_id: str) -> None:
        """Delete the rows of what was never an order."""
        with self._engine.begin() as conn:
            conn.execute(delete(entries).where(entries.c.instance_id == instance_id))

    def pids(self, what: str) -> set[int]:
        """The processes that have written such rows."""
        with self._engine.connect() as conn:
            return set(conn.execute(select(entries.c.pid).where(entries.c.what == what)).scalars())

    def events(self) -> Counter[tuple[str | None, str | None, str]]:
        with self._engine.connect() as conn:
            return Counter(
                tuple(row) for row in conn.execute(select(_OUTBOX.instance_id, _OUTBOX.activity_id, _OUTBOX.type))
            )

    def steps(self) -> Counter[tuple[str, str]]:
        with self._engine.connect() as conn:
            return Counter(tuple(row) for row in conn.execute(select(_HISTORY.instance_id, _HISTORY.activity_id)))

    def open_retries(self) -> int:
        with self._engine.connect() as conn:
            return conn.execute(select(func.count()).select_from(schema.retries)).scalar_one()

    def workers(self) -> list[tuple[str, int]]:
        """The registered workers: their ids, and the pids of their processes."""
        with self._engine.connect() as conn:
            if not inspect(conn).has_table("edda_workers"):
                return []
            return [(row[0], row[1]) for row in conn.execute(select(_WORKERS.worker_id, _WORKERS.pid))]

    def live_pids(self) -> set[int]:
        """The processes that are registered as workers."""
        return {pid for _, pid in self.workers()}

    def holder(self, instance_id: str) -> str | None:
        with self._engine.connect() as conn:
            return conn.execute(select(_INSTANCES.locked_by).where(_INSTANCES.instance_id == instance_id)).scalar_one()

    def lease_expires_at(self, instance_id: str) -> datetime:
        query = select(_INSTANCES.lock_expires_at).where(_INSTANCES.instance_id == instance_id)
        with self._engine.connect() as conn:
            expires_at = conn.execute(query).scalar_one()
        assert expires_at is not None
        return expires_at

    def lease_seconds_left(self, instance_id: str) -> float:
        """As far as this host's clock can tell."""
        return (self.lease_expires_at(instance_id) - datetime.now(UTC)).total_seconds()

    def assert_exactly_once(self, instance_ids: Iterable[str]) -> None:
        """Each of these instances completed, and there is every row, event and step of theirs, once, and no other."""
        kinds = {instance_id: instance_id.rpartition("-")[0] for instance_id in instance_ids}
        assert self.statuses() == dict.fromkeys(kinds, "completed")
        assert self.rows() == Counter((found, what) for found, kind in kinds.items() for what in ROWS[kind])
        assert self.events() == Counter((found, *event) for found, kind in kinds.items() for event in EVENTS[kind])
        assert self.steps() == Counter((found, step) for found, kind in kinds.items() for step in STEPS[kind])
        assert self.open_retries() == 0
