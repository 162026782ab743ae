"""Who takes part: two servers, a worker that is never killed, and somebody who receives the events.

The worker is the witness: it lives through every restart of the database and every pause, so whatever is leaked now
and then has piled up in it at the end.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from example_flask_app.processes import Program
from tests.chaos import story
from tests.support import eventually

_PATIENCE_SECONDS = 90.0

_WORKERS = text(
    "SELECT w.pid, count(i.instance_id) AS running FROM edda_workers w"
    " LEFT JOIN edda_instances i ON i.locked_by = w.worker_id AND i.status = 'running' GROUP BY w.pid ORDER BY w.pid"
)


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that is registered and runs workflows."""

    pid: int
    running: int
    """So many workflows at this moment."""
    is_witness: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the orders stand."""

    placed: int
    ended: int
    unfinished: int
    """Workflows of all kinds, the staff too."""
    unpublished: int


class Cast:
    """The processes, on one database."""

    def __init__(self, folder: Path, *, database_url: str, workers: int, seed: int) -> None:
        self.engine = create_engine(database_url, poolclass=NullPool)
        self._folder, self._workers_of_a_server = folder, workers
        receiver = ["-m", "example_flask_app.receiver", "--fd", "{fd}", "--trouble", "0.05", "--seed", str(seed)]
        self.receiver = Program(folder / "receiver.log", [*receiver, "--journal", str(folder / "received.db")], {})
        environment = {
            "CHAOS_DATABASE_URL": database_url,
            "CHAOS_FOLDER": str(folder),
            "CHAOS_RECEIVER_URL": self.receiver.url,
            "FLASK_APP": "tests.chaos.shop",
            "XDG_RUNTIME_DIR": str(folder),
        }
        server = ["-m", "gunicorn", "-c", "python:edda_wsgi.gunicorn", "--bind", "fd://{fd}"]
        server += ["--workers", str(workers), "--threads", str(story.REQUEST_THREADS), "tests.chaos.shop:create_app()"]
        self.servers = [
            Program(folder / "server-1.log", [*server, "--preload"], environment),
            Program(folder / "server-2.log", server, environment),
        ]
        self.witness = Program(folder / "witness.log", ["-m", "flask", "edda", "worker"], environment)

    @property
    def programs(self) -> list[Program]:
        """All of them."""
        return [self.receiver, self.witness, *self.servers]

    @property
    def is_sqlite(self) -> bool:
        """One file, and no server."""
        return self.engine.dialect.name == "sqlite"

    @property
    def size(self) -> int:
        """How many processes run workflows when nobody is dead."""
        return len(self.servers) * self._workers_of_a_server + 1

    def open(self) -> None:
        """Make the tables and start everybody."""
        story.metadata.create_all(self.engine)
        for program in self.programs:
            program.start()
        eventually(lambda: len(self.workers()) == self.size, timeout=_PATIENCE_SECONDS, pause=0.1)

    def hire(self) -> None:
        """Let packers and readers begin, and wait until they hear."""
        with httpx.Client(trust_env=False, timeout=20.0) as client:
            assert client.post(f"{self.servers[0].url}/staff").status_code == 202
        staff = len(story.PACKERS) + len(story.READERS)
        eventually(lambda: self._count("SELECT count(*) FROM edda_subscriptions") == staff, timeout=_PATIENCE_SECONDS)

    def close(self) -> None:
        """Leave nothing behind."""
        for program in self.programs:
            program.close()
        self.engine.dispose()

    def workers(self) -> list[Worker]:
        """Those that are registered and alive; none while the database does not answer."""
        try:
            with self.engine.connect() as conn:
                rows = conn.execute(_WORKERS).all()
        except OperationalError:  # or the tables are not made yet
            return []
        except Exception as error:
            if "edda_workers" in str(error):
                return []
            raise
        return [
            Worker(pid, running, self.witness.owns(pid))
            for pid, running in rows
            if psutil.pid_exists(pid) and any(program.owns(pid) for program in (self.witness, *self.servers))
        ]

    def progress(self) -> Progress:
        """Where the orders stand.

        :raises sqlalchemy.exc.OperationalError: the database does not answer.
        """
        ended = "SELECT count(*) FROM edda_instances WHERE workflow_name = 'chaos_order' AND completed_at IS NOT NULL"
        return Progress(
            placed=self._count("SELECT count(*) FROM chaos_order"),
            ended=self._count(ended),
            unfinished=self._count("SELECT count(*) FROM edda_instances WHERE completed_at IS NULL"),
            unpublished=self._count("SELECT count(*) FROM edda_outbox WHERE status <> 'published'"),
        )

    def threads_of_the_witness(self) -> Counter[str]:
        """Their names."""
        (pid,) = (worker.pid for worker in self.workers() if worker.is_witness)
        file = self._folder / f"threads-{pid}"
        file.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR2)
        eventually(file.exists)
        return Counter(file.read_text().splitlines())

    def raise_if_one_has_ended(self) -> None:
        """None of them may end by itself.

        :raises AssertionError: one has.
        """
        for program in self.programs:
            assert not program.has_ended, f"{program.log.stem} has ended:\n{program.log_tail()}"

    def _count(self, sql: str) -> int:
        with self.engine.connect() as conn:
            return int(conn.execute(text(sql)).scalar_one())
