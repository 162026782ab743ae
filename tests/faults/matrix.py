"""The report of the fault table: a row for each place, a column for each fault and database, and no empty cell.

Under pytest-xdist the cells are tried in several processes; what became of each travels with the report of its test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

from tests.faults.table import DATABASES, PLACES, Cell, Fault, Outcome, cells

PROPERTY = "fault table"

_MARKS = {Outcome.AS_WITHOUT: "", Outcome.LOCKED: " l", Outcome.ENDED: " e", Outcome.WAITED_FOR: " w"}
_FAILED, _NOT_RUN = "FAILED", "not run"

_Key = tuple[str, str, str]


def key(cell: Cell) -> _Key:
    """What is known of a cell in another process."""
    return cell.place.name, cell.fault.value, cell.database


def drawn(happened: Mapping[_Key, int | None]) -> list[str]:
    """The lines of the report. *happened*: how often the fault happened in a cell; ``None``: its test failed."""
    reasons: dict[str, str] = {}
    shown: dict[_Key, str] = {}
    for cell in cells():
        found = key(cell)
        if cell.why_not:
            shown[found] = reasons.setdefault(cell.why_not, f"({len(reasons) + 1})")
        elif found not in happened:
            shown[found] = _NOT_RUN
        else:
            times = happened[found]
            shown[found] = _FAILED if times is None else f"{times}{_MARKS[cell.outcome]}"
    return [*_grid(shown), "", *_explained(reasons), "", _counted(shown.values(), happened)]


def _grid(shown: Mapping[_Key, str]) -> list[str]:
    width = max(len(place.name) for place in PLACES) + 2
    columns = [(fault.value, database) for fault in Fault for database in DATABASES]
    lines = [
        " " * width + "".join(f"{fault:<16}" for fault in Fault),
        " " * width + "".join(f"{database[:6]:<8}" for _, database in columns),
    ]
    for place in PLACES:
        row = "".join(f"{shown[place.name, fault, database]:<8}" for fault, database in columns)
        lines.append(f"{place.name:<{width}}{row}".rstrip())
    return lines


def _explained(reasons: Mapping[str, str]) -> list[str]:
    return [
        "1 and more: so often did the fault happen; everything ended as it does without it",
        *(f"{mark.strip()}: so too; {outcome.value}" for outcome, mark in _MARKS.items() if mark),
        *(f"{number}: not reachable; {reason}" for reason, number in reasons.items()),
    ]


def _counted(shown: Iterable[str], happened: Mapping[_Key, int | None]) -> str:
    kinds = Counter("not reachable" if text.startswith("(") else text for text in shown)
    failed, not_run, unreachable = (kinds[word] for word in (_FAILED, _NOT_RUN, "not reachable"))
    return (
        f"{kinds.total()} cells: {kinds.total() - failed - not_run - unreachable} held, {failed} failed, {not_run} not"
        f" run, {unreachable} not reachable; {sum(times or 0 for times in happened.values())} faults"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, if it was tried as a whole; else how much of it was."""
    happened: dict[_Key, int | None] = {}
    for status in ("passed", "failed"):
        for report in terminalreporter.getreports(status):
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY and (report.when == "call" or status == "failed"):
                    happened[value[0], value[1], value[2]] = value[3] if status == "passed" else None
    if not happened:
        return
    lines = drawn(happened)
    terminalreporter.section("fault table")
    is_whole = len(happened) == sum(not cell.why_not for cell in cells())
    for line in lines if is_whole else lines[-1:]:
        terminalreporter.line(line)
