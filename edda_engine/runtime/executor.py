"""The executor: every run of this worker, from its lease to its end.

How it thinks. A run is held (its lease is ours and its body may act) or parked (its lease is given back and its
body is suspended in memory; see :mod:`edda_engine.runtime.parking`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from edda_engine.core.codec import check_size
from edda_engine.core.events import Recorded
from edda_engine.core.failures import as_replayed, encode_error
from edda_engine.core.status import Status
from edda_engine.errors import (
    Cancelled,
    LeaseLostError,
    NewerVersionError,
    NonDeterminismError,
    PayloadError,
    Recurred,
    Suspended,
)
from edda_engine.runtime.activities import Workplace
from edda_engine.runtime.committer import Committer, Resolve
from edda_engine.runtime.completions import Completions, ending_of
from edda_engine.runtime.draining import drain
from edda_engine.runtime.parking import Parking
from edda_engine.runtime.past import Past
from edda_engine.runtime.promises import Promises
from edda_engine.runtime.run import Run
from edda_engine.runtime.service import ServiceThread
from edda_engine.runtime.takeovers import Takeovers
from edda_engine.runtime.transactions import refused_by_database
from edda_engine.storage import history, instances, waits
from edda_engine.storage.claiming import Lease
from edda_engine.storage.database import is_outage
from edda_engine.storage.units import AlreadyRecorded, Block, End, HeldUnit, LeaseLost, Outcome
from edda_engine.workflow import workflows

_log = logging.getLogger(__name__)

NEWER_VERSION_PAUSE_SECONDS = 30.0
BROKEN_RUN_PAUSE_SECONDS = 5.0
_LOCKED_PAUSE_SECONDS = 0.1  # for an instance whose row a request has locked


class Executor:
    """Owns the runs (see ``runtime.owner.Owner``)."""

    def __init__(
        self,
        *,
        worker_id: str,
        workplace: Workplace,
        committer: Committer,
        service: ServiceThread,
        completions: Completions,
        takeovers: Takeovers,
        max_running: int,
        max_parked: int,
        wake_claimer: Callable[[], None],
        wake_claimer_in: Callable[[float, str], None],
        has_room: Callable[[], None],
    ) -> None:
        self._worker_id, self._workplace, self._has_room = worker_id, workplace, has_room
        self._committer, self._service, self._completions = committer, service, completions
        self._wake_claimer = wake_claimer
        self.held: dict[str, Run] = {}
        self.promises, self._takeovers = Promises(self.held, max_running=max_running), takeovers
        self._parking = Parking(
            most=max_parked,
            committer=committer,
            service=service,
            probe=workplace.probe,
            spawn=self._spawn,
            wake_claimer=wake_claimer,
            wake_claimer_in=wake_claimer_in,
        )
        self._too_new: set[str] = set()
        self._driving: set[asyncio.Task[None]] = set()
        self.is_draining = False

    # What the claimer and the leases ask.

    def has_parked(self, lease: Lease) -> bool:
        """Whether the body of this instance is suspended here just as the lease finds it."""
        return self._parking.has(lease)

    def has_body(self, instance_id: str) -> bool:
        """Whether a body of this instance is in memory, running or suspended."""
        return instance_id in self.held or instance_id in self._parking

    def take(self, lease: Lease, past: Past) -> None:
        """Begin, or go on with, the instance of this lease."""
        self._forget_held(lease)
        if self.has_parked(lease):
            run, is_due = self._parking.take_out(lease.instance_id)
            self.held[lease.instance_id] = run
            run.resume(lease, is_due=is_due)
            if run.pauses.has_more_than_a_few:
                self.mail_has_come()  # not all of them are woken to ask
            return
        self._parking.throw_away(lease.instance_id)
        if self._takeovers.is_too_often(lease, past):
            self._spawn(self._takeovers.block(lease, past))
            return
        if self._takeovers.has_progressed(lease, past):
            self._spawn(self._takeovers.note(lease, past))
        try:
            workflow = workflows.find(lease.workflow_name)
            run = Run(lease, workflow, past, worker_id=self._worker_id, workplace=self._workplace, owner=self)
        except NewerVersionError as error:
            if lease.instance_id not in self._too_new:
                self._too_new.add(lease.instance_id)
                _log.warning("%s", error)
            self._spawn(self._hand_back(lease, NEWER_VERSION_PAUSE_SECONDS))
            return
        self.held[lease.instance_id] = run  # at once: it counts for how many more may be claimed
        self._spawn(self._drive(run))

    def lose(self, instance_id: str) -> None:
        """The lease of a run is gone: its body is dropped silently."""
        run = self.held.pop(instance_id, None)
        if run is not None:
            _log.warning("Lost the lease of instance %s to another worker; its run here is dropped", instance_id)
            run.seal(LeaseLostError)

    def ask_to_stop(self, instance_id: str) -> None:
        """The instance was cancelled: its body stops at its next step."""
        run = self.held.get(instance_id)
        if run is not None:
            run.ask_to_stop()
        self._parking.throw_away(instance_id)  # nobody held it: its cancellation is written already

    def look_if_cancelled(self, instance_id: str) -> None:
        """Somebody says that it was cancelled, in a transaction or a savepoint that may have been rolled back."""
        if self.has_body(instance_id):
            self._spawn(self._stop_if_cancelled(instance_id))

    @property
    def has_listeners(self) -> bool:
        """Whether a held run waits for messages while it does something else as well."""
        return any(run.pauses.may_get_mail for run in self.held.values())

    def mail_has_come(self) -> None:
        """Look which waits of held runs something has come for; nobody makes a held instance due."""
        self._spawn(self._look_for_mail())

    async def _look_for_mail(self) -> None:
        listening = [run.instance_id for run in self.held.values() if run.pauses.may_get_mail]
        if not listening:
            return
        for instance_id, activity_id in await self._service.read(lambda conn: waits.with_mail(conn, listening)):
            if (run := self.held.get(instance_id)) is not None:
                run.pauses.wake_awaiting([activity_id])

    async def drain(self, timeout: float, *, handed_back: Callable[[], None]) -> None:
        """Begin nothing new, and let go of every run: at once, or when the attempt that is under way has ended in time.

        :param handed_back: Called each time that others can go on with something.
        """
        self.is_draining = True
        self.promises.close()

        async def release_all_but(held: list[str]) -> bool:
            release = partial(instances.release_strays, worker_id=self._worker_id, held=held)
            try:
                is_complete = await self._service.write("release", release)
            except DBAPIError as error:
                _log.warning("This worker's leases could not be handed back; its siblings will take them: %s", error)
                return True
            handed_back()
            return is_complete

        self._parking.throw_all_away()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        await self.promises.kept(deadline)
        await drain(self.held, seconds=deadline - loop.time(), release_all_but=release_all_but)
        if self._driving:
            await asyncio.wait(set(self._driving), timeout=1.0)

    # What a run asks (runtime.owner.Owner).

    async def commit(self, unit: HeldUnit) -> Outcome:
        """Write one unit."""
        return await self._committer.commit(unit)

    def put(self, unit: HeldUnit, resolve: Resolve) -> None:
        """Write one unit, and tell on the loop what became of it; from any thread."""
        self._committer.put(unit, resolve)

    async def find_recorded(self, instance_id: str, activity_id: str) -> Recorded | None:
        """Once the database answers: what it has of a step."""
        key = (instance_id, activity_id)
        while True:
            await self._service.wait_until_reachable()
            try:
                return (await self._service.read(lambda conn: history.load_steps(conn, [key]))).get(key)
            except DBAPIError as error:
                if not is_outage(error):
                    raise

    def has_gone_idle(self, run: Run) -> None:
        """Give the lease back and keep the body suspended."""
        if not self.is_draining and self.held.get(run.instance_id) is run:
            del self.held[run.instance_id]
            self._parking.park(run)

    def wants_back(self, run: Run) -> None:
        """Make the instance due now, so that it is claimed for its waiting body."""
        self._parking.want_back(run)

    # Inside.

    def _spawn(self, coroutine: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._driving.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._driving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("A task of the engine broke; the lease it worked under expires", exc_info=error)

    def _forget_held(self, lease: Lease) -> None:
        """An expired lease of ours was claimed again, by us: the old run must not go on."""
        old = self.held.pop(lease.instance_id, None)
        if old is not None:
            old.seal(LeaseLostError)

    async def _stop_if_cancelled(self, instance_id: str) -> None:
        try:
            is_cancelled = await self._service.read(lambda conn: instances.is_cancelled(conn, instance_id))
        except DBAPIError as error:
            if not is_outage(error):
                raise
            return  # whoever renews its lease is told
        if is_cancelled:
            self.ask_to_stop(instance_id)

    async def _hand_back(self, lease: Lease, delay: float) -> None:
        ids = [lease.instance_id]
        release = partial(instances.release, worker_id=self._worker_id, instance_ids=ids, delay_seconds=delay)
        while not await self._service.write_until_answered("hand_back", release) and not self.is_draining:
            await asyncio.sleep(_LOCKED_PAUSE_SECONDS)

    async def _drive(self, run: Run) -> None:
        try:
            if run.lease.is_cancelled:
                run.had_waits = run.had_mail = run.had_queues = True  # its body, which would tell, is not run
                await self._end(run, self._end_of(run, Status.CANCELLED))
                return
            if not run.lease.has_history:
                run.hook("on_workflow_start", run.workflow_name)
            body = run.begin()
            await run.is_over
            await self._conclude(run, body)
        except Exception:  # an error of ours, or of a probe: the instance must not be kept from others
            _log.exception("The run of instance %s broke in the engine itself; it is taken up again", run.instance_id)
            run.seal(Suspended)
            self._let_go(run)
            await self._hand_back(run.lease, BROKEN_RUN_PAUSE_SECONDS)

    async def _conclude(self, run: Run, body: asyncio.Task[object]) -> None:
        if not body.done():
            error: BaseException | None = None
            run.seal(run.fate or Suspended) if run.mismatch is None else body.cancel()
        else:
            error = asyncio.CancelledError("the body was cancelled") if body.cancelled() else body.exception()
            if run.fate in (None, Recurred):
                await run.until_held()
        if run.fate in (LeaseLostError, Suspended):
            self._let_go(run)
            return
        if run.fate is Cancelled:
            await self._end(run, self._end_of(run, Status.CANCELLED))
            return
        mismatch = run.mismatch or self._unfinished(run)
        if mismatch is not None:
            await self._block(run, mismatch)
            return
        if run.fate is Recurred:
            unit, error = self._end_of(run, Status.RECURRED), None
        else:
            unit, error = self._ending(run, error, None if error else body.result())
        try:
            await run.save_the_last()
            await self._end(run, unit, error)
        except LeaseLostError:
            self._let_go(run)
        except (SQLAlchemyError, ValueError) as refused:  # ValueError: the driver cannot even send it
            if is_outage(refused):
                self._let_go(run)
                return
            owner = f"workflow {run.workflow_name!r} ({run.instance_id})"
            failure = refused_by_database(owner, refused)
            await self._end(run, self._end_of(run, Status.FAILED, error_json=encode_error(failure)), failure)

    def _unfinished(self, run: Run) -> NonDeterminismError | None:
        try:
            run.replay.finish()
        except NonDeterminismError as mismatch:
            return mismatch
        return None

    def _ending(self, run: Run, error: BaseException | None, value: object) -> tuple[End, BaseException | None]:
        if error is None:
            owner = f"result of workflow {run.workflow_name!r} ({run.instance_id})"
            try:
                output_json, _ = run.workflow.parameters.result.round_trip(value, owner=owner)
                check_size(output_json, self._workplace.max_payload_bytes, owner=owner)
                return self._end_of(run, Status.COMPLETED, output_json=output_json), None
            except PayloadError as unstorable:
                error = unstorable
        return self._end_of(run, Status.FAILED, error_json=encode_error(as_replayed(error))), error

    def _end_of(
        self, run: Run, status: Status, *, output_json: str | None = None, error_json: str | None = None
    ) -> End:
        successor = run.successor if status is Status.RECURRED else None
        mailbox = run.mailbox if run.had_mail else None
        return End(run.holder, status, output_json, error_json, run.had_retries, run.had_waits, mailbox, successor)

    async def _end(self, run: Run, end: End, error: BaseException | None = None) -> None:
        run.is_ending = True
        self._workplace.probe("end.before_commit")
        outcome = await self.commit(end)
        self._workplace.probe("end.after_commit")
        self._let_go(run)
        if isinstance(outcome, LeaseLost | AlreadyRecorded):
            # Either another worker has it, or this very commit succeeded before and its answer was lost.
            self._completions.announce(run.instance_id)
            return
        match end.status:
            case Status.COMPLETED:
                run.hook("on_workflow_complete", run.workflow_name)
            case Status.CANCELLED:
                run.hook("on_workflow_cancelled", run.workflow_name)
            case Status.RECURRED:
                self._wake_claimer()
            case _:
                _log.warning("Workflow %s, instance %s, failed: %r", run.workflow_name, run.instance_id, error)
                run.hook("on_workflow_failed", run.workflow_name, error)
        if run.had_queues:
            self._wake_claimer()  # what it had from queues goes to others
        for waited_for in {run.instance_id, run.mailbox}:  # who started a chain of recurrences waits for its end
            self._completions.announce(waited_for, ending_of(run.workflow_name, end))

    async def _block(self, run: Run, mismatch: NonDeterminismError) -> None:
        _log.error("%s", mismatch)
        run.is_ending = True
        await self.commit(Block(run.holder, encode_error(mismatch, with_traceback=False)))
        self._let_go(run)
        self._wake_claimer()  # what it had from queues goes to others

    def _let_go(self, run: Run) -> None:
        if self.held.get(run.instance_id) is run:
            del self.held[run.instance_id]
        self._parking.forget(run)
        for task in list(run._tasks):
            task.cancel()
        run.body = None  # which knows the run: both go at once, and not when the garbage collector comes
        self._has_room()
