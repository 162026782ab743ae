"""From runs of ``waiting.py`` to a table: medians of each library, and ratios by pairs, as in ``report.py``.

Mostly less is better; then a ratio is theirs divided by ours: how many times less ours needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from report import circumstances

MEMORY = "memory of waiting workflows"


def _headings(other: str) -> tuple[str, ...]:
    return ("what", "figure", "edda (range)", f"{other} (range)", "times better, by pairs (range)")


_MEMORY_HEADINGS = (
    *("library", "body", "setting", "waiting", "growth MB", "KB each", "threads before", "threads", "all wait after s"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a run: what it is called, and where it stands."""

    label: str
    name: str
    part: str | None = None

    def of(self, run: Mapping[str, Any]) -> float:
        """Its value."""
        found = run[self.name] if self.part is None else run[self.name].get(self.part, float("nan"))
        return float(found)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one scenario, run by run."""

    what: str
    figure: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ratios: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """With the medians spelled out."""
        return {
            **asdict(self),
            "ours_median": median(self.ours),
            "theirs_median": median(self.theirs),
            "ratio_median": median(self.ratios),
        }


def rows(
    runs: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Sequence[Figure]],
    other: str = "dbos",
    *,
    more_is_better: Collection[str] = (),
    with_ours_alone: bool = False,
) -> list[Row]:
    """A row for each figure, in the order of the scenarios; of those alone that the other library was measured in, too.

    :param more_is_better: Scenarios whose figures are; of the others less is.
    """
    made = []
    for what in dict.fromkeys(run["scenario"] for run in runs):
        ours, theirs = (
            {run["pair"]: run for run in runs if run["scenario"] == what and run["system"] == system}
            for system in ("edda", other)
        )
        if not theirs and not with_ours_alone:
            continue
        for figure in figures[what]:
            sound = [pair for pair in ours if pair in theirs and not ours[pair]["errors"] + theirs[pair]["errors"]]
            pairs = [(figure.of(ours[pair]), figure.of(theirs[pair])) for pair in sound]
            ratios = tuple(round(mine / other if what in more_is_better else other / mine, 2) for mine, other in pairs)
            nothing = (float("nan"),)
            made.append(
                Row(
                    what,
                    figure.label,
                    tuple(figure.of(run) for run in ours.values()),
                    tuple(figure.of(run) for run in theirs.values()) or nothing,
                    ratios or nothing,
                )
            )
    return made


def as_json(found: Mapping[str, Sequence[Row]]) -> dict[str, list[dict[str, Any]]]:
    """The rows as they are kept."""
    return {other: [row.as_json() for row in rows] for other, rows in found.items()}


def in_short(run: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """One run, for whoever watches."""
    if figures:
        text = ", ".join(f"{figure.label} {_short(figure.of(run))}" for figure in figures)
    else:
        text = f"{run['growth_mb']} MB, {run['kb_per_workflow']} KB each, {run['threads']} threads"
    return text + (f", {run['errors']} ERRORS: {run['first_error']}" if run["errors"] else "")


def table(found: Mapping[str, Sequence[Row]], runs: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns, for a terminal; a table for each other library."""
    parts = [_aligned([_headings(other), *map(_cells, rows)], left=2) for other, rows in found.items() if rows]
    if memory := _memory(runs):
        parts.append(_aligned([_MEMORY_HEADINGS, *memory], left=3))
    if errors := sum(run["errors"] for run in runs):
        parts.append(f"{errors} ERRORS: these figures do not count")
    return "\n\n".join(parts)


def markdown(
    about: dict[str, Any],
    found: Mapping[str, Sequence[Row]],
    runs: Sequence[Mapping[str, Any]],
    *,
    title: str = "Waiting",
) -> str:
    """The tables with what one must know to judge them."""
    lines = [
        f"# {title}: ours beside {' and '.join(found)}",
        "",
        f"Measured {about['measured_at']} at revision {about['revision']} by `{about['command']}`, the libraries in turn on"
        " one server; medians over the runs, of which the ranges tell. What each row means: `benchmarks/README.md`.",
        "",
    ]
    for other, rows in found.items():
        if rows:
            lines += _marked_down([_headings(other), *map(_cells, rows)], left=2)
            lines += ["Runs of each row, ours and theirs:", ""]
            lines += [f"- {row.what}, {row.figure}: {_listed(row.ours)}; {_listed(row.theirs)}." for row in rows]
            lines += [""]
    if memory := _memory(runs):
        lines += _marked_down([_MEMORY_HEADINGS, *memory], left=3)
    return "\n".join([*lines, *circumstances(about, sum(run["errors"] for run in runs))]) + "\n"


def _cells(row: Row) -> list[str]:
    return [row.what, row.figure, _with_range(row.ours), _with_range(row.theirs), _with_range(row.ratios)]


def _memory(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            *(run["system"], run["body"], ", ".join(_setting(option) for option in run["options"]) or "default"),
            *(f"{run['workflows']:,}", f"{run['growth_mb']:.1f}", f"{run['kb_per_workflow']:.1f}"),
            *(str(run["threads_before"]), str(run["threads"]), f"{run['all_wait_s']:.0f}"),
        ]
        for run in runs
        if run["scenario"] == MEMORY
    ]


def _setting(option: str) -> str:
    name, _, value = option.partition("=")
    return f"MAX_PARKED={value}" if name == "parked" else "default"


def _short(value: float) -> str:
    if value != value:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _with_range(values: Sequence[float]) -> str:
    middle = _short(median(values))
    return middle if len(values) == 1 else f"{middle} ({_short(min(values))} to {_short(max(values))})"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(map(_short, values))


def _aligned(lines: Sequence[Sequence[str]], *, left: int) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _marked_down(lines: Sequence[Sequence[str]], *, left: int) -> list[str]:
    heading, *body = lines
    rule = "|" + ":---|" * left + "---:|" * (len(heading) - left)
    return ["| " + " | ".join(heading) + " |", rule, *("| " + " | ".join(line) + " |" for line in body), ""]
