"""Waking a thread that waits, and telling it something once."""

from __future__ import annotations

import threading
import time

import pytest

from edda_engine.bells import Bell, Reply


def test_a_bell_that_was_rung_before_ends_the_next_wait_and_only_that() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()  # twice is as good as once

    assert bell.wait(0)
    assert not bell.wait(0)
    assert not bell.wait(-1.0)


def test_a_bell_wakes_the_thread_that_waits_each_time_it_is_rung() -> None:
    bell, heard = Bell(), threading.Semaphore(0)

    def listen() -> None:
        for _ in range(100):
            assert bell.wait(20)
            heard.release()

    listener = threading.Thread(target=listen)
    listener.start()
    for _ in range(100):
        bell.ring()
        assert heard.acquire(timeout=20)
    listener.join(20)
    assert not listener.is_alive()


def test_a_bell_that_many_ring_at_once_breaks_for_none_of_them() -> None:
    bell, errors = Bell(), []

    def ring() -> None:
        try:
            for _ in range(10_000):
                bell.ring()
        except BaseException as error:
            errors.append(error)

    ringers = [threading.Thread(target=ring) for _ in range(4)]
    for ringer in ringers:
        ringer.start()
    while any(ringer.is_alive() for ringer in ringers):
        bell.wait(0.001)
    assert errors == []


def test_a_reply_is_the_value_that_was_said_or_the_exception_raised() -> None:
    reply: Reply[int] = Reply()
    threading.Thread(target=lambda: (time.sleep(0.05), reply.say(7))).start()
    assert reply.wait(20)
    assert reply.value() == 7

    refused: Reply[int] = Reply()
    refused.say(TimeoutError("of the database"))
    assert refused.wait(0)
    with pytest.raises(TimeoutError, match="of the database"):
        refused.value()
