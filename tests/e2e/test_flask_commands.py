"""The shop under ``flask run`` and ``flask edda worker``."""

from __future__ import annotations

import os
import signal

from tests.faults.ledger import Ledger
from tests.faults.processes import Process, Shop, wait_for
from tests.support import eventually

FLASK_RUN = ("flask", "run", "--port", "0")


def test_flask_run_takes_up_an_interrupted_order_without_any_request(ledger: Ledger, shop: Shop) -> None:
    assert shop.work("fulfil:1", probe="activity.before_commit 1 kill").wait() == 9

    server = shop.run(*FLASK_RUN)

    wait_for(server, lambda: ledger.have_completed(["fulfil-1"]))
    ledger.assert_exactly_once(["fulfil-1"])
    assert ledger.pids("reserved") == {server.pid}


def test_flask_run_under_the_reloader_has_one_worker_and_takes_up_an_interrupted_order(
    ledger: Ledger, shop: Shop
) -> None:
    assert shop.work("fulfil:1", probe="activity.before_commit 1 kill").wait() == 9

    server = shop.run(*FLASK_RUN, "--reload")

    wait_for(server, lambda: ledger.have_completed(["fulfil-1"]))
    ledger.assert_exactly_once(["fulfil-1"])
    wait_for(server, lambda: ledger.live_pids() == server.children())
    assert len(ledger.workers()) == 1


def test_a_worker_runs_what_a_client_process_starts_over_http(ledger: Ledger, shop: Shop) -> None:
    worker = shop.run("flask", "edda", "worker")
    web = shop.gunicorn("-c", "python:edda_wsgi.gunicorn", workers=1, environment={"FLASK_EDDA_ROLE": "client"})

    web.post("/orders/fulfil/1")
    web.post("/orders/fulfil_plainly/1")

    wait_for(worker, lambda: ledger.have_completed(["fulfil-1", "fulfil_plainly-1"]))
    ledger.assert_exactly_once(["fulfil-1", "fulfil_plainly-1"])
    assert ledger.live_pids() == {worker.pid}
    assert ledger.pids("reserved") == {worker.pid}
    assert ledger.pids("placed") == web.children()


def held_by_a_draining_worker(shop: Shop, **settings: str) -> Process:
    """A worker that was told to stop while an activity of the order held-1 is under way."""
    shop.place("held:1")
    worker = shop.run("flask", "edda", "worker", **settings)
    wait_for(worker, lambda: shop.runs("hold"))
    worker.terminate()
    wait_for(worker, lambda: "drains" in worker.log)
    return worker


def test_flask_edda_worker_drains_when_it_is_terminated_however_often(sqlite_ledger: Ledger, sqlite_shop: Shop) -> None:
    ledger, shop = sqlite_ledger, sqlite_shop
    worker = held_by_a_draining_worker(shop)

    worker.terminate()
    shop.open_gate()
    # Until its very end, through the end of the interpreter too.
    eventually(lambda: worker.has_ended() or worker.terminate(), timeout=40, pause=0.001)

    assert worker.wait() == 0, worker.log
    assert ledger.rows()["held-1", "held"] == 1
    assert ledger.workers() == []
    assert ledger.holder("held-1") is None


def test_ctrl_c_ends_a_draining_worker_at_once_and_its_order_goes_on_elsewhere(
    postgres_ledger: Ledger, postgres_shop: Shop
) -> None:
    ledger, shop = postgres_ledger, postgres_shop
    worker = held_by_a_draining_worker(shop)

    os.kill(worker.pid, signal.SIGINT)

    assert worker.wait() == 1
    shop.open_gate()
    successor = shop.work()
    wait_for(successor, lambda: ledger.have_completed(["held-1"]))
    ledger.assert_exactly_once(["held-1"])


def test_a_worker_ends_without_an_activity_that_takes_too_long_and_another_goes_on_at_once(
    postgres_ledger: Ledger, postgres_shop: Shop
) -> None:
    ledger, shop = postgres_ledger, postgres_shop
    worker = held_by_a_draining_worker(shop, FLASK_EDDA_SHUTDOWN_SECONDS="0.2")
    sibling = shop.work()

    assert worker.wait() == 0
    wait_for(sibling, lambda: len(shop.runs("hold")) == 2)
    shop.open_gate()

    wait_for(sibling, lambda: ledger.have_completed(["held-1"]))
    ledger.assert_exactly_once(["held-1"])
    assert ledger.pids("held") == {sibling.pid}
    assert "died" not in sibling.log  # the lease was handed back
