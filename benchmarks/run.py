"""Throughput of ours beside DBOS and edda-framework, in the same run, on a private PostgreSQL.

    python benchmarks/run.py [--quick] [--reps 5] [--concurrency 1,16,64] [--step write]

The libraries take turns (A B C A B C), so that whatever else the machine does meets all. Needs nothing but this
project's own environment; those of the others are made once, in a cache folder. Progress goes to stderr, the table to
stdout, and both, with the description of the machine, to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import report
from running import FRAMEWORK, OTHERS, SYSTEMS, Place, common_options, measured, place_for, save, say, shown

PROGRAMS = {"edda": "bench_edda_wsgi.py", "dbos": "bench_dbos.py", FRAMEWORK: "bench_framework.py"}
# Enough for some seconds a measurement, and no more.
WORKFLOWS = {1: 100, 16: 400, 64: 800}


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    with place_for(given) as place:
        about, runs = measured(place, given, shown("run.py", argv), lambda: _measure(given, place))
    rows = {OTHERS[other]: found for other in OTHERS if (found := report.rows(runs, other))}
    text = report.markdown(about, rows)
    print(report.tables(rows))
    if not given.no_save:
        save(
            "throughput" if given.step == "plain" else "writing",
            {
                "about": about,
                "rows": {name: [row.as_json() for row in found] for name, found in rows.items()},
                "runs": runs,
            },
            text,
        )
    return 1 if any(run["errors"] for run in runs) else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    common_options(parser)
    parser.add_argument("--concurrency", default="1,16,64", help="workflows in flight, with commas")
    parser.add_argument(
        "--step", choices=("plain", "write"), default="plain", help="what a step does: nothing, or insert a row"
    )
    parser.add_argument("--steps", type=int, default=5, help="steps of one workflow")
    parser.add_argument("--workflows", type=int, default=0, help="in each measurement; 0: enough for some seconds")
    parser.add_argument("--opt", action="append", default=[], help="key=value for our program, such as body=async")
    given = parser.parse_args(argv)
    if given.quick:
        given.reps, given.no_save = 1, True
    return given


def _measure(given: argparse.Namespace, place: Place) -> list[dict[str, Any]]:
    levels = [int(level) for level in given.concurrency.split(",")]
    systems = SYSTEMS if given.step == "write" else (*SYSTEMS, FRAMEWORK)
    total = given.reps * len(levels) * len(systems)
    runs: list[dict[str, Any]] = []
    for pair in range(given.reps):
        for level in levels:
            for system in systems:
                say(f"[{len(runs) + 1}/{total}] pair {pair + 1}, {level} in flight, {system} ... ", end="")
                run = _one(given, place, system, level)
                if place.cluster is not None:
                    run["commits"] = place.cluster.commit_records(run.pop("wal_from"), run.pop("wal_to"))
                # On another server its WAL is out of reach; then what counts is the ids that were used up.
                commits = run["write_txns"] if run.get("commits") is None else run["commits"]
                run["commits_per_wf"] = round(commits / run["workflows"], 2)
                run["pair"] = pair
                runs.append(run)
                say(f"{run['steps_per_s']:.0f} steps/s" + (f", {run['errors']} ERRORS" if run["errors"] else ""))
    return runs


def _one(given: argparse.Namespace, place: Place, system: str, level: int) -> dict[str, Any]:
    workflows = given.workflows or WORKFLOWS.get(level, max(100, 12 * level))
    if given.quick:
        workflows = max(level, workflows // 4)
    arguments = [
        *("--bench", "throughput"),
        *("--workflows", str(workflows), "--steps", str(given.steps), "--concurrency", str(level)),
        *("--warmup", str(max(32, 2 * level)), "--pool", str(given.pool)),
        *("--opt", f"step={given.step}"),
        *(part for pair in given.opt if system == "edda" for part in ("--opt", pair)),
    ]
    return place.run(PROGRAMS[system], system, arguments)


if __name__ == "__main__":
    sys.exit(main())
