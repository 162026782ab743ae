"""One run: customers come while everything is killed, paused and restarted; then all must be there, once.

How it thinks. The troubles go on until every order has ended, so the work is done under them and not after them. Then
the shop is closed, which ends the packers and readers too: nothing may be left that waits for anything. What the
processes hold is looked at before they are stopped, and the tables after.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from example_flask_app.audit import Check
from tests.chaos import story
from tests.chaos.audit import audit
from tests.chaos.cast import Cast, Progress
from tests.chaos.customers import Customers
from tests.chaos.leaks import Footprint, Fresh, footprints, leaks
from tests.chaos.postgres import PrivatePostgres
from tests.chaos.troubles import Plan, Tally, Troubles
from tests.support import eventually

_LOOK_SECONDS = 0.25
_SETTLING_SECONDS = 30.0
_STUCK_SECONDS = 60.0


class ChaosFailedError(AssertionError):
    """It did not come to its end; the message says why."""


@dataclass(frozen=True, slots=True)
class Chaos:
    """What to do."""

    database: str
    orders: int
    seconds: float
    """Over which the customers come."""
    seed: int
    workers: int = 4
    """Of each of the two servers."""
    plan: Plan = field(default_factory=Plan)
    timeout: float = 900.0
    folder: Path | None = None
    """Where the logs stay; in a temporary folder they are gone with it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What has come of it."""

    checks: list[Check]
    tally: Tally
    seconds: float
    """Until every order had ended."""
    asked_again: int
    deliveries: int
    steps: int
    claims: int
    fresh: Footprint
    """What the witness held at the beginning."""
    witness: Footprint
    """What it holds at the end."""

    @property
    def holds(self) -> bool:
        """Everything is there, once, and nothing else is."""
        return all(check.holds for check in self.checks)


def run(chaos: Chaos, *, say: Callable[[str], None]) -> Report:
    """Run it.

    :param say: Told of the progress.
    :raises ChaosFailedError: it does not come to its end; the message has the ends of the logs.
    """
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="edda-chaos-", ignore_cleanup_errors=True)
        folder = chaos.folder or Path(stack.enter_context(temporary))
        folder.mkdir(parents=True, exist_ok=True)
        postgres = stack.enter_context(PrivatePostgres()) if chaos.database == "postgresql" else None
        url = postgres.url if postgres is not None else f"sqlite:///{folder / 'shop.db'}"
        cast = Cast(folder, database_url=url, workers=chaos.workers, seed=chaos.seed)
        stack.callback(cast.close)
        return _Run(chaos, cast, postgres, say).to_its_end()


class _Run:
    def __init__(self, chaos: Chaos, cast: Cast, postgres: PrivatePostgres | None, say: Callable[[str], None]) -> None:
        self._chaos, self._cast, self._say = chaos, cast, say
        self._troubles = Troubles(cast, postgres, chaos.plan, seed=chaos.seed, say=self._tell)
        self._customers = Customers(
            [server.url for server in cast.servers], orders=chaos.orders, seconds=chaos.seconds, seed=chaos.seed
        )
        self._began = time.monotonic()
        self._pause = threading.Event()

    def to_its_end(self) -> Report:
        try:
            self._cast.open()
            fresh = Fresh.of(self._cast)
            self._cast.hire()
            seconds = self._buy()
            leaked, witness = self._close(fresh)
            return self._judged(seconds, fresh.witness, witness, leaked)
        except AssertionError as error:
            logs = "\n".join(f"--- {found.log.name}:\n{found.log_tail(60)}" for found in self._cast.programs)
            raise ChaosFailedError(f"{error}\n\nSeed {self._chaos.seed}. {self._instances()}\n\n{logs}") from error
        finally:
            self._customers.close()

    def _buy(self) -> float:
        """Until all orders have ended, under all troubles; how long that was."""
        self._customers.start()
        self._troubles.start()
        try:
            self._until(lambda now: self._customers.all_are_served() and now.ended == self._chaos.orders)
            return time.monotonic() - self._began
        finally:
            self._troubles.stop()

    def _close(self, fresh: Fresh) -> tuple[Counter[str], Footprint]:
        """Send the staff home, and look at what is held when nothing happens any more."""
        self._customers.ask(f"/payments/{story.CLOSING}")
        self._until(lambda now: now.unfinished == now.unpublished == 0)
        leaked: Counter[str] = Counter()

        def is_clean() -> bool:
            nonlocal leaked
            leaked = leaks(self._cast, fresh)
            return not leaked and len(self._cast.workers()) == self._cast.size

        try:
            eventually(is_clean, timeout=_SETTLING_SECONDS, pause=_LOOK_SECONDS)
        except AssertionError:
            self._tell(f"not settled: {dict(leaked)}, {len(self._cast.workers())} workers of {self._cast.size}")
        held = footprints(self._cast)
        return leaked, next(held[found.pid] for found in self._cast.workers() if found.is_witness)

    def _judged(self, seconds: float, fresh: Footprint, witness: Footprint, leaked: Counter[str]) -> Report:
        for program in (*self._cast.servers, self._cast.witness):
            status = program.stop()
            assert status == 0, f"{program.log.name}: its status after SIGTERM is {status}"
        with httpx.Client(trust_env=False, timeout=20.0) as client:
            deliveries = client.get(self._cast.receiver.url).json()["deliveries"]
        with self._cast.engine.connect() as conn:
            return Report(
                checks=audit(conn, range(1, self._chaos.orders + 1), deliveries, leaked),
                tally=self._troubles.tally,
                seconds=seconds,
                asked_again=self._customers.asked_again,
                deliveries=len(deliveries),
                steps=conn.execute(text("SELECT count(*) FROM edda_history")).scalar_one(),
                claims=conn.execute(text("SELECT sum(lock_epoch) FROM edda_instances")).scalar_one(),
                fresh=fresh,
                witness=witness,
            )

    def _until(self, has_come: Callable[[Progress], bool]) -> None:
        """Look again and again, also while the database is away.

        :raises ChaosFailedError: it does not come in time.
        """
        moved: tuple[float, Progress | None] = (time.monotonic(), None)
        while True:
            try:
                now = self._cast.progress()
            except OperationalError:
                now = None
            if now is not None:
                self._say(self._line(now))
                if has_come(now):
                    return
                if now != moved[1]:
                    moved = (time.monotonic(), now)
            self._cast.raise_if_one_has_ended()
            self._troubles.raise_if_broken()
            if time.monotonic() - moved[0] > _STUCK_SECONDS:
                raise ChaosFailedError(f"Stuck: nothing has moved for {_STUCK_SECONDS:.0f} s: {now}")
            if time.monotonic() - self._began > self._chaos.timeout:
                raise ChaosFailedError(f"Gave up after {self._chaos.timeout:.0f} s: {now}")
            self._pause.wait(_LOOK_SECONDS)

    def _line(self, now: Progress) -> str:
        tally = self._troubles.tally
        return (
            f"{time.monotonic() - self._began:6.1f} s  placed {now.placed:>4}  ended {now.ended:>4} of {self._chaos.orders}"
            f"  to publish {now.unpublished:>3}   kills {tally.kills:>3}  pauses {tally.pauses:>2}"
            f"  restarts {tally.restarts.total():>2}"
        )

    def _tell(self, what: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.1f} s  {what}\n")

    def _instances(self) -> str:
        """What is not as it should be, if the database answers."""
        query = "SELECT status, count(*), min(instance_id) FROM edda_instances GROUP BY status ORDER BY status"
        try:
            with self._cast.engine.connect() as conn:
                return "Instances: " + ", ".join(f"{row[1]} {row[0]} ({row[2]})" for row in conn.execute(text(query)))
        except Exception as error:
            return f"The database says {error!r}."
