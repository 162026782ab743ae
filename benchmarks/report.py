"""From runs to a table: medians of each library, and ratios by pairs.

A ratio compares the two runs of one pair, made right after each other; the median of the ratios is not the ratio of
the medians, and says more on a machine whose speed changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

_FIGURES = ("p50 ms", "py ms/step", "pg ms/step", "commits/wf")


def _headings(other: str) -> list[tuple[str, str]]:
    speed = [("in flight", ""), ("steps/s", "edda"), ("steps/s", other), ("ratio by pairs", "median (range)")]
    return speed + [(figure, side) for figure in _FIGURES for side in ("edda", other)]


@dataclass(frozen=True, slots=True)
class Side:
    """One library at one concurrency: medians over its runs, and the range of its speed."""

    steps_per_s: float
    slowest: float
    fastest: float
    p50_ms: float
    cpu_py_ms_per_step: float
    cpu_pg_ms_per_step: float | None
    commits_per_wf: float
    errors: int


@dataclass(frozen=True, slots=True)
class Row:
    """One concurrency."""

    in_flight: int
    ours: Side
    theirs: Side
    ratios: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """With the median ratio spelled out."""
        return {**asdict(self), "ratio_median": round(median(self.ratios), 2)}


def rows(runs: Sequence[dict[str, Any]], other: str = "dbos") -> list[Row]:
    """A row for each concurrency, in the order of the runs; none if the other library was not measured."""
    if not any(run["system"] == other for run in runs):
        return []
    made = []
    for level in dict.fromkeys(run["concurrency"] for run in runs):
        ours = [run for run in runs if run["concurrency"] == level and run["system"] == "edda"]
        theirs = [run for run in runs if run["concurrency"] == level and run["system"] == other]
        ratios = tuple(
            round(a["steps_per_s"] / b["steps_per_s"], 2)
            for a in ours
            for b in theirs
            if a["pair"] == b["pair"] and not a["errors"] and not b["errors"]
        )
        made.append(Row(level, _side(ours), _side(theirs), ratios or (float("nan"),)))
    return made


def _side(runs: Sequence[dict[str, Any]]) -> Side:
    speeds = [run["steps_per_s"] for run in runs]
    server = [run["cpu_pg_ms_per_step"] for run in runs if run["cpu_pg_ms_per_step"] is not None]
    return Side(
        steps_per_s=median(speeds),
        slowest=min(speeds),
        fastest=max(speeds),
        p50_ms=median(run["latency_ms"].get("p50", float("nan")) for run in runs),
        cpu_py_ms_per_step=median(run["cpu_py_ms_per_step"] for run in runs),
        cpu_pg_ms_per_step=median(server) if server else None,
        commits_per_wf=median(run["commits_per_wf"] for run in runs),
        errors=sum(run["errors"] for run in runs),
    )


def _cells(row: Row) -> list[str]:
    def server(side: Side) -> str:
        return "-" if side.cpu_pg_ms_per_step is None else f"{side.cpu_pg_ms_per_step:.2f}"

    ours, theirs = row.ours, row.theirs
    return [
        str(row.in_flight),
        f"{ours.steps_per_s:.0f}",
        f"{theirs.steps_per_s:.0f}",
        f"{median(row.ratios):.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})",
        f"{ours.p50_ms:.1f}",
        f"{theirs.p50_ms:.1f}",
        f"{ours.cpu_py_ms_per_step:.2f}",
        f"{theirs.cpu_py_ms_per_step:.2f}",
        server(ours),
        server(theirs),
        f"{ours.commits_per_wf:.2f}",
        f"{theirs.commits_per_wf:.2f}",
    ]


def tables(found: Mapping[str, Sequence[Row]]) -> str:
    """Aligned columns, for a terminal; a table for each other library."""
    text = "\n\n".join(_table(other, rows) for other, rows in found.items())
    errors = _errors(found)
    return f"{text}\n{errors} ERRORS: these figures do not count" if errors else text


def _table(other: str, found: Sequence[Row]) -> str:
    headings = _headings(other)
    lines = [[top for top, _ in headings], [below for _, below in headings], *(_cells(row) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _errors(found: Mapping[str, Sequence[Row]]) -> int:
    return sum(row.ours.errors + row.theirs.errors for rows in found.values() for row in rows)


def markdown(about: dict[str, Any], found: Mapping[str, Sequence[Row]]) -> str:
    """The tables with what one must know to judge them."""
    lines = [
        f"# Throughput: ours beside {' and '.join(found)}",
        "",
        f"Measured {about['measured_at']} at revision {about['revision']} by `{about['command']}`; medians of {about['repetitions']}"
        " repetitions, the libraries in turn on one server. What each column means: `benchmarks/README.md`.",
        "",
    ]
    for other, rows in found.items():
        lines += _marked_down(other, rows)
    return "\n".join([*lines, *circumstances(about, _errors(found))]) + "\n"


def _marked_down(other: str, found: Sequence[Row]) -> list[str]:
    headings = _headings(other)
    return [
        "| " + " | ".join(" ".join(part for part in pair if part) for pair in headings) + " |",
        "|" + "---:|" * len(headings),
        *("| " + " | ".join(_cells(row)) + " |" for row in found),
        "",
        *(f"Ratios at {row.in_flight} in flight, pair by pair: {', '.join(map(str, row.ratios))}.  " for row in found),
        *(
            f"Range of steps/s at {row.in_flight}: edda {row.ours.slowest:.0f} to {row.ours.fastest:.0f},"
            f" {other} {row.theirs.slowest:.0f} to {row.theirs.fastest:.0f}.  "
            for row in found
        ),
        "",
    ]


def circumstances(about: dict[str, Any], errors: int) -> list[str]:
    """The machine, the server, the versions, and why the figures may not count."""
    machine, server, versions = about["machine"], about["postgresql"], about["versions"]
    lines = [
        *([f"Note: {about['note']}", ""] if about["note"] else []),
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']},"
        f" {machine['file_system']}; load average {machine['load_average_at_start']} before,"
        f" {about['load_average_at_end']} after.",
        f"- PostgreSQL {server['version']}: fsync {server['fsync']}, synchronous_commit {server['synchronous_commit']},"
        f" {server['wal_sync_method']}, shared_buffers {server['shared_buffers']}; one connection commits"
        f" {server['commits_per_s_of_one_connection']} rows a second.",
        f"- Connections of each library's pool: {about['connections_of_each_pool']}.",
        *(
            f"- {system}: {', '.join(f'{name} {version}' for name, version in versions[system].items())}"
            for system in versions
        ),
    ]
    if not about["is_of_one_source"]:
        lines += ["", "**The code under test was edited during this run: the figures are of no one version.**"]
    if errors:
        lines += ["", f"**{errors} errors: these figures do not count.**"]
    return lines
