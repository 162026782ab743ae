"""Instances that are taken over from workers that died, again and again.

How it thinks. A step that ends its process, by a crash in C code or by all the memory it takes, is run again by the
next worker, and ends that as well. So takeovers are counted, and counted anew whenever something was recorded in
between. After too many in a row the instance is blocked: it stays visible, and the workers live.
"""

from __future__ import annotations

import logging
from functools import partial

from sqlalchemy import Connection

from edda_engine.core.failures import encode_error
from edda_engine.errors import RepeatedCrashError
from edda_engine.runtime.committer import Committer
from edda_engine.runtime.past import Past
from edda_engine.runtime.service import ServiceThread
from edda_engine.storage import instances
from edda_engine.storage.claiming import Lease
from edda_engine.storage.database import is_outage
from edda_engine.storage.units import Block, Holder

_log = logging.getLogger(__name__)


class Takeovers:
    """Decides whether a worker runs what others died of."""

    def __init__(self, *, worker_id: str, limit: int, committer: Committer, service: ServiceThread) -> None:
        self._worker_id, self._limit = worker_id, limit
        self._committer, self._service = committer, service
        self._notes: list[tuple[str, int, int]] = []
        self._is_writing = False

    def is_too_often(self, lease: Lease, past: Past) -> bool:
        """Whether so many workers have died of it that it must not be run."""
        return lease.takeovers > self._limit and progress(past) <= lease.takeover_progress

    def has_progressed(self, lease: Lease, past: Past) -> bool:
        """Whether something was recorded since takeovers were counted."""
        return lease.takeovers > 0 and progress(past) > lease.takeover_progress

    async def note(self, lease: Lease, past: Past) -> None:
        """Count from here.

        After a death a whole batch is claimed at once. Its notes share a transaction, because claims and renewals wait
        for the same thread. One that cannot be written is written after the next takeover.
        """
        self._notes.append((lease.instance_id, lease.epoch, progress(past)))
        if self._is_writing:
            return
        self._is_writing = True
        try:
            while self._notes:
                notes, self._notes = self._notes, []
                await self._service.write("note_takeover", partial(_note_all, notes=notes))
        except Exception as error:
            if not is_outage(error):
                raise
        finally:
            self._is_writing = False

    async def block(self, lease: Lease, past: Past) -> None:
        """Keep everybody from running it until an operator says otherwise."""
        error = RepeatedCrashError(
            lease.workflow_name, lease.instance_id, crashes=lease.takeovers, last_step=past.last_step
        )
        _log.error("%s", error)
        holder = Holder(lease.instance_id, self._worker_id, lease.epoch)
        await self._committer.commit(Block(holder, encode_error(error, with_traceback=False)))


def _note_all(conn: Connection, *, notes: list[tuple[str, int, int]]) -> None:
    for instance_id, epoch, recorded in notes:
        instances.note_takeover(conn, instance_id=instance_id, epoch=epoch, progress=recorded)


def progress(past: Past) -> int:
    """How much is recorded: it only grows."""
    attempts = sum(state.attempts for state in (past.retry_states or {}).values())
    return past.last_seq + attempts
