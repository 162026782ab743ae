"""A process is stopped for longer than its lease, another takes over and finishes, and the first one wakes up."""

from __future__ import annotations

import pytest

from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for

SHORT_LEASE = {"lock_timeout_seconds": 1, "poll_interval_seconds": 0.2}

# Where a process can stop without an open transaction that keeps the others out: the order's first step needs no
# session, its second one writes.
PAUSES = [
    "claim.after_commit 1",
    "activity.returned 1",
    "step.before_commit 1",
    "activity.started 2",
    "attempt.before_commit 1",
    "end.before_commit 1",
]


@pytest.mark.parametrize("where", PAUSES)
def test_a_process_that_wakes_after_another_has_finished_its_work_changes_nothing_and_goes_on(
    where: str, ledger: Ledger, shop: Shop
) -> None:
    zombie = shop.work("fulfil:1", probe=f"{where} stop", **SHORT_LEASE)
    shop.wait_until_stopped(zombie, ledger)
    sibling = shop.work(**SHORT_LEASE)
    wait_for(sibling, lambda: ledger.have_completed(["fulfil-1"]))
    sibling.terminate()
    assert sibling.wait() == 0

    shop.wake(zombie)
    shop.place("fulfil_plainly:2")

    wait_for(zombie, lambda: ledger.finished() == 2)
    ledger.assert_exactly_once(["fulfil-1", "fulfil_plainly-2"])
    zombie.terminate()
    assert zombie.wait() == 0


def test_what_a_paused_activity_has_written_is_refused_when_it_wakes(
    postgres_ledger: Ledger, postgres_shop: Shop
) -> None:
    # On PostgreSQL it can be stopped with its rows written and not committed. On SQLite that keeps all others out.
    ledger, shop = postgres_ledger, postgres_shop
    zombie = shop.work("fulfil:1", probe="activity.returned 2 stop", **SHORT_LEASE)
    shop.wait_until_stopped(zombie, ledger)
    sibling = shop.work(**SHORT_LEASE)
    wait_for(sibling, lambda: ledger.have_completed(["fulfil-1"]))

    shop.wake(zombie)
    zombie.terminate()

    assert zombie.wait() == 0
    ledger.assert_exactly_once(["fulfil-1"])
    assert ledger.pids("reserved") == {sibling.pid}
    assert [pid for _, pid in shop.runs("reserve")] == [zombie.pid, sibling.pid]


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
