"""Chaos by hand: ``python -m tests.chaos --database postgresql``; ``make chaos`` does that.

Progress goes to stderr, the table to stdout. The exit status is 0 only if everything was done exactly once, nothing is
stuck and nothing leaked.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from pathlib import Path

from example_flask_app.demo import print_report
from example_flask_app.processes import DATABASES, end_on_sigterm
from tests.chaos import story
from tests.chaos.run import Chaos, ChaosFailedError, Report, run
from tests.chaos.troubles import Plan

_CLEAR_LINE = "\r\x1b[K"
_PLAIN_LINE_SECONDS = 5.0
_ORDERS = {"postgresql": 2000, "sqlite": 1000}
_WORKERS = {"postgresql": 4, "sqlite": 2}
_ORDERS_PER_SECOND = {"postgresql": 12.0, "sqlite": 8.0}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--database", choices=DATABASES, default="postgresql")
    parser.add_argument("--orders", type=int, help="how many (default: 2000, on SQLite 1000)")
    parser.add_argument("--seconds", type=float, help="over which they come (default: 12 a second, on SQLite 8)")
    parser.add_argument("--workers", type=int, help="of each of the two servers (default: 4, on SQLite 2)")
    parser.add_argument("--seed", type=int, help="of all choices (default: another one each time; it is printed)")
    parser.add_argument(
        "--timeout", type=float, default=1200.0, help="seconds before it gives up (default: %(default)s)"
    )
    parser.add_argument("--restart-every", type=float, default=20.0, help="seconds (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="an empty one for logs (and the SQLite file), which stay there")
    given = parser.parse_args()
    kind = given.database
    orders = given.orders or _ORDERS[kind]
    chaos = Chaos(
        database=kind,
        orders=orders,
        seconds=given.seconds or orders / _ORDERS_PER_SECOND[kind],
        seed=given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000),
        workers=given.workers or _WORKERS[kind],
        plan=Plan(restart_every_seconds=given.restart_every),
        timeout=given.timeout,
        folder=given.folder,
    )
    end_on_sigterm()
    print(
        f"Chaos on {kind}: {orders} orders, two servers of {chaos.workers} workers, seed {chaos.seed}", file=sys.stderr
    )
    try:
        report = run(chaos, say=_Progress().say)
    except ChaosFailedError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing is left running.", file=sys.stderr)
        return 128 + signal.SIGINT
    print(file=sys.stderr)
    print_report(report.checks, _remarks(chaos, report))
    return 0 if report.holds else 1


class _Progress:
    """One updating line on a terminal, plain lines now and then elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._last = 0.0

    def say(self, line: str) -> None:
        """Lines that end in a newline stay."""
        if self._is_terminal:
            print(f"{_CLEAR_LINE}{line}", end="", file=sys.stderr, flush=True)
        elif line.endswith("\n") or time.monotonic() - self._last >= _PLAIN_LINE_SECONDS:
            self._last = time.monotonic()
            print(line.rstrip(), file=sys.stderr, flush=True)


def _remarks(chaos: Chaos, report: Report) -> dict[str, str]:
    tally = report.tally
    restarts = ", ".join(f"{count} {manner}" for manner, count in tally.restarts.items()) or "none"
    return {
        "database": chaos.database,
        "seed": str(chaos.seed),
        "time": f"{report.seconds:.1f} s, until the last order had ended",
        "workers killed": f"{tally.kills}, with {tally.interrupted} workflows running; spared {tally.spared} times as the last",
        "workers paused": f"{tally.pauses}, for {chaos.plan.pause_seconds:g} s, the lock being of {story.LOCK_SECONDS:g} s",
        "restarts of the database": restarts,
        "steps recorded": str(report.steps),
        "claims": str(report.claims),
        "requests sent again": str(report.asked_again),
        "events delivered": f"{report.deliveries} times",
        "the witness": f"{report.fresh} when it was fresh; {report.witness} at the end",
    }


if __name__ == "__main__":
    sys.exit(main())
