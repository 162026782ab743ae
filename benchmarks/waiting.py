"""Waiting, ours beside DBOS and edda-framework, in the same run, on a private PostgreSQL: timers, many asleep, events, memory.

    python benchmarks/waiting.py [--quick] [--reps 5] [--only event,memory]

As in ``run.py`` the libraries take turns, each in a process and with a database of its own, and the results go to the
same places. ``--reps`` is for the short measurements; the longer ones are repeated less often.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import waiting_report
from running import FRAMEWORK, OTHERS, SYSTEMS, Place, common_options, measured, place_for, save, say, shown
from waiting_report import MEMORY, Figure

PROGRAMS = {
    "edda": "bench_edda_waiting.py",
    "dbos": "bench_dbos_waiting.py",
    FRAMEWORK: "bench_framework_waiting.py",
}
_ALL = 10_000
_QUICK_PART = 10

_LATENESS = (Figure("p50 ms", "late_ms", "p50"), Figure("p99 ms", "late_ms", "p99"))
_THREADS = Figure("threads", "threads")
_ARRIVAL = (Figure("p50 ms", "arrival_ms", "p50"), Figure("p99 ms", "arrival_ms", "p99"))


@dataclass(frozen=True, slots=True)
class Side:
    """What one library does in a scenario."""

    system: str
    workflows: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One measurement: its sides are run one right after the other."""

    name: str
    bench: str
    sides: tuple[Side, ...]
    figures: tuple[Figure, ...]
    of_five: int = 5
    """How often it is repeated when the short ones are repeated five times."""

    def repetitions(self, reps: int) -> int:
        """So many."""
        return max(1, round(reps * self.of_five / 5))


def _both(workflows: int, *options: str) -> tuple[Side, ...]:
    return tuple(Side(system, workflows, options) for system in SYSTEMS)


def _with_framework(workflows: int) -> tuple[Side, ...]:
    return tuple(Side(system, workflows) for system in ("edda", FRAMEWORK))


SCENARIOS = (
    Scenario("100 timers of 1 s, started in a loop", "timers", _both(100), _LATENESS),
    Scenario("100 timers due at one instant", "together", _both(100), _LATENESS),
    Scenario("1,000 asleep, def", "asleep", _both(1000), (*_LATENESS, _THREADS)),
    Scenario("1,000 asleep, async def", "asleep", _both(1000, "body=async"), (*_LATENESS, _THREADS), of_five=1),
    Scenario("event from another process, def", "event", _both(200), _ARRIVAL),
    Scenario("the same, 0.3 s after the one before", "event", _both(60, "pause=0.3"), _ARRIVAL),
    Scenario("event from another process, async def", "event", _both(200, "body=async"), _ARRIVAL, of_five=1),
    # It looks for what is due every ten seconds. Its events are not measured: of four, three took more than a minute.
    Scenario("100 timers of 1 s", "timers", _with_framework(100), _LATENESS, of_five=1),
    Scenario(
        MEMORY,
        "memory",
        (
            Side("edda", _ALL, (f"parked={_ALL}",)),
            Side("edda", _ALL),
            Side("dbos", 1000),
            Side("dbos", 1000, ("body=async",)),
        ),
        (),
        of_five=1,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    with place_for(given) as place:
        about, runs = measured(place, given, shown("waiting.py", argv), lambda: _measure(given, place))
    figures = {scenario.name: scenario.figures for scenario in SCENARIOS}
    rows = {OTHERS[other]: waiting_report.rows(runs, figures, other) for other in OTHERS}
    print(waiting_report.table(rows, runs))
    if not given.no_save:
        text = waiting_report.markdown(about, rows, runs)
        save("waiting", {"about": about, "rows": waiting_report.as_json(rows), "runs": runs}, text)
    return 1 if any(run["errors"] for run in runs) else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    common_options(parser)
    benches = list(dict.fromkeys(scenario.bench for scenario in SCENARIOS))
    parser.add_argument("--only", default=",".join(benches), help=f"which of {', '.join(benches)}; with commas")
    given = parser.parse_args(argv)
    if given.quick:
        given.reps, given.no_save = 1, True
    return given


def _measure(given: argparse.Namespace, place: Place) -> list[dict[str, Any]]:
    wanted = [scenario for scenario in SCENARIOS if scenario.bench in given.only.split(",")]
    total = sum(scenario.repetitions(given.reps) * len(scenario.sides) for scenario in wanted)
    runs: list[dict[str, Any]] = []
    for pair in range(given.reps):
        for scenario in wanted:
            if pair >= scenario.repetitions(given.reps):
                continue
            for side in scenario.sides:
                about = ", ".join((side.system, f"{side.workflows:,}", *side.options))
                say(f"[{len(runs) + 1}/{total}] {scenario.name}: {about} ... ", end="")
                run = place.run(PROGRAMS[side.system], side.system, _command(given, scenario, side))
                runs.append({**run, "scenario": scenario.name, "options": side.options, "pair": pair})
                say(waiting_report.in_short(run, scenario.figures))
    return runs


def _command(given: argparse.Namespace, scenario: Scenario, side: Side) -> list[str]:
    workflows = max(min(20, side.workflows), side.workflows // _QUICK_PART) if given.quick else side.workflows
    return [
        *("--bench", scenario.bench, "--workflows", str(workflows), "--pool", str(given.pool)),
        *(part for option in side.options for part in ("--opt", option)),
    ]


if __name__ == "__main__":
    sys.exit(main())
