"""The engine: one worker of one application, its services wired together. Lives on one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection

from edda_engine.core.ports import NewInstance
from edda_engine.hooks import HooksBase, WorkflowHooks
from edda_engine.outbox.publishers import load_publisher
from edda_engine.retry import DEFAULT_RETRY
from edda_engine.runtime.activities import Workplace
from edda_engine.runtime.branches import install_task_factory
from edda_engine.runtime.claimer import CALM, Claimer
from edda_engine.runtime.committer import Committer
from edda_engine.runtime.completions import Completions
from edda_engine.runtime.conditions import utc_now
from edda_engine.runtime.environment import Environment, PlainEnvironment
from edda_engine.runtime.executor import Executor
from edda_engine.runtime.leases import Leases
from edda_engine.runtime.liveness import Liveness
from edda_engine.runtime.notifier import Notifier
from edda_engine.runtime.past import Past
from edda_engine.runtime.probes import Probe, no_probe
from edda_engine.runtime.processes import new_worker_id
from edda_engine.runtime.recovery import Recovery, take_over
from edda_engine.runtime.relay import Relay
from edda_engine.runtime.service import ServiceThread
from edda_engine.runtime.takeovers import Takeovers
from edda_engine.runtime.tasks import ended, keep_running
from edda_engine.runtime.upkeep import Upkeep
from edda_engine.runtime.wakeups import FileWatch
from edda_engine.runtime.watch import LoopWatch
from edda_engine.settings import EngineSettings
from edda_engine.storage import migrate, outbox
from edda_engine.storage.async_engine import AsyncEngines
from edda_engine.storage.claiming import Lease
from edda_engine.storage.commit import Refused, Start, Started
from edda_engine.storage.database import Database, is_outage
from edda_engine.storage.notifications import OUTBOX_CHANNEL, WAKE_CHANNEL
from edda_engine.threads import DaemonThreads
from edda_engine.version import __version__
from edda_engine.workflow import workflows

_log = logging.getLogger(__name__)

_PAUSES = (0.1, 0.2, 0.5, 1.0)
_RETIRED = "It takes no more work: it was told to stop."


class Engine:
    """Claims and runs the instances of one service, until stopped."""

    def __init__(
        self,
        database: Database,
        settings: EngineSettings,
        *,
        environment: Environment | None = None,
        hooks: WorkflowHooks | None = None,
        application: Any = None,
        probe: Probe = no_probe,
        now: Callable[[], datetime] = utc_now,
        completions: Completions | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.worker_id = new_worker_id()
        self.completions = completions or Completions()
        self.is_ready = asyncio.Event()
        self._database, self._settings = database, settings
        self._async_engines = AsyncEngines(database.engine)
        self._threads = DaemonThreads(settings.threads, name="edda-activity")
        self._service = ServiceThread(database, probe=probe)
        self._notifier = notifier or Notifier(lambda: database)
        self.committer = Committer(database, probe=probe)
        self._liveness = Liveness(
            database,
            worker_id=self.worker_id,
            service_name=settings.service_name,
            listen=settings.listen,
            version=__version__,
            hear=self._hear,
        )
        self._claimer = Claimer(
            worker_id=self.worker_id,
            service_name=settings.service_name,
            database=database,
            service=self._service,
            poll_interval=settings.poll_interval_seconds,
            is_listening=lambda: self._liveness.is_listening,
            notify=self.notify_others,
            probe=probe,
        )
        self._file_watch = FileWatch(database, changed=self._file_has_changed) if database.is_sqlite else None
        workplace = Workplace(
            database=database,
            async_engines=self._async_engines,
            environment=environment or PlainEnvironment(),
            threads=self._threads,
            hooks=hooks or HooksBase(),
            probe=probe,
            now=now,
            default_policy=settings.default_retry_policy or DEFAULT_RETRY,
            max_payload_bytes=settings.max_payload_bytes,
            application=application,
            has_sent=self._has_sent,
        )
        self.executor = Executor(
            worker_id=self.worker_id,
            workplace=workplace,
            committer=self.committer,
            service=self._service,
            completions=self.completions,
            takeovers=Takeovers(
                worker_id=self.worker_id,
                limit=settings.max_takeovers,
                committer=self.committer,
                service=self._service,
            ),
            max_running=settings.max_running,
            max_parked=settings.max_parked,
            wake_claimer=self._claimer.wake,
            wake_claimer_in=self._claimer.wake_in,
            has_room=self._claimer.has_room,
        )
        self._leases = Leases(worker_id=self.worker_id, service=self._service)
        self._recovery = Recovery(
            service_name=settings.service_name,
            liveness=self._liveness,
            service=self._service,
            interval=settings.recovery_interval_seconds,
            wake_claimer=self._claimer.wake,
        )
        self._watch = LoopWatch()
        self._upkeep = Upkeep(
            service=self._service,
            message_retention_days=settings.message_retention_days,
            instance_retention_days=settings.instance_retention_days,
        )
        self._relay = self._make_relay(workplace)
        self._services: list[asyncio.Task[None]] = []
        self._claiming: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_begun = self._stopped = False

    async def start(self) -> None:
        """Wait for the database, upgrade its tables if allowed, and begin to claim.

        A database that is down is waited for: nothing has to be restarted when it comes back.
        """
        self._loop = asyncio.get_running_loop()
        install_task_factory(self._loop)
        self._watch.start()
        await self._prepare_database()
        self._has_begun = True
        self.committer.start()
        await self._liveness.start()
        self._notifier.is_beside_engine = True
        await self._recovery.register()
        self._claiming = keep_running("claimer", lambda: self._claimer.work(self.executor))
        self._services = [
            keep_running("leases", lambda: self._leases.work(self.executor)),
            keep_running("recovery", self._recovery.work),
            keep_running("upkeep", self._upkeep.work),
        ]
        if self._relay is not None:
            self._relay.start()
        if self._file_watch is not None:
            self._file_watch.start()
        self.is_ready.set()
        _log.info("Worker %s of service %s is ready", self.worker_id, self._settings.service_name)

    def wake(self, *, for_start: bool = False) -> bool:
        """Look for work now, *for_start*: for a new start first; from any thread. False if this worker takes none now."""
        return self._soon(partial(self._claimer.wake, for_start=for_start)) and self.is_claiming

    @property
    def is_claiming(self) -> bool:
        """Whether this worker takes work."""
        return self._claiming is not None and not self._claiming.done() and not self.executor.promises.are_over

    def stop_claiming(self) -> None:
        """Take nothing more, and go on with what is held until :meth:`stop`; from any thread, and a signal's handler.

        A claim that is under way is not broken off: its instances would be nobody's until their leases expire.
        """
        self._soon(self._retire)

    def _retire(self) -> None:
        self.executor.promises.close()
        self._claimer.wake()  # others are told of what this worker has left

    def write_start(self, new: NewInstance, told: Callable[[Started | BaseException], object]) -> bool:
        """Write a start together with whatever else is to be written, and begin it here if there is room.

        Only for an id that was made for it: one that somebody chose may be written elsewhere at the same time, and
        the writer of all would wait for that. Safe from any thread.

        :param told: Called on the loop with what became of it.
        :returns: False if this worker writes no starts now: it is not ready, or is stopping.
        """
        if self._stopped or self._loop is None or not self.is_ready.is_set():
            return False
        is_due = not new.delay_seconds and new.start_at is None
        is_ours = new.service == self._settings.service_name and workflows.get(new.workflow_name) is not None
        begins_here = is_due and is_ours and self.is_claiming and self.executor.promises.give() == 1
        self.committer.put(
            Start(new, self.worker_id if begins_here else None),
            partial(self._was_started, told, begins_here=begins_here),
        )
        return True

    def _was_started(
        self, told: Callable[[Started | BaseException], object], outcome: Any, *, begins_here: bool
    ) -> None:
        try:
            match outcome:
                case Started(lease=Lease() as lease):
                    self.executor.take(lease, Past())
                    told(outcome)
                case Started():
                    self._claimer.wake(for_start=True)
                    told(outcome)
                case Refused(error=error):
                    told(error)
                case _:
                    self._claimer.doubt()  # it may have been written all the same, and be claimed by this worker
                    told(outcome)
        finally:
            if begins_here:
                self.executor.promises.end()
                self._claimer.has_room()

    def notify_others(self, service: str) -> None:
        """Let the workers of *service* in other processes look for work, or of all if it is empty; from any thread."""
        if service != self._settings.service_name or self._liveness.may_have_siblings:
            self._notifier.notify(service)

    def wake_relay(self) -> bool:
        """Look for events to publish now; safe from any thread. False if this worker publishes none."""
        return self._relay is not None and self._claiming is not None and self._soon(self._relay.wake)

    def is_running_here(self, instance_id: str) -> bool:
        """Whether this worker has the instance under way, and so will announce its end; safe from any thread."""
        return instance_id in self.executor.held

    def ask_to_stop(self, instance_id: str) -> None:
        """Tell a run of this worker, if there is one, that its instance was cancelled; safe from any thread.

        What it had from queues is for others now.
        """
        self._soon(lambda: self.executor.look_if_cancelled(instance_id))
        self._soon(self._claimer.wake)

    async def problems(self) -> list[str]:
        """What keeps this worker from its work, in sentences; nothing if it is well."""
        if not self.is_ready.is_set():
            return ["It is not ready: it waits for the database, or for the tables to be upgraded."]
        found = [_RETIRED] if self.executor.promises.are_over else []
        found += ["Its committer has ended: no step is saved any more."] if self.committer.has_ended else []
        found += [
            f"Its {task.get_name()} has stopped." for task in (self._claiming, *self._services) if task and task.done()
        ]
        if self._settings.listen and not self._database.is_sqlite and not self._liveness.is_listening:
            found.append("The connection that listens for notifications is away; it is opened again.")
        return found

    async def stop(self, timeout: float | None = None) -> None:
        """Stop claiming, let running activities finish for *timeout* seconds, hand the leases back, close.

        What does not finish in time can no longer commit; its instance goes on elsewhere.
        """
        if self._stopped:
            return
        self._stopped = True
        self._watch.stop()
        self.is_ready.clear()
        if self._claiming is not None:
            await ended(self._claiming)
            seconds = self._settings.shutdown_seconds if timeout is None else timeout
            _log.info(
                "Worker %s drains: it claims nothing more, and activities have %.1f s to end", self.worker_id, seconds,
                extra={"worker_id": self.worker_id, "service": self._settings.service_name},
            )  # fmt: skip
            tell_others = partial(self._notifier.notify, self._settings.service_name)  # what is handed back is due
            await asyncio.gather(self.executor.drain(seconds, handed_back=tell_others), self._stop_relay(seconds))
            for service in self._services:
                await ended(service)
        if self._has_begun:  # also if its start was broken off while it was being entered
            await self.committer.stop()
            try:
                await self._recovery.unregister()
            except Exception as error:
                _log.warning("This worker could not be unregistered; its siblings will: %s", error)
        await self._close()
        await self._async_engines.close()
        _log.info("Worker %s has stopped", self.worker_id)

    async def bury(self) -> None:
        """Its event loop has died: let go of everything, on another one, so that it goes on in a new engine or elsewhere.

        :raises sqlalchemy.exc.SQLAlchemyError: the database does not answer; call it again.
        """
        self._stopped = True
        self._watch.stop()
        await self.committer.stop()
        await self._service.write("bury", lambda conn: take_over(conn, self.worker_id))
        if self._relay is not None:
            self._relay.bury()
        await self._close()

    async def _close(self) -> None:
        if self._file_watch is not None:
            await self._file_watch.stop()
        await self._liveness.stop()
        self._notifier.is_beside_engine = False
        await asyncio.to_thread(self._notifier.close)
        self._service.close()
        self._threads.shutdown(cancel_futures=True)
        self._database.close()

    def _has_sent(self) -> None:
        self._claimer.wake()
        if self._relay is not None:
            self._relay.wake()

    def _make_relay(self, workplace: Workplace) -> Relay | None:
        wanted = self._settings.outbox
        if wanted is None:
            return None
        return Relay(
            relay_id=self.worker_id,
            database=self._database,
            publisher=load_publisher(wanted, around=workplace.environment.around_callback),
            hooks=workplace.hooks,
            poll_interval=self._seldom,
            concurrency=wanted.concurrency,
            retention_days=wanted.retention_days,
            probe=workplace.probe,
        )

    async def _stop_relay(self, timeout: float) -> None:
        if self._relay is not None:
            await self._relay.stop(timeout)

    def _soon(self, callback: Callable[[], object]) -> bool:
        """Call on the loop; False if that will not happen, because the worker has not begun or is stopping."""
        if self._loop is None or self._stopped:
            return False
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closing
            return False
        return True

    def _seldom(self) -> float:
        """How long the relay sleeps when there is nothing to publish, unless it is woken."""
        return self._settings.poll_interval_seconds * (CALM if self._liveness.is_listening else 1)

    def _hear(self, channel: str) -> None:
        """On the thread that listens: another process has something for this worker, or for its relay."""
        if channel == WAKE_CHANNEL:
            self._soon(self._claimer.hear)
        elif channel == OUTBOX_CHANNEL:
            self.wake_relay()
        else:
            self._soon(self._claimer.wake)  # there may be room now for what this worker has none for

    def _file_has_changed(self, conn: Connection) -> None:
        seen = self._claimer.look(conn)
        self._soon(lambda: self._claimer.expect(seen))
        if self._relay is not None and outbox.has_due(conn):
            self.wake_relay()

    async def _prepare_database(self) -> None:
        attempt = 0
        while True:
            try:
                if self._settings.auto_migrate:
                    await self._service.call(lambda: migrate.upgrade(self._database))
                elif (problem := await self._service.call(lambda: migrate.check(self._database))) is not None:
                    _log.error("%s No work is claimed until then.", problem)
                    await asyncio.sleep(5.0)
                    continue
                return
            except Exception as error:
                if not is_outage(error):
                    raise
                if attempt == 0:
                    _log.warning("The database does not answer; waiting for it: %s", str(error).splitlines()[0])
                await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
