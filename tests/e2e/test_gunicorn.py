"""The shop under gunicorn, in the ways people run it; workers and servers are killed, recycled and asked to stop."""

from __future__ import annotations

import pytest

from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for
from tests.support import eventually

CONFIGURED = ("-c", "python:edda_wsgi.gunicorn")
SERVERS = {
    "configured": CONFIGURED,
    "preload": (*CONFIGURED, "--preload"),
    "gthread": (*CONFIGURED, "--worker-class", "gthread", "--threads", "4"),
    "preload without the configuration": ("--preload",),
    "without the configuration": (),
}
ORDERS = [("fulfil", 1), ("fulfil_plainly", 1), ("fulfil", 2), ("fulfil_plainly", 2)]
IDS = ["held-1", *(f"{kind}-{number}" for kind, number in ORDERS)]


@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS)
def test_orders_are_fulfilled_exactly_once_when_a_gunicorn_worker_is_killed_in_the_middle(
    options: tuple[str, ...], ledger: Ledger, shop: Shop
) -> None:
    server = shop.gunicorn(*options)
    server.post("/orders/held/1")
    wait_for(server, lambda: shop.runs("hold"))
    (_, victim) = shop.runs("hold")[0]
    for kind, number in ORDERS:
        server.post(f"/orders/{kind}/{number}")

    server.kill_child(victim)
    shop.open_gate()

    # Without the configuration the successor works from its first request on.
    wait_for(server, lambda: server.get("/") and ledger.have_completed(IDS), timeout=40)
    ledger.assert_exactly_once(IDS)
    assert victim not in ledger.pids("held")


@pytest.mark.parametrize("options", [CONFIGURED, (*CONFIGURED, "--preload")], ids=["configured", "preload"])
def test_each_gunicorn_worker_is_a_worker_of_its_own_without_any_request(
    options: tuple[str, ...], ledger: Ledger, shop: Shop
) -> None:
    server = shop.gunicorn(*options, workers=3)

    wait_for(server, lambda: len(ledger.workers()) == 3)

    registered = dict(ledger.workers())
    assert len(registered) == 3
    assert set(registered.values()) == server.children()


def test_an_interrupted_order_goes_on_under_gunicorn_without_any_request(ledger: Ledger, shop: Shop) -> None:
    assert shop.work("fulfil:1", probe="activity.after_commit 1 kill").wait() == 9

    server = shop.gunicorn(*CONFIGURED)

    wait_for(server, lambda: ledger.have_completed(["fulfil-1"]))
    ledger.assert_exactly_once(["fulfil-1"])


def test_nothing_starts_without_the_configuration_before_the_first_request(ledger: Ledger, shop: Shop) -> None:
    shop.place("fulfil:1")
    server = shop.gunicorn(workers=1)
    eventually(lambda: "Booting worker" in server.log, timeout=30)
    assert ledger.workers() == []

    pid = server.get("/")["pid"]

    wait_for(server, lambda: ledger.have_completed(["fulfil-1"]))
    ledger.assert_exactly_once(["fulfil-1"])
    assert ledger.live_pids() == {pid}


def test_a_preloaded_application_that_has_used_its_database_before_the_fork_works_in_every_worker(
    ledger: Ledger, shop: Shop
) -> None:
    server = shop.gunicorn(*CONFIGURED, "--preload", environment={"SHOP_USES_DATABASE_BEFORE_FORK": "1"})

    for kind, number in ORDERS:
        server.post(f"/orders/{kind}/{number}")

    wait_for(server, lambda: ledger.have_completed(IDS[1:]))
    assert ledger.rows().pop(("none", "loaded")) == 1
    ledger.forget("none")
    ledger.assert_exactly_once(IDS[1:])


def test_sigterm_lets_a_running_activity_finish_and_hands_the_rest_over(ledger: Ledger, shop: Shop) -> None:
    server = shop.gunicorn(*CONFIGURED, workers=1)
    server.post("/orders/held/1")
    wait_for(server, lambda: shop.runs("hold"))

    server.terminate()
    eventually(lambda: "Worker exiting" in server.log, timeout=30)
    assert ("held-1", "held") not in ledger.rows()
    shop.open_gate()

    assert server.wait() == 0
    assert ledger.rows()["held-1", "held"] == 1
    assert ("held-1", "hold:1") in ledger.steps()
    assert ledger.workers() == []
    assert ledger.holder("held-1") is None
    successor = shop.work()
    wait_for(successor, lambda: ledger.have_completed(["held-1"]))
    ledger.assert_exactly_once(["held-1"])
    assert len(shop.runs("hold")) == 1


def test_an_activity_that_outlasts_the_graceful_timeout_is_taken_over_and_its_rows_are_written_once(
    ledger: Ledger, shop: Shop
) -> None:
    server = shop.gunicorn(*CONFIGURED, "--graceful-timeout", "3", workers=1)
    server.post("/orders/held/1")
    wait_for(server, lambda: shop.runs("hold"))
    sibling = shop.work()
    wait_for(sibling, lambda: len(ledger.live_pids()) == 2)

    server.terminate()
    wait_for(sibling, lambda: len(shop.runs("hold")) == 2)
    shop.open_gate()

    wait_for(sibling, lambda: ledger.have_completed(["held-1"]))
    assert server.wait() == 0
    ledger.assert_exactly_once(["held-1"])
    assert ledger.pids("held") == {sibling.pid}


def test_workers_that_are_recycled_after_a_few_requests_lose_nothing(ledger: Ledger, shop: Shop) -> None:
    server = shop.gunicorn(*CONFIGURED, "--max-requests", "3")
    pids = {
        server.post(f"/orders/{kind}/{number}")["pid"] for number in range(8) for kind in ("fulfil", "fulfil_plainly")
    }
    instance_ids = [f"{kind}-{number}" for number in range(8) for kind in ("fulfil", "fulfil_plainly")]

    wait_for(server, lambda: ledger.have_completed(instance_ids))

    ledger.assert_exactly_once(instance_ids)
    assert len(pids) > 3
    assert "died" not in server.log  # each of them has handed over


def test_a_second_server_goes_on_when_the_first_is_killed_with_all_its_workers(ledger: Ledger, shop: Shop) -> None:
    first = shop.gunicorn(*CONFIGURED)
    first.post("/orders/held/1")
    for kind, number in ORDERS:
        first.post(f"/orders/{kind}/{number}")
    wait_for(first, lambda: shop.runs("hold"))

    first.kill_group()
    shop.open_gate()
    second = shop.gunicorn(*CONFIGURED)

    wait_for(second, lambda: ledger.have_completed(IDS))
    ledger.assert_exactly_once(IDS)
    wait_for(second, lambda: ledger.live_pids() == second.children())
