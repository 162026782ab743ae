"""What is done with waiting workflows, the same for every library: timers, many asleep, events, memory.

How it thinks. A program hands over a :class:`Library`: how to start a workflow that waits, how to get its result, how to
ask the database how many wait. All clocks are read here. One clock serves sender and receiver: the monotonic one counts
from the start of the machine, so that it is the same in every process.
"""

from __future__ import annotations

import argparse
import gc
import json
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import psycopg
from common import distribution, emit, plain_url

BENCHES = ("timers", "together", "asleep", "event", "memory", "sender")

EVENTS_AT_A_TIME = 20
"""So many workflows wait while one after the other gets its event."""

_PAUSE_SECONDS = (0.02, 0.06)
_WARMUP = 32
_WARMUP_SECONDS = 0.2
_TOGETHER_SECONDS = 4.0
_ARRIVAL_SECONDS = 60.0
_ALL_WAIT_SECONDS = 300.0


class Notes:
    """What the bodies and steps of this process note down; a body that is replayed notes the same again."""

    def __init__(self) -> None:
        self.due: dict[int, float] = {}
        self.woken: dict[int, float] = {}
        self.stepped: dict[int, float] = {}
        self.arrivals: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self._instant: float | None = None

    def all_at(self, instant: float | None) -> None:
        """From now on all are to sleep until the same instant."""
        self._instant = instant

    def asks(self, key: int, seconds: float) -> float:
        """A body is about to sleep: for how long. It is due so long after this very call."""
        now = time.monotonic()
        if self._instant is not None:
            seconds = self._instant - now
        self.due.setdefault(key, now + seconds)
        return seconds

    def wakes(self, key: int) -> None:
        """A body goes on after its sleep."""
        self.woken.setdefault(key, time.monotonic())

    def steps(self, key: int) -> int:
        """The first step after the wait is running."""
        self.stepped.setdefault(key, time.monotonic())
        return key

    def arrives(self, key: int, sent_at: float) -> int:
        """The first step after an event is running."""
        self.arrivals.put((key, time.monotonic() - sent_at))
        return key


@dataclass(frozen=True, slots=True)
class Library:
    """A library under test. ``start`` and ``result`` work with a handle of its own."""

    system: str
    version: str
    body: str
    notes: Notes
    start_sleeper: Callable[[int, float], Any]
    start_receivers: Callable[[range], list[Any]]
    result: Callable[[Any], Any]
    address: Callable[[Any], str]
    """What the sender needs to reach a receiver."""
    waiting_query: str
    """Counts the workflows that wait and, where there are leases, have given theirs back."""


def run(library: Library, given: argparse.Namespace) -> None:
    """Do the benchmark that was asked for, and emit its line."""
    bench = {"timers": _timers, "together": _together, "asleep": _asleep, "event": _event, "memory": _memory}[
        given.bench
    ]
    errors: list[str] = []
    figures = bench(library, given, errors)
    emit(
        system=library.system,
        version=library.version,
        bench=given.bench,
        body=library.body,
        workflows=given.workflows,
        errors=len(errors),
        **({"first_error": errors[0]} if errors else {}),
        **figures,
    )


def sender(send: Callable[[str, float], None]) -> None:
    """The other process: sends to each address that comes on stdin, until that ends; then says how long calls took."""
    print("ready", flush=True)
    seconds = []
    for line in sys.stdin:
        began = time.monotonic()
        send(line.strip(), began)
        seconds.append(time.monotonic() - began)
    emit(send_call_ms=distribution(seconds))


# Timers.


def _timers(library: Library, given: argparse.Namespace, errors: list[str]) -> dict[str, Any]:
    """Timers of one second, started in a loop."""
    return _sleep(library, given.workflows, 1.0, errors)


def _together(library: Library, given: argparse.Namespace, errors: list[str]) -> dict[str, Any]:
    """The same number of timers, all due at the same instant."""
    return _sleep(library, given.workflows, 1.0, errors, is_together=True)


def _asleep(library: Library, given: argparse.Namespace, errors: list[str]) -> dict[str, Any]:
    """Many asleep at the same time."""
    return _sleep(library, given.workflows, float(given.options.get("seconds", 8)), errors)


def _sleep(
    library: Library, count: int, seconds: float, errors: list[str], *, is_together: bool = False
) -> dict[str, Any]:
    notes = library.notes
    for handle in [library.start_sleeper(-key, _WARMUP_SECONDS) for key in range(1, _WARMUP + 1)]:
        library.result(handle)
    notes.woken.clear()
    notes.stepped.clear()
    if is_together:
        notes.all_at(time.monotonic() + _TOGETHER_SECONDS)
    before, cpu = threads(), time.process_time()
    began = time.monotonic()
    with _peak_of(threads) as peak, _peak_of(lambda: len(notes.due) - _WARMUP - len(notes.woken)) as asleep:
        handles = [library.start_sleeper(key, seconds) for key in range(count)]
        started = time.monotonic()
        for key, handle in enumerate(handles):
            _expect(library, handle, key, errors)
    if is_together and started > began + _TOGETHER_SECONDS:
        errors.append("starting took too long: not all were asleep when they were due")
    keys = [key for key in range(count) if key in notes.stepped]
    return {
        "late_ms": distribution([notes.stepped[key] - notes.due[key] for key in keys]),
        "body_late_ms": distribution([notes.woken[key] - notes.due[key] for key in keys]),
        "first_due_to_last_step_s": round(max(notes.stepped.values()) - min(notes.due[key] for key in keys), 3),
        "starts_s": round(started - began, 3),
        "cpu_py_ms_per_wf": round(1000 * (time.process_time() - cpu) / count, 3),
        "threads_before": before,
        "threads": peak[0],
        "asleep_at_once": asleep[0],
        "rss_mb": round(_rss() / 2**20, 1),
    }


