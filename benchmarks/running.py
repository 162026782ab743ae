"""What both measurements do around their programs: run one, tell the progress, describe the circumstances, save."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import environments
from cluster import Cluster, describe
from common import plain_url, with_database

HERE = Path(__file__).resolve().parent
SYSTEMS = ("edda", "dbos")
"""They take turns in everything."""

FRAMEWORK = "framework"
"""The asyncio library ``edda-framework``, which is measured where it does the same."""

OTHERS = {"dbos": "dbos", FRAMEWORK: "edda-framework"}
"""Who ours is compared with, and what they are called."""

_RUN_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Place:
    """Where programs run: the interpreter of each library, and the server."""

    pythons: dict[str, str]
    url: str
    cluster: Cluster | None

    def run(self, program: str, system: str, arguments: Sequence[str], *, url: str | None = None) -> dict[str, Any]:
        """Run a program on a database of its own, or on *url*, to its end; returns the line of JSON that it printed.

        :raises SystemExit: it failed.
        """
        command = [
            self.pythons[system],
            str(HERE / program),
            *arguments,
            "--db",
            url or with_database(self.url, f"bench_{system}"),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT_SECONDS,
            check=False,
            env=environments.ours() if system == "edda" else environments.theirs(),
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0 or not lines:
            raise SystemExit(f"\n{program} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(lines[-1])
        return found


def common_options(parser: argparse.ArgumentParser) -> None:
    """The options that all measurements take."""
    parser.add_argument("--reps", type=int, default=5, help="pairs for each line of the table")
    parser.add_argument("--quick", action="store_true", help="one pair, a fraction of the work, nothing saved")
    parser.add_argument("--pool", type=int, default=20, help="connections of each library; 0: its own default")
    parser.add_argument(
        "--server", help="measure on this PostgreSQL, not on a private one: postgresql://user@host/postgres"
    )
    parser.add_argument("--note", default="", help="written into the results, for example what else was running")
    parser.add_argument("--no-save", action="store_true", help="print the table only")


@contextmanager
def place_for(given: argparse.Namespace) -> Iterator[Place]:
    """Make what the programs need, and take it away afterwards."""
    say(f"Making the environments of the others, or finding them in {environments.cache_folder()} ...")
    pythons = {"edda": sys.executable} | {system: environments.python_of(system) for system in OTHERS}
    if given.server:
        yield Place(pythons, plain_url(given.server), None)
        return
    say("Starting PostgreSQL ...")
    with Cluster() as cluster:
        yield Place(pythons, cluster.url, cluster)


def measured(
    place: Place, given: argparse.Namespace, command: str, measure: Callable[[], list[dict[str, Any]]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure, and describe under which circumstances that was."""
    about = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "revision": environments.revision(),
        "source_digest": environments.source_digest(),
        "note": given.note,
        "machine": environments.describe_machine(),
        "postgresql": describe(place.url),
        "versions": {system: environments.versions(python) for system, python in place.pythons.items()},
        "repetitions": given.reps,
        "connections_of_each_pool": given.pool or "default",
    }
    runs = measure()
    about["load_average_at_end"] = [round(load, 2) for load in os.getloadavg()]
    about["is_of_one_source"] = environments.source_digest() == about["source_digest"]
    if not about["is_of_one_source"]:
        say("The code under test was edited during the run: these figures are of no one version.")
    return about, runs


def save(kind: str, content: dict[str, Any], text: str) -> None:
    """Write both forms of the results."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    name = f"{kind}-{time.strftime('%Y%m%d-%H%M', time.gmtime())}"
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    say(f"Written: benchmarks/results/{name}.md and .json")


def shown(program: str, argv: Sequence[str] | None) -> str:
    """The command without what only this machine understands."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = [
        "--server=..." if argument.startswith("--server") else argument
        for argument, before in zip(argv, ["", *argv], strict=False)
        if before not in ("--note", "--server") and not argument.startswith("--note")
    ]
    return " ".join([f"benchmarks/{program}", *arguments])


def say(text: str, *, end: str = "\n") -> None:
    """Progress, for a person who waits."""
    print(text, end=end, file=sys.stderr, flush=True)
