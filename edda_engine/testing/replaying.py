"""Replays a recorded run with the code of today, and judges whether it goes the same way.

How it thinks. The body runs as an engine would run it after a crash, on a loop of its own, under an owner that lets
nothing new begin: what is recorded is answered, anything else waits for ever. When nothing is left to do, the body has
either ended or come to the end of its past. Time on that loop passes only when everybody waits for it, and at once.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from edda_engine.core.events import GIVEN_UP, Recorded, StepKey
from edda_engine.core.failures import as_replayed, describe
from edda_engine.core.replay import Replay
from edda_engine.core.retrying import RetryPolicy
from edda_engine.core.status import WAITING, Status
from edda_engine.errors import EddaError, NonDeterminismError, Recurred, Suspended
from edda_engine.hooks import HooksBase
from edda_engine.runtime.activities import Workplace
from edda_engine.runtime.branches import install_task_factory
from edda_engine.runtime.environment import Environment
from edda_engine.runtime.past import Past
from edda_engine.runtime.probes import no_probe
from edda_engine.runtime.promises import Promises
from edda_engine.runtime.run import Run
from edda_engine.storage.async_engine import AsyncEngines
from edda_engine.storage.claiming import Lease
from edda_engine.storage.database import Database
from edda_engine.storage.units import HeldUnit, LeaseLost, Outcome
from edda_engine.testing.errors import ReplayError
from edda_engine.testing.reads import Read, noted_reads
from edda_engine.testing.recordings import Recording
from edda_engine.threads import DaemonThreads
from edda_engine.workflow import workflows

_LONGEST_SECONDS = 60.0
"""Of real time, for one replay."""
_MOST_HOPS = 100_000


@dataclass
class Replayed:
    """How the body went."""

    mismatch: NonDeterminismError | None = None
    has_ended: bool = False
    value: Any = None
    error: BaseException | None = None
    is_recurring: bool = False
    left: list[Recorded] = field(default_factory=list)
    """Recorded steps of the body's own line that it did not ask for."""
    beyond: list[str] = field(default_factory=list)
    """Calls that are not recorded."""
    changed: list[str] = field(default_factory=list)
    """Recorded calls that it made with other arguments."""
    reads: list[Read] = field(default_factory=list)


def assert_replays(
    recording: Recording,
    *,
    database: Database,
    environment: Environment,
    may_read: Collection[str],
    compares_arguments: bool,
) -> None:
    """Replay, and fail unless it goes as recorded.

    :raises ReplayError: it does not; says where, and what to do.
    """
    found = _on_a_thread(lambda: _replay(recording, database=database, environment=environment))
    read = next((read for read in found.reads if read.name not in may_read), None)
    if found.mismatch is not None:
        raise ReplayError(str(found.mismatch) + _perhaps(read)) from found.mismatch
    problem = _other_end(recording, found) or (_other_arguments(recording, found) if compares_arguments else None)
    if problem is not None:
        raise ReplayError(problem + _perhaps(read)) from found.error
    if read is not None:
        raise ReplayError(_reads(recording, read))


# Judging.


def _other_end(recording: Recording, found: Replayed) -> str | None:
    name = f"Workflow {recording.workflow_name!r}, instance {recording.instance_id!r}"
    if not found.has_ended:
        if recording.status in (Status.COMPLETED, Status.FAILED, Status.RECURRED):
            return (
                f"{name} is {recording.status}, but with the code of today it goes on:"
                f" it asks for {_listed(found.beyond) or 'something that never comes'}, which is not recorded."
            )
        if found.left:
            steps = _listed([f"{step.name!r} ({step.activity_id})" for step in found.left])
            return (
                f"{name} has {steps} recorded, but the code of today does not come so far: it asks for"
                f" {_listed(found.beyond) or 'something that never comes'}, which is not recorded."
            )
        return None
    match recording.status:
        case Status.COMPLETED:
            return _other_result(name, recording, found)
        case Status.FAILED:
            recorded = recording.error or {}
            told = (recorded.get("error_type"), recorded.get("message"))
            now = (None, None) if found.error is None else describe(as_replayed(found.error))
            return None if told == now else f"{name} failed with {_error(told)}, but the code of today {_ended(found)}."
        case Status.RECURRED:
            return None if found.is_recurring else f"{name} recurred, but the code of today {_ended(found)}."
        case status if status in WAITING:
            return f"{name} is {status}, but with the code of today it ends there: it {_ended(found)}."
        case _:
            return None


