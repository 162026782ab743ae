"""How long after ``kill -9`` the workflows of a worker are running elsewhere.

    python benchmarks/recovery.py [--kills 50] [--database postgresql,sqlite]

Two workers with default settings share a database. One is killed while it runs workflows, and the time is taken until
the step that was interrupted is running in the other one. Then a new worker is started, the other one is killed, and so
on. The rule: 95% within one second. The exit status is 0 if it holds. Progress goes to stderr, the table to stdout and,
with the description of the machine, to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import environments
from cluster import Cluster, describe
from common import with_driver
from running import save, say, shown
from sqlalchemy import Engine, NullPool, create_engine, text

HERE = Path(__file__).resolve().parent
RULE_SECONDS, RULE_SHARE = 1.0, 0.95
_TOGETHER = 8
_LOOK_SECONDS = 0.01
_PATIENCE_SECONDS = 60.0
# The sibling looks for the dead so often; a kill must not always come at the same time between two looks.
_LONGEST_THINK_SECONDS = 0.6


@dataclass(frozen=True, slots=True)
class Kill:
    """What one kill has interrupted, and after how many seconds each of it was running again."""

    seconds: tuple[float, ...]

    @property
    def slowest(self) -> float:
        """Until all of it was running."""
        return max(self.seconds)


class Workers:
    """The two processes, on one database, and what they note."""

    def __init__(self, url: str, folder: Path) -> None:
        self._folder, self._url = folder, url
        self._engine: Engine = create_engine(url, poolclass=NullPool)
        self._processes: list[subprocess.Popen[bytes]] = []
        (folder / "victim").write_text("")
        (folder / "runs").touch()
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            "BENCH_DATABASE_URL": url,
            "BENCH_FOLDER": str(folder),
        }
        os.environ.update(BENCH_DATABASE_URL=url, BENCH_FOLDER=str(folder))
        sys.path.insert(0, str(HERE.parent))  # what is beside this folder, whatever is installed
        from recovery_app import create_app, two_steps  # noqa: PLC0415  it reads the environment

        self._client, self._workflow = create_app(role="client"), two_steps
        self._placed = 0

    def start(self) -> None:
        """One more, and wait until it is at work."""
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "flask", "--app", "recovery_app", "edda", "worker"],
                env=self._environment,
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        self._wait(lambda: self._registered() == {each.pid for each in self._processes}, "the workers to be at work")

    def interrupt(self, choose: random.Random) -> Kill:
        """Kill the older one while it runs some workflows, and see when the other one has gone on with them."""
        victim, sibling = self._processes
        (self._folder / "victim").write_text(str(victim.pid))
        while len(interrupted := self._under_way_in(victim.pid)) < _TOGETHER:
            self._place()
            self._wait(lambda: self._unfinished() == self._under_way_in(victim.pid), "the workflows to be under way")
        time.sleep(choose.uniform(0.0, _LONGEST_THINK_SECONDS))
        killed_at = time.monotonic()
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        self._wait(lambda: interrupted <= self._runs(sibling.pid).keys(), "the workflows to go on")
        self._processes.remove(victim)
        begun = self._runs(sibling.pid)
        self._wait(lambda: not self._unfinished(), "the workflows to end")
        return Kill(tuple(begun[instance_id] - killed_at for instance_id in sorted(interrupted)))

    def close(self) -> None:
        """Leave nothing running."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._engine.dispose()

    def _place(self) -> None:
        with self._client.app_context():
            for _ in range(_TOGETHER):
                self._placed += 1
                self._workflow.options(instance_id=f"w{self._placed:05}", session=None).start()

    def _under_way_in(self, pid: int) -> set[str]:
        return self._runs(pid).keys() & self._unfinished()

    def _runs(self, pid: int) -> dict[str, float]:
        """When each instance's step was begun in this process."""
        lines = [line.split() for line in (self._folder / "runs").read_text().splitlines()]
        return {instance_id: float(begun_at) for instance_id, where, begun_at in lines if int(where) == pid}

    def _unfinished(self) -> set[str]:
        return set(self._ask("SELECT instance_id FROM edda_instances WHERE completed_at IS NULL"))

    def _registered(self) -> set[int]:
        with self._engine.connect() as conn:
            if not self._engine.dialect.has_table(conn, "edda_workers"):
                return set()
        return set(self._ask("SELECT pid FROM edda_workers"))

    def _ask(self, query: str) -> list[Any]:
        with self._engine.connect() as conn:
            return list(conn.execute(text(query)).scalars())

    def _wait(self, look: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not look():
            if time.monotonic() > deadline:
                log = (self._folder / "log").read_text(errors="replace")
                raise SystemExit(f"\nWaited too long for {what}; the log of the workers ends so:\n{log[-3000:]}")
            time.sleep(_LOOK_SECONDS)


@contextmanager
def database(kind: str, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The URL of a fresh one, and what there is to say about it."""
    if kind == "sqlite":
        import sqlite3  # noqa: PLC0415

        yield f"sqlite:///{folder / 'bench.db'}", {"version": sqlite3.sqlite_version}
        return
    with Cluster() as cluster:
        yield with_driver(cluster.url), describe(cluster.url)


def measure(kind: str, *, kills: int, seed: int) -> tuple[list[Kill], dict[str, Any]]:
    """So many kills on one kind of database."""
    with ExitStack() as stack:
        # /var/tmp is a disk by convention; /tmp may be memory, where a commit costs nothing.
        folder = Path(tempfile.mkdtemp(prefix="edda-recovery-", dir="/var/tmp" if Path("/var/tmp").is_dir() else None))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        url, about = stack.enter_context(database(kind, folder))
        workers = Workers(url, folder)
        stack.callback(workers.close)
        choose = random.Random(seed)
        workers.start()
        found = []
        for number in range(1, kills + 1):
            workers.start()
            found.append(workers.interrupt(choose))
            say(f"[{number}/{kills}] {kind}: {len(found[-1].seconds)} workflows, {found[-1].slowest * 1000:.0f} ms")
        return found, about


@dataclass(frozen=True, slots=True)
class Row:
    """One database: seconds until the interrupted workflows ran again."""

    database: str
    kills: int
    workflows: int
    p50: float
    p95: float
    slowest: float
    share_within: float

    @property
    def holds(self) -> bool:
        """The rule."""
        return self.share_within >= RULE_SHARE

    @classmethod
    def of(cls, kind: str, kills: Sequence[Kill]) -> Row:
        """Summed up."""
        seconds = sorted(each for kill in kills for each in kill.seconds)
        within = sum(each <= RULE_SECONDS for each in seconds) / len(seconds)
        return cls(
            kind, len(kills), len(seconds), _quantile(seconds, 0.5), _quantile(seconds, 0.95), seconds[-1], within
        )

    def cells(self) -> list[str]:
        """For a table."""
        times = [f"{seconds * 1000:.0f}" for seconds in (self.p50, self.p95, self.slowest)]
        verdict = "yes" if self.holds else "NO"
        return [self.database, str(self.kills), str(self.workflows), *times, f"{self.share_within:.1%}", verdict]


_HEADINGS = ["database", "kills", "workflows", "p50 ms", "p95 ms", "max ms", "within 1 s", "95% within 1 s"]


def _quantile(seconds: Sequence[float], share: float) -> float:
    """The least that so great a share does not exceed."""
    return seconds[max(0, -(-int(share * 1000) * len(seconds) // 1000) - 1)]


def table(rows: Sequence[Row]) -> str:
    """Aligned columns, for a terminal."""
    lines = [_HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def markdown(about: dict[str, Any], rows: Sequence[Row]) -> str:
    """The table with what one must know to judge it."""
    machine = about["machine"]
    lines = [
        "# Recovery after kill -9",
        "",
        f"Measured {about['measured_at']} at revision {about['revision']} by `{about['command']}`. Two workers with default"
        " settings; the time from SIGKILL to one until the step that it had under way is running in the other. How it is"
        " measured: `benchmarks/README.md`.",
        "",
        "| " + " | ".join(_HEADINGS) + " |",
        "|:---|" + "---:|" * (len(_HEADINGS) - 1),
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
        "",
        *([f"Note: {about['note']}", ""] if about["note"] else []),
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']},"
        f" {machine['file_system']}; load average {machine['load_average_at_start']} before, {about['load_average_at_end']}"
        " after.",
        *(
            f"- {kind}: {', '.join(f'{name} {value}' for name, value in found.items())}"
            for kind, found in about["databases"].items()
        ),
        f"- {', '.join(f'{name} {version}' for name, version in about['versions'].items())}",
    ]
    if not about["is_of_one_source"]:
        lines += ["", "**The code under test was edited during this run: the figures are of no one version.**"]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="on each database (default: %(default)s)")
    parser.add_argument("--database", default="postgresql,sqlite", help="which; with commas (default: both)")
    parser.add_argument("--seed", type=int, default=1, help="of the times between (default: %(default)s)")
    parser.add_argument("--note", default="", help="written into the results, for example what else was running")
    parser.add_argument("--no-save", action="store_true", help="print the table only")
    given = parser.parse_args(argv)
    about: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shown("recovery.py", argv),
        "revision": environments.revision(),
        "source_digest": environments.source_digest(),
        "note": given.note,
        "machine": environments.describe_machine(),
        "versions": environments.versions(sys.executable),
        "databases": {},
    }
    runs: dict[str, list[Kill]] = {}
    for kind in given.database.split(","):
        runs[kind], about["databases"][kind] = measure(kind, kills=given.kills, seed=given.seed)
    about["load_average_at_end"] = [round(load, 2) for load in os.getloadavg()]
    about["is_of_one_source"] = environments.source_digest() == about["source_digest"]
    rows = [Row.of(kind, kills) for kind, kills in runs.items()]
    print(table(rows))
    if not given.no_save:
        seconds = {kind: [[round(each, 4) for each in kill.seconds] for kill in kills] for kind, kills in runs.items()}
        save("recovery", json.loads(json.dumps({"about": about, "seconds_by_kill": seconds})), markdown(about, rows))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
