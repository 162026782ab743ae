"""Troubles: workers are killed, others are paused for longer than their leases, the database goes down.

Each kind goes on by itself, on a thread with random numbers of its own, so that one seed makes the same choices however
long anything takes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos.cast import Cast, Worker
from tests.chaos.postgres import CRASH, FAST, PrivatePostgres

_LEAST_WORKERS = 2
"""The last one is spared: somebody has to get on with the work."""

_LONGEST_DOWN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How often what happens."""

    kill_every_seconds: float = 1.0
    pause_every_seconds: float = 3.0
    pause_seconds: float = 4.0
    restart_every_seconds: float = 20.0


@dataclass(slots=True)
class Tally:
    """What has happened."""

    kills: int = 0
    interrupted: int = 0
    """Workflows that were running in those that were killed."""
    spared: int = 0
    """Times when too few workers were there to kill one."""
    pauses: int = 0
    restarts: Counter[str] = field(default_factory=Counter)


class Troubles:
    """Goes round until told to stop; *postgres* is what to restart, if there is one."""

    def __init__(
        self, cast: Cast, postgres: PrivatePostgres | None, plan: Plan, *, seed: int, say: Callable[[str], None]
    ) -> None:
        self._cast, self._postgres, self._plan, self._seed, self._say = cast, postgres, plan, seed, say
        self.tally = Tally()
        self._ending = threading.Event()
        self._paused: set[int] = set()
        self._threads = [
            threading.Thread(target=self._go_round, args=arguments, daemon=True)
            for arguments in (
                ("kills", plan.kill_every_seconds, self._kill),
                ("pauses", plan.pause_every_seconds, self._pause),
                ("restarts", plan.restart_every_seconds, self._restart),
            )
        ]
        self._broken: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and leave everybody running.

        :raises AssertionError: one of the troublemakers broke.
        """
        self._ending.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self.raise_if_broken()

    def raise_if_broken(self) -> None:
        """Without its troubles a run shows nothing.

        :raises AssertionError: one of the troublemakers broke.
        """
        if self._broken is not None:
            raise AssertionError("One of the troublemakers broke.") from self._broken

    def _go_round(self, name: str, every_seconds: float, make: Callable[[random.Random], None]) -> None:
        chance = random.Random(f"{name} {self._seed}")
        try:
            while not self._ending.wait(every_seconds):
                make(chance)
        except BaseException as error:
            self._broken = error

    def _choose(self, chance: random.Random, *, may_be_witness: bool) -> Worker | None:
        awake = [worker for worker in self._cast.workers() if worker.pid not in self._paused]
        candidates = [worker for worker in awake if may_be_witness or not worker.is_witness]
        choice = chance.random()
        if len(awake) < _LEAST_WORKERS or not candidates:
            self.tally.spared += 1
            return None
        return candidates[int(choice * len(candidates))]

    def _kill(self, chance: random.Random) -> None:
        worker = self._choose(chance, may_be_witness=False)
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
                self.tally.kills += 1
                self.tally.interrupted += worker.running

    def _pause(self, chance: random.Random) -> None:
        worker = self._choose(chance, may_be_witness=True)
        if worker is None:
            return
        self._paused.add(worker.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGSTOP)
            try:
                self.tally.pauses += 1
                self._ending.wait(self._plan.pause_seconds)
            finally:
                os.kill(worker.pid, signal.SIGCONT)
        self._paused.discard(worker.pid)

    def _restart(self, chance: random.Random) -> None:
        if self._postgres is None:
            return
        manner = (CRASH, FAST)[self.tally.restarts.total() % 2]
        self._postgres.stop(manner)
        self._ending.wait(chance.uniform(0.0, _LONGEST_DOWN_SECONDS))
        self._postgres.start()
        name = "by a fast shutdown" if manner is FAST else "by a crash"
        self.tally.restarts[name] += 1
        self._say(f"PostgreSQL was restarted {name}")