def _other_result(name: str, recording: Recording, found: Replayed) -> str | None:
    if found.error is not None or found.is_recurring:
        return f"{name} returned {_short(recording.output)}, but the code of today {_ended(found)}."
    workflow = workflows.find(recording.workflow_name)
    try:
        output = json.loads(workflow.parameters.result.encode(found.value, owner=f"the result of {name}"))
    except EddaError as unstorable:
        return f"{name}: {unstorable}"
    if output == recording.output:
        return None
    return (
        f"{name} returned {_short(recording.output)}, but the code of today returns {_short(output)} from the same"
        " recorded steps: the body uses something that differs between runs (use ctx.now(), ctx.uuid4(), ctx.random() or"
        " an activity), or what it makes of its steps has changed."
    )


def _other_arguments(recording: Recording, found: Replayed) -> str | None:
    if not found.changed:
        return None
    return (
        f"Workflow {recording.workflow_name!r}, instance {recording.instance_id!r}, now calls {found.changed[0]}. Either the"
        " body uses something that differs between runs (use ctx.now(), ctx.uuid4(), ctx.random() or an activity), or the"
        " code has changed on purpose: that does not disturb a replay, and assert_replays(..., compares_arguments=False)"
        " lets it pass."
    )


def _perhaps(read: Read | None) -> str:
    return "" if read is None else f" The body calls {read}: perhaps that is why."


def _reads(recording: Recording, read: Read) -> str:
    return (
        f"The body of workflow {recording.workflow_name!r} calls {read}. A replay calls it again, later and perhaps on"
        f" another host, and may then go another way: use {read.instead}, which is the same on replay. If nothing depends on"
        f" it, let it pass with assert_replays(..., may_read={{{read.name!r}}})."
    )


def _ended(found: Replayed) -> str:
    if found.is_recurring:
        return "recurs"
    return f"raises {_error(describe(found.error))}" if found.error is not None else f"returns {_short(found.value)}"


def _error(told: tuple[Any, Any]) -> str:
    return f"{told[0]}: {told[1]}"


def _listed(words: list[str]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:299] + "…"


# Replaying.


class _Watched(Replay):
    """Notes what is asked for."""

    def __init__(self, recording: Recording, found: Replayed) -> None:
        super().__init__(recording.workflow_name, recording.instance_id, recording.steps)
        self._found = found

    def ask(self, key: StepKey, function_name: str, arguments: Callable[[], Any] | None = None) -> Recorded | None:
        answer = super().ask(key, function_name, arguments)
        if answer is None:
            self._found.beyond.append(f"{function_name!r} ({key.activity_id})")
        elif arguments is not None and answer.event_type not in GIVEN_UP and "input" in answer.event_data:
            recorded, now = answer.event_data["input"], arguments()
            if now != recorded:
                self._found.changed.append(
                    f"{function_name!r} ({key.activity_id}) with {_short(now)}; recorded is {_short(recorded)}"
                )
        return answer

    def left(self) -> list[Recorded]:
        """What is recorded of the body's own line and was not asked for."""
        return [step for step in self._by_id.values() if not step.branch and step.activity_id not in self._asked]


class _NothingNew:
    """The owner of a replayed run: nothing begins, nothing is written."""

    is_draining = True
    promises = Promises((), max_running=0)

    async def commit(self, unit: HeldUnit) -> Outcome:
        return LeaseLost()

    def put(self, unit: HeldUnit, resolve: Callable[[Any], None]) -> None:
        resolve(LeaseLost())

    async def find_recorded(self, instance_id: str, activity_id: str) -> Recorded | None:
        return None

    def has_gone_idle(self, run: Run) -> None:
        return

    def wants_back(self, run: Run) -> None:
        return


