"""The threads that no process waits for. That a hanging one keeps none from its end is shown by tests/e2e."""

from __future__ import annotations

import sys
import threading

import pytest

from edda_engine.threads import DaemonThreads
from tests.support import eventually


def alive(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


def test_calls_run_side_by_side_up_to_the_most_and_the_rest_in_turn() -> None:
    threads, here = DaemonThreads(2, name="pair"), threading.Barrier(3)

    def meet() -> str:
        here.wait(20)
        return threading.current_thread().name

    first = [threads.submit(meet), threads.submit(meet)]
    third = threads.submit(threading.current_thread)
    assert not third.done()
    here.wait(20)

    assert {call.result(20) for call in first} == {"pair_0", "pair_1"}
    assert third.result(20).daemon
    assert alive("pair") == 2
    threads.shutdown()
    eventually(lambda: alive("pair") == 0)


def test_an_idle_thread_is_used_again() -> None:
    threads = DaemonThreads(8, name="single")
    seen = set()
    for _ in range(5):
        seen.add(threads.submit(threading.get_ident).result(20))
        eventually(lambda: len(threads._idle) == 1)
    threads.shutdown()
    assert len(seen) == 1


def test_a_job_that_blocks_holds_up_none_of_those_put_with_it() -> None:
    threads = DaemonThreads(3, name="burst")
    gate, done = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        assert gate.wait(20)
        done.release()

    for job in (wait, done.release, wait, *[done.release] * 50):
        threads.put(job)
    assert all(done.acquire(timeout=20) for _ in range(51))
    gate.set()
    assert all(done.acquire(timeout=20) for _ in range(2))
    threads.shutdown()
    eventually(lambda: alive("burst") == 0)


def test_where_the_system_makes_no_more_threads_those_that_there_are_do_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = DaemonThreads(8, name="scarce")
    gate, done = threading.Event(), threading.Semaphore(0)
    threads.submit(done.release).result(20)
    assert done.acquire(timeout=20)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads.put(lambda: gate.wait(20))
    for _ in range(5):
        threads.put(done.release)
    gate.set()
    assert all(done.acquire(timeout=20) for _ in range(5))

    with pytest.raises(RuntimeError, match="can't start"):
        DaemonThreads(8, name="none").put(done.release)
    threads.shutdown()


def test_whatever_a_call_raises_goes_to_who_waits() -> None:
    threads = DaemonThreads(1, name="raising")
    with pytest.raises(SystemExit):
        threads.submit(sys.exit, 3).result(20)
    assert threads.submit(int, "7").result(20) == 7
    threads.shutdown()


def test_shutdown_drops_what_has_not_begun_if_asked_to_and_takes_no_more() -> None:
    threads, begun, go_on = DaemonThreads(1, name="closing"), threading.Event(), threading.Event()
    running = threads.submit(lambda: begun.set() or go_on.wait(20))  # type: ignore[func-returns-value]
    assert begun.wait(20)
    queued = threads.submit(int)

    threads.shutdown(cancel_futures=True)
    go_on.set()

    assert queued.cancelled()
    assert running.result(20)
    with pytest.raises(RuntimeError, match="'closing' were shut down"):
        threads.submit(int)
