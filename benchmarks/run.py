"""Throughput of ours beside DBOS, in the same run, on a private PostgreSQL.

    python benchmarks/run.py [--quick] [--reps 5] [--concurrency 1,16,64]

Both libraries take turns (A B A B), so that whatever else the machine does meets both. Needs nothing but this
project's own environment; the one for DBOS is made once, in a cache folder. Progress goes to stderr, the table to
stdout, and both, with the description of the machine, to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import environments
import report
from cluster import Cluster, describe
from common import plain_url, with_database

HERE = Path(__file__).resolve().parent
SYSTEMS = ("edda", "dbos")
PROGRAMS = {"edda": "bench_edda_wsgi.py", "dbos": "bench_dbos.py"}
# Enough for some seconds a measurement, and no more.
WORKFLOWS = {1: 100, 16: 400, 64: 800}
_RUN_TIMEOUT_SECONDS = 600


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    say(f"Making the environment of DBOS, or finding it in {environments.cache_folder()} ...")
    pythons = {"edda": sys.executable, "dbos": environments.dbos_python()}
    with ExitStack() as stack:
        say("Starting PostgreSQL ...")
        cluster = None if given.server else stack.enter_context(Cluster())
        url = plain_url(given.server) if cluster is None else cluster.url
        about = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["benchmarks/run.py", *_shown(sys.argv[1:] if argv is None else argv)]),
            "revision": environments.revision(),
            "source_digest": environments.source_digest(),
            "note": given.note,
            "machine": environments.describe_machine(),
            "postgresql": describe(url),
            "versions": {system: environments.versions(pythons[system]) for system in SYSTEMS},
            "repetitions": given.reps,
            "connections_of_each_pool": given.pool or "default",
        }
        runs = _measure(given, pythons, url, cluster)
        about["load_average_at_end"] = [round(load, 2) for load in os.getloadavg()]
    about["is_of_one_source"] = environments.source_digest() == about["source_digest"]
    if not about["is_of_one_source"]:
        say("The code under test was edited during the run: these figures are of no one version.")
    rows = report.rows(runs)
    text = report.markdown(about, rows)
    print(report.table(rows))
    if not given.no_save:
        _save(about, rows, runs, text)
    return 1 if any(run["errors"] for run in runs) else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reps", type=int, default=5, help="pairs for each line of the table")
    parser.add_argument("--quick", action="store_true", help="one pair, a quarter of the workflows, nothing saved")
    parser.add_argument("--concurrency", default="1,16,64", help="workflows in flight, with commas")
    parser.add_argument("--steps", type=int, default=5, help="steps of one workflow")
    parser.add_argument("--workflows", type=int, default=0, help="in each measurement; 0: enough for some seconds")
    parser.add_argument("--pool", type=int, default=20, help="connections of each library; 0: its own default")
    parser.add_argument(
        "--server", help="measure on this PostgreSQL, not on a private one: postgresql://user@host/postgres"
    )
    parser.add_argument("--opt", action="append", default=[], help="key=value for our program, such as body=async")
    parser.add_argument("--note", default="", help="written into the results, for example what else was running")
    parser.add_argument("--no-save", action="store_true", help="print the table only")
    given = parser.parse_args(argv)
    if given.quick:
        given.reps, given.no_save = 1, True
    return given


def _measure(
    given: argparse.Namespace, pythons: dict[str, str], url: str, cluster: Cluster | None
) -> list[dict[str, Any]]:
    levels = [int(level) for level in given.concurrency.split(",")]
    total = given.reps * len(levels) * len(SYSTEMS)
    runs: list[dict[str, Any]] = []
    for pair in range(given.reps):
        for level in levels:
            for system in SYSTEMS:
                say(f"[{len(runs) + 1}/{total}] pair {pair + 1}, {level} in flight, {system} ... ", end="")
                run = _one(given, pythons[system], system, level, url)
                if cluster is not None:
                    run["commits"] = cluster.commit_records(run.pop("wal_from"), run.pop("wal_to"))
                # On another server its WAL is out of reach; then what counts is the ids that were used up.
                commits = run["write_txns"] if run.get("commits") is None else run["commits"]
                run["commits_per_wf"] = round(commits / run["workflows"], 2)
                run["pair"] = pair
                runs.append(run)
                say(f"{run['steps_per_s']:.0f} steps/s" + (f", {run['errors']} ERRORS" if run["errors"] else ""))
    return runs


def _one(given: argparse.Namespace, python: str, system: str, level: int, url: str) -> dict[str, Any]:
    workflows = given.workflows or WORKFLOWS.get(level, max(100, 12 * level))
    if given.quick:
        workflows = max(level, workflows // 4)
    command = [
        *(python, str(HERE / PROGRAMS[system]), "--bench", "throughput"),
        *("--workflows", str(workflows), "--steps", str(given.steps), "--concurrency", str(level)),
        *("--warmup", str(max(32, 2 * level)), "--pool", str(given.pool)),
        *("--db", with_database(url, f"bench_{system}")),
        *(part for pair in given.opt if system == "edda" for part in ("--opt", pair)),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_RUN_TIMEOUT_SECONDS,
        check=False,
        env=environments.ours() if system == "edda" else None,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        raise SystemExit(f"\n{PROGRAMS[system]} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _save(about: dict[str, Any], rows: list[report.Row], runs: list[dict[str, Any]], text: str) -> None:
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    name = f"throughput-{time.strftime('%Y%m%d-%H%M', time.gmtime())}"
    content = {"about": about, "rows": [row.as_json() for row in rows], "runs": runs}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    say(f"Written: benchmarks/results/{name}.md and .json")


def _shown(argv: Sequence[str]) -> list[str]:
    """The arguments without what only this machine understands."""
    return [
        "--server=..." if argument.startswith("--server") else argument
        for argument, before in zip(argv, ["", *argv], strict=False)
        if before not in ("--note", "--server") and not argument.startswith("--note")
    ]


def say(text: str, *, end: str = "\n") -> None:
    """Progress, for a person who waits."""
    print(text, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
