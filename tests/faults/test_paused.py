"""A process is stopped for longer than its lease, another takes over and finishes, and the first one wakes up."""

from __future__ import annotations

from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for

SHORT_LEASE = {"lock_timeout_seconds": 1, "poll_interval_seconds": 0.2}


def test_an_activity_that_wakes_late_runs_to_its_end_and_commits_nothing(ledger: Ledger, shop: Shop) -> None:
    zombie = shop.work("held:1", probe="activity.started 2 stop", **SHORT_LEASE)
    shop.wait_until_stopped(zombie, ledger)
    shop.open_gate()
    sibling = shop.work(**SHORT_LEASE)
    wait_for(sibling, lambda: ledger.have_completed(["held-1"]))

    shop.wake(zombie)
    wait_for(zombie, lambda: zombie.pid in {pid for _, pid in shop.runs("hold")})
    zombie.terminate()

    assert zombie.wait() == 0
    ledger.assert_exactly_once(["held-1"])
    assert ledger.pids("held") == {sibling.pid}


def test_a_lease_shorter_than_its_activity_is_kept_while_the_worker_lives(ledger: Ledger, shop: Shop) -> None:
    worker = shop.work("held:1", **SHORT_LEASE)
    wait_for(worker, lambda: shop.runs("hold"))
    first_lease_ends = ledger.lease_expires_at("held-1")
    sibling = shop.work(**SHORT_LEASE)

    wait_for(sibling, lambda: (ledger.lease_expires_at("held-1") - first_lease_ends).total_seconds() > 2)
    shop.open_gate()

    wait_for(worker, lambda: ledger.have_completed(["held-1"]))
    ledger.assert_exactly_once(["held-1"])
    assert shop.runs("hold") == [("held-1", worker.pid)]
