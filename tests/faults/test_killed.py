"""A process is killed; the next one, or a sibling, goes on. What happens at each point is in the fault table."""

from __future__ import annotations

import random

from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for
from tests.support import eventually

SOON = {"recovery_interval_seconds": 0.2, "poll_interval_seconds": 0.2}


def test_an_activity_runs_once_more_at_most_for_each_kill(ledger: Ledger, shop: Shop) -> None:
    assert shop.work("fulfil:1", probe="activity.returned 2 kill").wait() == 9

    second = shop.work(**SOON)

    wait_for(second, lambda: ledger.have_completed(["fulfil-1"]))
    runs = {what: len(shop.runs(what)) for what in ("quote", "reserve", "charge", "pack-1", "pack-2", "label")}
    assert runs == {"quote": 1, "reserve": 2, "charge": 2, "pack-1": 1, "pack-2": 1, "label": 1}


def test_a_failed_attempt_that_was_recorded_is_not_made_again_after_a_kill(ledger: Ledger, shop: Shop) -> None:
    assert shop.work("fulfil:1", probe="attempt.after_commit 1 kill").wait() == 9

    second = shop.work(**SOON)

    wait_for(second, lambda: ledger.have_completed(["fulfil-1"]))
    assert len(shop.runs("charge")) == 2


def test_a_sibling_takes_over_from_a_killed_worker_long_before_the_lease_ends(ledger: Ledger, shop: Shop) -> None:
    killed = shop.work("held:1")
    wait_for(killed, lambda: shop.runs("hold"))
    sibling = shop.work()
    wait_for(sibling, lambda: ledger.live_pids() == {killed.pid, sibling.pid})
    assert ledger.lease_seconds_left("held-1") > 100

    killed.kill()
    shop.open_gate()

    wait_for(sibling, lambda: ledger.have_completed(["held-1"]))
    ledger.assert_exactly_once(["held-1"])
    assert [pid for _, pid in shop.runs("hold")] == [killed.pid, sibling.pid]
    assert ledger.pids("held") == {sibling.pid}
    assert ledger.live_pids() == {sibling.pid}


def test_a_worker_that_starts_later_takes_over_from_one_that_was_killed_when_nobody_else_lived(
    ledger: Ledger, shop: Shop
) -> None:
    killed = shop.work("held:1")
    wait_for(killed, lambda: shop.runs("hold"))
    killed.kill()
    shop.open_gate()

    successor = shop.work()

    wait_for(successor, lambda: ledger.have_completed(["held-1"]))
    ledger.assert_exactly_once(["held-1"])


def test_nothing_is_lost_or_done_twice_when_workers_are_killed_at_random(ledger: Ledger, shop: Shop) -> None:
    chance = random.Random(20)
    orders = [f"{kind}:{number}" for kind in ("fulfil", "fulfil_plainly") for number in range(20)]
    instance_ids = [order.replace(":", "-") for order in orders]
    settings = {**SOON, "max_running": 3}
    workers = [shop.work(*orders, **settings), shop.work(**settings), shop.work(**settings)]
    for finished in (2, 7, 12, 17, 22, 27):
        eventually(lambda finished=finished: ledger.finished() >= finished, timeout=40, pause=0.05)  # type: ignore[misc]
        victim = workers.pop(chance.randrange(len(workers)))
        victim.kill()
        workers.append(shop.work(**settings))

    eventually(lambda: ledger.have_completed(instance_ids), timeout=60, pause=0.05)

    ledger.assert_exactly_once(instance_ids)
