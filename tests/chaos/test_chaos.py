"""Chaos, as long as a test may take; `make chaos` is the long version, and has a table at its end."""

from __future__ import annotations

from tests.chaos.run import Chaos, Report, run
from tests.chaos.troubles import Plan

SEED = 20
"""A failure names it; the same one makes the same choices in `python -m tests.chaos --seed`."""


def chaos(database: str, *, orders: int, seconds: float, plan: Plan) -> Report:
    wanted = Chaos(database=database, orders=orders, seconds=seconds, seed=SEED, workers=2, plan=plan, timeout=240.0)
    report = run(wanted, say=lambda line: print(line.rstrip()))
    print(report.tally, report.fresh, report.witness)
    return report


def test_nothing_is_lost_or_done_twice_or_stuck_or_leaked_while_workers_and_postgresql_go_down_again_and_again() -> (
    None
):
    report = chaos("postgresql", orders=150, seconds=16.0, plan=Plan(restart_every_seconds=7.0))

    assert {check.title: (check.found - check.expected, check.expected - check.found) for check in wrong(report)} == {}
    assert report.tally.restarts.total() >= 2
    assert report.tally.kills >= 10
    assert report.tally.interrupted >= 1
    assert report.tally.pauses >= 2


def test_nothing_is_lost_or_done_twice_or_stuck_or_leaked_while_workers_on_one_sqlite_file_are_killed() -> None:
    report = chaos("sqlite", orders=100, seconds=10.0, plan=Plan(pause_every_seconds=6.0, pause_seconds=3.0))

    assert {check.title: (check.found - check.expected, check.expected - check.found) for check in wrong(report)} == {}
    assert report.tally.kills >= 8
    assert report.tally.interrupted >= 1


def wrong(report: Report) -> list:
    assert report.checks
    return [check for check in report.checks if not check.holds]
