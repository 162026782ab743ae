"""Steps a second against workflows in flight, ours and theirs, from saved results.

    python benchmarks/plot.py [RESULTS.json] [--to docs/images/throughput.svg]

Without a file the newest throughput results are taken that were measured without options of a program. Bars of error span all repetitions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "edda"  # the same results make the same file

from matplotlib import pyplot  # noqa: E402  the back end is chosen before it

_RESULTS = Path(__file__).resolve().parent / "results"
_SHOWN = {
    "edda": ("edda-wsgi", "#1f5fa8", "o"),
    "dbos": ("DBOS Transact", "#b4552d", "s"),
    "framework": ("edda-framework", "#5b8a3c", "^"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--to", type=Path, default=_RESULTS.parents[1] / "docs" / "images" / "throughput.svg")
    given = parser.parse_args(argv)
    results, content = _newest() if given.results is None else (given.results, json.loads(given.results.read_text()))
    given.to.parent.mkdir(parents=True, exist_ok=True)
    _draw(content, given.to)
    print(f"{given.to} from {results.name}", file=sys.stderr)
    return 0


def _newest() -> tuple[Path, dict[str, Any]]:
    for results in sorted(_RESULTS.glob("throughput-*.json"), reverse=True):
        content = json.loads(results.read_text())
        if "--opt" not in content["about"]["command"]:
            return results, content
    raise SystemExit("There are no results yet: `make bench-throughput` makes them.")


def _draw(content: dict[str, Any], to: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for system, (label, colour, marker) in _SHOWN.items():
        by_level: dict[int, list[float]] = {}
        for run in content["runs"]:
            if run["system"] == system and not run["errors"]:
                by_level.setdefault(run["concurrency"], []).append(run["steps_per_s"])
        levels = sorted(by_level)
        middle = [median(by_level[level]) for level in levels]
        below = [each - min(by_level[level]) for each, level in zip(middle, levels, strict=True)]
        above = [max(by_level[level]) - each for each, level in zip(middle, levels, strict=True)]
        axes.errorbar(levels, middle, yerr=[below, above], label=label, color=colour, marker=marker, capsize=3)
        for level, each in zip(levels, middle, strict=True):
            axes.annotate(f"{each:,.0f}", (level, each), textcoords="offset points", xytext=(6, 6), color=colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.set_xlabel("workflows in flight")
    axes.set_ylabel("steps a second")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(to, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