# Events.


def _event(library: Library, given: argparse.Namespace, errors: list[str]) -> dict[str, Any]:
    """One event after the other, each to a workflow that has been waiting for a while."""
    shortest, longest = _PAUSE_SECONDS
    pause = given.options.get("pause")
    arbitrary = random.Random(7)  # so that no library's timer keeps step with the sender
    arrived: list[float] = []
    cpu = 0.0
    with _sender_process(given) as (send, report):
        for first in range(-int(given.options.get("warmup", EVENTS_AT_A_TIME)), given.workflows, EVENTS_AT_A_TIME):
            counts = first >= 0  # the first round is the warm-up
            keys = range(first, min(first + EVENTS_AT_A_TIME, given.workflows))
            handles = library.start_receivers(keys)
            _until_waiting(library, given, len(handles))
            for key, handle in zip(keys, handles, strict=True):
                time.sleep(float(pause) if pause and counts else arbitrary.uniform(shortest, longest))
                cpu_before = time.process_time()
                send(library.address(handle))
                try:
                    who, seconds = library.notes.arrivals.get(timeout=_ARRIVAL_SECONDS)
                except queue.Empty:
                    errors.append(f"the event for {key} has not arrived within {_ARRIVAL_SECONDS:g} s")
                    continue
                if who != key:
                    errors.append(f"the event for {key} came to {who}")
                if counts:
                    arrived.append(seconds)
                    cpu += time.process_time() - cpu_before
            for key, handle in zip(keys, handles, strict=True):
                _expect(library, handle, key, errors)
    return {
        "arrival_ms": distribution(arrived),
        "cpu_py_ms_until_arrival": round(1000 * cpu / max(1, len(arrived)), 3),
        "threads": threads(),
        **report,
    }


@contextmanager
def _sender_process(given: argparse.Namespace) -> Iterator[tuple[Callable[[str], None], dict[str, Any]]]:
    command = [
        sys.executable,
        sys.argv[0],
        "--bench",
        "sender",
        "--keep-db",
        "--db",
        given.db,
        "--pool",
        str(given.pool),
    ]
    report: dict[str, Any] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        if stdout.readline().strip() != "ready":
            raise SystemExit("The sender did not begin.")

        def send(address: str) -> None:
            stdin.write(address + "\n")
            stdin.flush()

        yield send, report
        stdin.close()
        report.update(json.loads(stdout.readline()))


# Memory.


def _memory(library: Library, given: argparse.Namespace, errors: list[str]) -> dict[str, Any]:
    """What a process grows by while so many workflows wait in it for an event."""
    with _sender_process(given) as (send, _):
        warm = library.start_receivers(range(-_WARMUP, 0))
        _until_waiting(library, given, len(warm))
        for handle in warm:
            send(library.address(handle))
        for key, handle in enumerate(warm, -_WARMUP):
            _expect(library, handle, key, errors)
        before, threads_before = _settled_rss(), threads()
        began, cpu = time.monotonic(), time.process_time()
        with _peak_of(threads) as peak:
            handles = library.start_receivers(range(given.workflows))
            _until_waiting(library, given, given.workflows)
        all_wait_s, cpu = time.monotonic() - began, time.process_time() - cpu
        after, threads_after = _settled_rss(), threads()
        # The waiting ones are alive: the first, the last, and some between.
        for key in sorted({0, given.workflows // 3, given.workflows // 2, given.workflows - 1}):
            send(library.address(handles[key]))
            _expect(library, handles[key], key, errors)
    return {
        "rss_before_mb": round(before / 2**20, 1),
        "rss_mb": round(after / 2**20, 1),
        "growth_mb": round((after - before) / 2**20, 1),
        "kb_per_workflow": round((after - before) / 2**10 / given.workflows, 2),
        "all_wait_s": round(all_wait_s, 1),
        "cpu_py_ms_per_wf": round(1000 * cpu / given.workflows, 3),
        "threads_before": threads_before,
        "threads": threads_after,
        "threads_peak": peak[0],
    }


def _settled_rss() -> int:
    time.sleep(1.0)
    gc.collect()
    return _rss()


# Together.


def _until_waiting(library: Library, given: argparse.Namespace, count: int) -> None:
    end = time.monotonic() + _ALL_WAIT_SECONDS
    with psycopg.connect(plain_url(given.db), autocommit=True) as conn:
        while time.monotonic() < end:
            row = conn.execute(library.waiting_query).fetchone()
            assert row is not None
            if row[0] >= count:
                return
            time.sleep(0.05 if count <= EVENTS_AT_A_TIME else 0.5)
    raise SystemExit(f"Only {row[0]} of {count} workflows wait after {_ALL_WAIT_SECONDS:g} s.")


def _expect(library: Library, handle: Any, key: int, errors: list[str]) -> None:
    try:
        found = library.result(handle)
    except Exception as error:  # whatever a library may raise is counted, not passed on
        errors.append(repr(error)[:300])
        return
    if found != key:
        errors.append(f"{key} ended with {found!r}"[:300])


def threads() -> int:
    """How many the system counts in this process, ours and all libraries' included."""
    return psutil.Process().num_threads()


def _rss() -> int:
    return int(psutil.Process().memory_info().rss)


@contextmanager
def _peak_of(figure: Callable[[], int]) -> Iterator[list[int]]:
    """The largest value of *figure* while the block runs, looked at four times a second."""
    peak, done = [figure()], threading.Event()

    def look() -> None:
        while not done.wait(0.25):
            peak[0] = max(peak[0], figure())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def in_batches(keys: Iterable[int], size: int) -> Iterator[list[int]]:
    """The keys, so many at a time."""
    batch: list[int] = []
    for key in keys:
        batch.append(key)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
