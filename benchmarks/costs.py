"""What single things cost, ours beside DBOS and edda-framework: a start, a replay, an idle process, a million sleepers, SQLite, processes, growth.

    python benchmarks/costs.py [--quick] [--reps 5] [--only start,idle]

As in ``run.py`` the libraries take turns, each in a process and with a database of its own. What only ours does has no
figure beside it. The long measurements are repeated less often than ``--reps`` says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import waiting_report
from running import FRAMEWORK, OTHERS, SYSTEMS, Place, common_options, measured, place_for, save, say, shown
from waiting_report import Figure


@dataclass(frozen=True, slots=True)
class Cost:
    """One measurement."""

    name: str
    bench: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]
    figures: tuple[Figure, ...]
    of_five: int = 5
    """How often it is repeated when the short ones are repeated five times."""
    is_ours_alone: bool = False
    is_on_sqlite: bool = False
    more_is_better: bool = False
    programs: str = "costs"
    has_framework: bool = False

    def repetitions(self, reps: int) -> int:
        """So many."""
        return max(1, round(reps * self.of_five / 5))

    @property
    def systems(self) -> tuple[str, ...]:
        """Who is measured."""
        both = ("edda",) if self.is_ours_alone else SYSTEMS
        return (*both, FRAMEWORK) if self.has_framework else both


_STARTS = ("--workflows", "200")
COSTS = (
    Cost(
        "start() that commits at once, idle", "start", _STARTS, ("--workflows", "40"),
        (Figure("call p50 ms", "start_call_ms", "p50"), Figure("first step p50 ms", "first_step_ms", "p50")),
    ),
    Cost(
        "start() in a request's transaction, idle", "start", _STARTS, ("--workflows", "40"),
        (
            Figure("call p50 ms", "joined_call_ms", "p50"),
            Figure("call and commit beyond the request's own commit, median ms", "beyond_commit_ms"),
            Figure("first step p50 ms, with the request's commit", "joined_first_step_ms", "p50"),
        ),
        is_ours_alone=True,
    ),
    Cost(
        "replay of 10,000 steps, from the start of the process", "replay", ("--steps", "10000"), ("--steps", "1000"),
        (Figure("seconds", "replay_seconds"), Figure("seconds from its launch, without imports", "from_launch_seconds")),
        has_framework=True,
    ),
    Cost(
        "the same, beyond a process that only imports Flask, Flask-SQLAlchemy and psycopg", "replay",
        ("--steps", "10000"), ("--steps", "1000"),
        (Figure("seconds", "beyond_imports_seconds"),), is_ours_alone=True,
    ),
    Cost(
        "the same in a process forked from one that has the application loaded", "forked",
        ("--steps", "10000"), ("--steps", "1000"),
        (Figure("seconds", "replay_seconds"),), is_ours_alone=True,
    ),
    Cost(
        "one idle process", "idle", ("--opt", "seconds=60"), ("--opt", "seconds=10"),
        (Figure("statements a minute", "statements_a_minute"),), of_five=1, has_framework=True,
    ),
    Cost(
        "a claim beside 1,000,000 sleeping instances", "asleep", ("--workflows", "1000000"), ("--workflows", "20000"),
        (Figure("p50 ms", "claim_ms", "p50"), Figure("p99 ms", "claim_ms", "p99")), of_five=1, is_ours_alone=True,
    ),
    Cost(
        "SQLite, 64 in flight", "throughput",
        ("--workflows", "800", "--concurrency", "64", "--warmup", "128"),
        ("--workflows", "100", "--concurrency", "64", "--warmup", "64"),
        (Figure("steps/s", "steps_per_s"),), is_on_sqlite=True, more_is_better=True,
    ),
    Cost(
        "64 in flight in each of four processes, against one", "processes",
        ("--workflows", "1000", "--concurrency", "64"), ("--workflows", "200", "--concurrency", "64"),
        (
            Figure("steps/s of one", "steps_per_s_of_one"), Figure("steps/s of four together", "steps_per_s_of_several"),
            Figure("longest lock wait of the four, ms", "longest_lock_wait_ms"),
            Figure("lock waits of over 10 ms", "lock_waits_over_10_ms"),
        ),
        is_ours_alone=True, more_is_better=True,
    ),
    Cost(
        "1,000,000 finished instances of 5 steps in the tables, 64 in flight", "finished",
        ("--workflows", "1000000", "--concurrency", "64"), ("--workflows", "20000", "--concurrency", "64"),
        (Figure("steps/s before", "steps_per_s_empty"), Figure("steps/s with them", "steps_per_s_full")),
        of_five=1, is_ours_alone=True, more_is_better=True, programs="growth",
    ),
    Cost(
        "one instance of 10,000 steps", "long", ("--steps", "10000"), ("--steps", "2000"),
        (Figure("first 1,000, p50 ms", "first_ms", "p50"), Figure("last 1,000, p50 ms", "last_ms", "p50")),
        of_five=1, is_ours_alone=True, programs="growth",
    ),
    Cost(
        "100,000 messages in a competing channel, 16 takers", "backlog",
        ("--workflows", "100000"), ("--workflows", "5000"),
        (Figure("taken/s of 1,000", "taken_per_s_short"), Figure("taken/s of 100,000", "taken_per_s_long")),
        of_five=1, is_ours_alone=True, more_is_better=True, programs="growth",
    ),
    Cost(
        "prune 100,000 finished instances", "prune", ("--workflows", "100000"), ("--workflows", "5000"),
        (Figure("instances/s", "pruned_per_s"), Figure("a batch of 500, p50 ms", "batch_ms", "p50")),
        of_five=1, is_ours_alone=True, programs="growth",
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    with place_for(given) as place:
        about, runs = measured(place, given, shown("costs.py", argv), lambda: _measure(given, place))
    figures, more = {cost.name: cost.figures for cost in COSTS}, {cost.name for cost in COSTS if cost.more_is_better}
    rows = {
        OTHERS[other]: waiting_report.rows(runs, figures, other, more_is_better=more, with_ours_alone=other == "dbos")
        for other in OTHERS
    }
    print(waiting_report.table(rows, runs))
    if not given.no_save:
        text = waiting_report.markdown(about, rows, runs, title="Costs")
        save("costs", {"about": about, "rows": waiting_report.as_json(rows), "runs": runs}, text)
    return 1 if any(run["errors"] for run in runs) else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    common_options(parser)
    benches = list(dict.fromkeys(cost.bench for cost in COSTS))
    parser.add_argument("--only", default=",".join(benches), help=f"which of {', '.join(benches)}; with commas")
    given = parser.parse_args(argv)
    if given.quick:
        given.reps, given.no_save = 1, True
    return given


def _measure(given: argparse.Namespace, place: Place) -> list[dict[str, Any]]:
    wanted = [cost for cost in COSTS if cost.bench in given.only.split(",")]
    runs: list[dict[str, Any]] = []
    for pair in range(given.reps):
        for cost in wanted:
            if pair >= cost.repetitions(given.reps):
                continue
            for system in cost.systems:
                say(f"{cost.name}: {system}, pair {pair + 1} ... ", end="")
                run = _one(given, place, cost, system)
                runs.append({**run, "scenario": cost.name, "options": cost.arguments, "pair": pair})
                say(waiting_report.in_short(run, [each for each in cost.figures if each.name in run]))
    return runs


def _one(given: argparse.Namespace, place: Place, cost: Cost, system: str) -> dict[str, Any]:
    arguments = [
        *("--bench", cost.bench, "--pool", str(given.pool)), *(cost.quick if given.quick else cost.arguments)
    ]  # fmt: skip
    program = f"bench_{system}_{cost.programs}.py"
    if not cost.is_on_sqlite:
        return place.run(program, system, arguments)
    with tempfile.TemporaryDirectory(prefix="edda-bench-") as folder:
        return place.run(program, system, arguments, url=f"sqlite:///{Path(folder) / 'bench.db'}")


if __name__ == "__main__":
    sys.exit(main())
