"""The shop under ``flask run`` and ``flask edda worker``."""

from __future__ import annotations

from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for
from tests.support import eventually

FLASK_RUN = ("flask", "run", "--port", "0")


def test_flask_run_takes_up_an_interrupted_order_without_any_request(ledger: Ledger, shop: Shop) -> None:
    assert shop.work("fulfil:1", probe="step.before_commit 2 kill").wait() == 9

    server = shop.run(*FLASK_RUN)

    wait_for(server, lambda: ledger.have_completed(["fulfil-1"]))
    ledger.assert_exactly_once(["fulfil-1"])
    assert ledger.pids("reserved") == {server.pid}


def test_flask_run_under_the_reloader_has_one_worker_and_takes_up_an_interrupted_order(
    ledger: Ledger, shop: Shop
) -> None:
    assert shop.work("fulfil:1", probe="step.before_commit 2 kill").wait() == 9

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


def test_flask_edda_worker_drains_when_it_is_terminated(ledger: Ledger, shop: Shop) -> None:
    shop.place("held:1")
    worker = shop.run("flask", "edda", "worker")
    wait_for(worker, lambda: shop.runs("hold"))

    worker.terminate()
    shop.open_gate()

    assert worker.wait() == 0
    assert ledger.rows()["held-1", "held"] == 1
    assert ledger.workers() == []
    assert ledger.holder("held-1") is None


def test_a_second_signal_ends_a_draining_worker_at_once_and_its_order_goes_on_elsewhere(
    ledger: Ledger, shop: Shop
) -> None:
    shop.place("held:1")
    worker = shop.run("flask", "edda", "worker")
    wait_for(worker, lambda: shop.runs("hold"))

    worker.terminate()
    eventually(lambda: worker.has_ended() or worker.terminate(), timeout=30, pause=0.2)
    shop.open_gate()

    assert worker.wait() == 1
    successor = shop.work()
    wait_for(successor, lambda: ledger.have_completed(["held-1"]))
    ledger.assert_exactly_once(["held-1"])
