"""Servers other than gunicorn's own workers: uWSGI, waitress, and gevent, which the engine refuses."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.servers import APPLICATION, CONFIGURED, Server, gunicorn, serve
from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for
from tests.support import eventually


def uwsgi(shop: Shop, *options: str) -> Server:
    return serve(
        shop, "tests.e2e.run_uwsgi", "--http-socket", "fd://{fd}", "--master", "--processes", "2", "--enable-threads",
        "--die-on-term", "--need-app", "--module", APPLICATION, *options,
    )  # fmt: skip


@pytest.mark.parametrize(("options", "loads"), [((), 1), (("--lazy-apps",), 3)], ids=["preloaded", "lazy"])
def test_orders_are_fulfilled_once_under_uwsgi_when_a_worker_is_killed(
    sqlite_ledger: Ledger, sqlite_shop: Shop, options: tuple[str, ...], loads: int
) -> None:
    ledger, shop = sqlite_ledger, sqlite_shop
    server = uwsgi(shop, *options)
    holder = server.post("/orders/held/1")
    wait_for(server.process, lambda: shop.runs("hold"))
    assert shop.runs("hold") == [("held-1", holder)]

    server.process.kill_child(holder)
    # uWSGI starts another one; whichever worker answers takes the order over.
    wait_for(server.process, lambda: server.ask("GET", "/").is_success and len(shop.runs("hold")) == 2)
    server.post("/orders/fulfil/1")
    shop.open_gate()

    wait_for(server.process, lambda: ledger.have_completed(["held-1", "fulfil-1"]))
    ledger.assert_exactly_once(["held-1", "fulfil-1"])
    assert holder not in ledger.pids("held")
    # uWSGI's own: a worker that is told to stop while it loads the application does not.
    wait_for(server.process, lambda: server.log.count("WSGI app 0 (mountpoint='') ready") == loads)
    server.signal(signal.SIGTERM)
    assert server.process.wait() == 0
    eventually(lambda: ledger.workers() == [])


def test_orders_are_fulfilled_under_waitress_and_a_running_activity_ends_with_it(
    sqlite_ledger: Ledger, sqlite_shop: Shop
) -> None:
    ledger, shop = sqlite_ledger, sqlite_shop
    server = serve(shop, "tests.e2e.run_waitress", "{fd}")  # docs/examples/serve_waitress.py
    server.post("/orders/fulfil/1")
    wait_for(server.process, lambda: ledger.have_completed(["fulfil-1"]))
    server.post("/orders/held/2")
    wait_for(server.process, lambda: shop.runs("hold"))
    assert ledger.live_pids() == {server.process.pid}
    assert server.ask("GET", "/healthz").json()["status"] == "ok"

    server.process.terminate()
    wait_for(server.process, lambda: "drains" in server.log)
    shop.open_gate()

    assert server.process.wait() == 0
    assert ledger.workers() == []
    assert ("held-2", "hold:1") in ledger.steps()
    assert ledger.rows()["held-2", "held"] == 1


def test_the_engine_refuses_gevent_with_a_sentence_and_the_role_client_works_there(
    sqlite_ledger: Ledger, sqlite_shop: Shop
) -> None:
    ledger, shop = sqlite_ledger, sqlite_shop
    refused = gunicorn(shop, "-k", "gevent", *CONFIGURED)
    eventually(lambda: "gevent has replaced threads in this process" in refused.log, timeout=60)
    assert "Set EDDA['ROLE'] = 'client' here and run the workflows with `flask edda worker`" in refused.log
    refused.process.kill_group()
    assert ledger.workers() == []

    web = gunicorn(shop, "-k", "gevent", *CONFIGURED, FLASK_EDDA_ROLE="client")
    web.post("/orders/fulfil/1")
    worker = shop.run("flask", "edda", "worker")
    web.post("/orders/fulfil_plainly/2")

    wait_for(worker, lambda: ledger.have_completed(["fulfil-1", "fulfil_plainly-2"]))
    ledger.assert_exactly_once(["fulfil-1", "fulfil_plainly-2"])
    assert ledger.live_pids() == {worker.pid}
