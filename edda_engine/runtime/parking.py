"""Parked runs: the lease is given back, and the body is suspended in memory.

How it thinks. A body that can do nothing but wait holds no lease. What it waits for is noted at the moment in which it
is parked, and written a little later: meanwhile the body may be evicted, to make room for others, and wait for nothing
any more. It goes on when its instance is claimed here again with nobody in between, which the epoch tells; otherwise
it is thrown away and the instance is replayed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError

from edda_engine.errors import LeaseLostError, Recurred, Suspended
from edda_engine.runtime.committer import Committer
from edda_engine.runtime.draining import let_go
from edda_engine.runtime.probes import Probe
from edda_engine.runtime.run import Run
from edda_engine.runtime.service import ServiceThread
from edda_engine.storage import instances
from edda_engine.storage.claiming import Lease
from edda_engine.storage.database import is_outage
from edda_engine.storage.units import LeaseLost, Outcome, Saved, Wait

_LOCKED_PAUSE_SECONDS = 0.1  # for an instance whose row a request has locked


class Parking:
    """The parked runs of one worker; on its loop."""

    def __init__(
        self,
        *,
        most: int,
        committer: Committer,
        service: ServiceThread,
        probe: Probe,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        wake_claimer: Callable[[], None],
        wake_claimer_in: Callable[[float, str], None],
    ) -> None:
        self._most, self._committer, self._service, self._probe = most, committer, service, probe
        self._spawn, self._wake_claimer, self._wake_claimer_in = spawn, wake_claimer, wake_claimer_in
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._wanted_back: set[str] = set()

    def __contains__(self, instance_id: str) -> bool:
        return instance_id in self._runs

    def has(self, lease: Lease) -> bool:
        """Whether the body of this instance is suspended here just as the lease finds it."""
        run = self._runs.get(lease.instance_id)
        return run is not None and run.holder.epoch + 1 == lease.epoch and run.fate in (None, Recurred)

    def park(self, run: Run) -> None:
        """Give the lease back until what the body waits for now, and keep the body suspended."""
        run.is_parked = True
        self._runs[run.instance_id] = run
        self._spawn(self._write(run, Wait(run.holder, run.pauses.status, run.pauses.due_in_seconds, run.pauses.asks)))

    def want_back(self, run: Run) -> None:
        """Make the instance due now: its body has gone on by itself."""
        self._wanted_back.add(run.instance_id)
        self._spawn(self._recall(run))

    def take_out(self, instance_id: str) -> tuple[Run, bool]:
        """The run, which goes on; and whether its instance has become due, rather than been wanted back."""
        is_due = instance_id not in self._wanted_back
        self._wanted_back.discard(instance_id)
        return self._runs.pop(instance_id), is_due

    def throw_away(self, instance_id: str) -> None:
        """Drop the body, if there is one: nobody holds the instance, or somebody else does."""
        self._wanted_back.discard(instance_id)
        run = self._runs.pop(instance_id, None)
        if run is not None:
            run.seal(Suspended)

    def throw_all_away(self) -> None:
        """Drop every body: the worker is stopping."""
        let_go(self._runs, list(self._runs))

    def forget(self, run: Run) -> None:
        """It has ended."""
        if self._runs.get(run.instance_id) is run:
            del self._runs[run.instance_id]
        self._wanted_back.discard(run.instance_id)

    async def _write(self, run: Run, wait: Wait) -> None:
        try:
            outcome, delay = await self._written(run, wait)
        except LeaseLostError:
            outcome, delay = LeaseLost(), None
        if run.holder != wait.holder:
            return  # the lease was given back by a commit whose answer was lost, and the run goes on with another
        if isinstance(outcome, LeaseLost):
            if self._runs.get(run.instance_id) is run:
                del self._runs[run.instance_id]
            run.seal(LeaseLostError)
            return
        if run.instance_id in self._wanted_back:
            self._spawn(self._recall(run))
        if delay is not None:
            self._wake_claimer_in(delay, run.instance_id)
        while len(self._runs) > self._most:
            self.throw_away(next(iter(self._runs)))  # the oldest

    async def _written(self, run: Run, wait: Wait) -> tuple[Outcome, float | None]:
        loop = asyncio.get_running_loop()
        due = None if wait.delay_seconds is None else loop.time() + wait.delay_seconds
        await run.save_values()
        delay = None if due is None else max(0.0, due - loop.time())
        if run.instance_id in self._wanted_back:
            delay = 0.0
        self._probe("wait.before_commit")
        outcome = await self._committer.commit(replace(wait, delay_seconds=delay))
        self._probe("wait.after_commit")
        if isinstance(outcome, Saved) and outcome.is_due:
            self._wake_claimer()
        return outcome, delay

    async def _recall(self, run: Run) -> None:
        while run.is_parked and self._runs.get(run.instance_id) is run:
            make_due = partial(instances.make_due, instance_id=run.instance_id, epoch=run.holder.epoch)
            try:
                if await self._service.write("recall", make_due):
                    self._wake_claimer()
                    return
                await asyncio.sleep(_LOCKED_PAUSE_SECONDS)
            except DBAPIError as error:
                if not is_outage(error):
                    raise
                await self._service.wait_until_reachable()
