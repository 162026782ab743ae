"""What is durable in the store's database, read and changed by the test alone: the judge, and the thief of leases.

Every connection is closed at once, so that no test keeps a lock.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, inspect, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from edda_engine.storage.urls import normalized_url
from tests.databases import clear
from tests.faults import wire

entries = Table(
    "store_entries",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("instance_id", String(255), nullable=False),
    Column("what", String(100), nullable=False),
    Column("pid", Integer, nullable=False),
)
"""What the store writes through its session. Nothing in it is unique: a row that is written twice must be seen."""

FAR, PAST = "2199-01-01 00:00:00.000", "2001-01-01 00:00:00.000"
THIEF = "thief"


_MADE_UP = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Account:
    """What there is in the end, and how often, without what differs from run to run."""

    statuses: dict[str, str]
    rows: Counter[tuple[str, str]]
    """What was written through sessions."""
    steps: Counter[tuple[str, str, str]]
    events: Counter[tuple[str | None, str | None, str, str]]
    """The outbox."""
    left: dict[str, int] = field(default_factory=dict)
    """Rows that somebody still waits for, or that wait for somebody."""

    def and_(self, more: Account) -> Account:
        """Both together."""
        return Account(
            self.statuses | more.statuses, self.rows + more.rows, self.steps + more.steps, self.events + more.events
        )


class Books:
    """One database."""

    def __init__(self, url: str) -> None:
        self.url = normalized_url(url).render_as_string(False)
        self.is_sqlite = self.url.startswith("sqlite")
        self._engine = self._connecting()

    def account(self) -> Account:
        """What is there now; an instance whose id was made up is called by its workflow."""
        found = self._rows("SELECT instance_id, workflow_name, status FROM edda_instances")
        names = {row[0]: row[1] if _MADE_UP.fullmatch(row[0]) else row[0] for row in found} | {None: None}
        tables = ("inbox", "waits", "subscriptions", "retries")
        left = {table: self.value(f"SELECT count(*) FROM edda_{table}") for table in tables}

        def count(sql: str) -> Counter[Any]:
            return Counter((names.get(row[0], row[0]), *row[1:]) for row in self._rows(sql))

        return Account(
            statuses={names[row[0]]: row[2] for row in found},
            rows=count("SELECT instance_id, what FROM store_entries"),
            steps=count("SELECT instance_id, activity_id, event_type FROM edda_history"),
            events=count("SELECT instance_id, activity_id, type, status FROM edda_outbox"),
            left={table: number for table, number in left.items() if number},
        )

    def everything(self) -> list[Any]:
        """What a zombie must not change: who wrote what, and how each instance and event stands."""
        return [
            self._rows("SELECT id, instance_id, what, pid FROM store_entries ORDER BY id"),
            self._rows("SELECT instance_id, activity_id, seq, event_type FROM edda_history ORDER BY 1, 2"),
            self._rows("SELECT seq, instance_id, status FROM edda_outbox WHERE event_id <> 'old' ORDER BY 1"),
            self._rows("SELECT instance_id, activity_id, attempts FROM edda_retries ORDER BY 1, 2"),
            self._rows("SELECT instance_id, status, lock_epoch, locked_by FROM edda_instances ORDER BY 1"),
        ]

    def value(self, sql: str, **values: Any) -> Any:
        """The first column of the first row."""
        return self._rows(sql, **values)[0][0]

    def status(self, instance_id: str) -> str | None:
        """How an instance stands."""
        found = self._rows("SELECT status FROM edda_instances WHERE instance_id = :id", id=instance_id)
        return str(found[0][0]) if found else None

    def change(self, sql: str, *rows: dict[str, Any], **values: Any) -> int:
        """Change something, with one set of values or several, and commit; returns how many rows."""
        with self._engine.begin() as conn:
            return conn.execute(text(sql), list(rows) or values).rowcount

    def has_tables(self) -> bool:
        """Whether the library's tables are there."""
        return inspect(self._engine).has_table("edda_instances")

    # Leases, and locks of events, which are the leases of relays.

    def take_lease(self, instance_id: str, *, patience_seconds: float) -> list[Any] | None:
        """What another worker's claim does, at once; what was there then, or ``None`` if the row stays locked."""
        return self._take(
            "UPDATE edda_instances SET locked_by = :thief, lock_epoch = lock_epoch + 1, lock_expires_at = :far,"
            " wake_at = :far WHERE instance_id = :id",
            patience_seconds, id=instance_id,
        )  # fmt: skip

    def give_lease_back(self, instance_id: str) -> None:
        """After :meth:`take_lease`: due for anybody."""
        given = self.change(
            "UPDATE edda_instances SET locked_by = NULL, lock_expires_at = NULL, wake_at = :past"
            " WHERE instance_id = :id AND locked_by = :thief",
            id=instance_id, thief=THIEF, past=PAST,
        )  # fmt: skip
        assert given == 1, "somebody has taken the lease from the thief"

    def take_events(self, *, patience_seconds: float) -> list[Any] | None:
        """What another relay's claim does, for all events that are left."""
        return self._take(
            "UPDATE edda_outbox SET status = 'publishing', locked_by = :thief, lock_expires_at = :far,"
            " next_attempt_at = :far WHERE status <> 'published'",
            patience_seconds,
        )  # fmt: skip

    def give_events_back(self) -> None:
        """After :meth:`take_events`: due for anybody."""
        self.change(
            "UPDATE edda_outbox SET status = 'pending', locked_by = NULL, lock_expires_at = NULL, next_attempt_at = :past"
            " WHERE locked_by = :thief",
            thief=THIEF, past=PAST,
        )  # fmt: skip

    def _take(self, sql: str, patience_seconds: float, **values: Any) -> list[Any] | None:
        try:
            with self._connecting(patience_seconds=patience_seconds).begin() as conn:
                taken = conn.execute(text(sql), {"thief": THIEF, "far": FAR, **values})
                assert taken.rowcount > 0, "there is nothing to take"
        except OperationalError:
            return None
        return self.everything()

    def expire_leases(self) -> None:
        """Let the time of all leases be over."""
        if not self.has_tables():
            return
        self.change(
            "UPDATE edda_instances SET lock_expires_at = :past, wake_at = :past WHERE locked_by IS NOT NULL", past=PAST
        )

    def expire_events(self) -> None:
        """Let the time of all locks of events be over, for a relay that has died."""
        if not self.has_tables():
            return
        self.change(
            "UPDATE edda_outbox SET lock_expires_at = :past, next_attempt_at = :past WHERE locked_by IS NOT NULL",
            past=PAST,
        )

    def make_due(self) -> None:
        """Let the time of what waits for a time be over; whoever is stopped meanwhile keeps nothing locked."""
        due = text("UPDATE edda_instances SET wake_at = :past WHERE locked_by IS NULL AND wake_at IS NOT NULL")
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(due, {"past": PAST})

    # Locks of processes that are stopped.

    def has_no_lock_but(self, expected: int) -> bool:
        """Whether just so many transactions are open; on SQLite, whether that many have the one lock to write."""
        if not self.is_sqlite:
            return wire.open_transactions(self.url) == expected
        return self._can_be_written() == (expected == 0)

    def _can_be_written(self) -> bool:
        try:
            with self._connecting(patience_seconds=0.1).connect() as conn:
                conn.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError:
            return False
        return True

    # Databases.

    def make_entries(self) -> None:
        """The application's own table."""
        entries.metadata.create_all(self._engine)

    def clear(self) -> None:
        """PostgreSQL: empty every table but the version's."""
        url = self.url.replace("postgresql+psycopg:", "postgresql:")
        about: dict[str, Any] = {"options": "-c lock_timeout=30000", "application_name": wire.IS_JUDGE}
        with psycopg.connect(url, autocommit=True, **about) as conn:
            clear(conn)

    def _connecting(self, *, patience_seconds: float = 30.0) -> Engine:
        limit = {"options": f"-c lock_timeout={int(patience_seconds * 1000)}", "application_name": wire.IS_JUDGE}
        arguments: dict[str, Any] = {"timeout": patience_seconds} if self.is_sqlite else limit
        return create_engine(
            self.url, poolclass=NullPool, connect_args=arguments, execution_options={wire.IS_JUDGE: True}
        )

    def _rows(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        with self._engine.connect() as conn:
            return [tuple(row) for row in conn.execute(text(sql), values)]