class _TimelessLoop(asyncio.SelectorEventLoop):
    """A loop on which waiting for time takes none."""

    def __init__(self) -> None:
        self._skipped = 0.0
        self._hops = 0
        self.is_stuck: Callable[[], None] = lambda: None
        super().__init__(_TimelessSelector(self._nothing_is_ready))

    def time(self) -> float:
        """Seconds, those that were not waited for included."""
        return super().time() + self._skipped

    def _nothing_is_ready(self, timeout: float | None) -> None:
        self._hops += 1
        if timeout is None or self._hops > _MOST_HOPS:
            self.is_stuck()
        else:
            self._skipped += timeout


class _TimelessSelector(selectors.DefaultSelector):
    def __init__(self, nothing_is_ready: Callable[[float | None], None]) -> None:
        super().__init__()
        self._nothing_is_ready = nothing_is_ready

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now."""
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self._nothing_is_ready(timeout)
        return ready


def _replay(recording: Recording, *, database: Database, environment: Environment) -> Replayed:
    found = Replayed()
    loop = _TimelessLoop()
    try:
        install_task_factory(loop)
        with noted_reads() as reads:
            loop.run_until_complete(_until_it_stops(recording, found, loop, _workplace(database, environment)))
        found.reads = list(reads)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    return found


async def _until_it_stops(recording: Recording, found: Replayed, loop: _TimelessLoop, workplace: Workplace) -> None:
    workflow = workflows.find(recording.workflow_name)
    input_json = json.dumps(recording.input)
    lease = Lease(recording.instance_id, 2, workflow.name, input_json, 300.0, datetime.now(UTC), is_cancelled=False)
    run = Run(lease, workflow, Past(), worker_id="replay", workplace=workplace, owner=_NothingNew())
    watched = run.replay = _Watched(recording, found)
    stuck: asyncio.Future[None] = loop.create_future()
    loop.is_stuck = lambda: None if stuck.done() else stuck.set_result(None)
    body = run.begin()
    await asyncio.wait({run.is_over, stuck}, return_when=asyncio.FIRST_COMPLETED)
    found.has_ended = body.done()
    found.mismatch = run.mismatch
    found.is_recurring = run.fate is Recurred
    if body.done():
        found.error = None if body.cancelled() or found.is_recurring else body.exception()
        found.value = None if body.cancelled() or body.exception() else body.result()
        if found.mismatch is None:
            try:
                run.replay.finish()
            except NonDeterminismError as mismatch:
                found.mismatch = mismatch
    else:
        found.left = watched.left()
    run.seal(Suspended)
    tasks = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    if tasks:
        loop.is_stuck = lambda: None
        await asyncio.wait(tasks, timeout=1.0)


def _workplace(database: Database, environment: Environment) -> Workplace:
    return Workplace(
        database=database,
        async_engines=AsyncEngines(database.engine),
        environment=environment,
        threads=DaemonThreads(1, name="edda-replay"),
        hooks=HooksBase(),
        probe=no_probe,
        now=lambda: datetime.now(UTC),
        default_policy=RetryPolicy(),
        max_payload_bytes=1 << 40,
        application=None,
        has_sent=lambda: None,
    )


def _on_a_thread(work: Callable[[], Replayed]) -> Replayed:
    """On a thread of its own: the test may have an event loop, and a profiler, on this one."""
    found: list[Replayed] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="edda-replay", daemon=True)
    thread.start()
    thread.join(_LONGEST_SECONDS)
    if errors:
        raise errors[0]
    if not found:
        raise ReplayError(
            f"The body did not come to an end, nor to a call of edda, within {_LONGEST_SECONDS:g} s: it computes or"
            " blocks. Move what is slow into an activity."
        )
    return found[0]
