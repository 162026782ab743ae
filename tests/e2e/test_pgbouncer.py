"""Behind PgBouncer in transaction mode, with ``LISTEN: False``: nothing needs a connection of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.pgbouncer import PROGRAM, PgBouncer
from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for
from tests.support import cannot_run

UNPREPARED = json.dumps({"connect_args": {"prepare_threshold": None}})
SETTINGS = {"listen": "false", "lock_timeout_seconds": "3", "poll_interval_seconds": "0.2"}


@pytest.fixture
def pooler(postgres_ledger: Ledger, tmp_path: Path) -> Iterator[PgBouncer]:
    if PROGRAM is None:
        cannot_run(
            "pgbouncer is not installed; Debian's package of that name brings it, and .ci/run installs it where it can"
        )
    found = PgBouncer(postgres_ledger.url, tmp_path / "pgbouncer")
    found.start()
    yield found
    found.stop()


@pytest.fixture
def pooled_shop(pooler: PgBouncer, tmp_path: Path) -> Iterator[Shop]:
    """Its processes reach the database through the pooler; the ledger looks directly."""
    found = Shop(pooler.url, tmp_path / "shop")
    yield found
    found.clean_up()


def test_orders_are_fulfilled_once_behind_a_transaction_pooler_that_restarts_and_when_a_worker_is_killed(
    postgres_ledger: Ledger, pooler: PgBouncer, pooled_shop: Shop
) -> None:
    ledger, shop = postgres_ledger, pooled_shop
    settings = {f"FLASK_EDDA_{name.upper()}": value for name, value in SETTINGS.items()}
    environment = {"FLASK_SQLALCHEMY_ENGINE_OPTIONS": UNPREPARED, **settings}
    orders = [f"{kind}:{number}" for kind in ("fulfil", "fulfil_plainly") for number in range(1, 6)]
    instance_ids = [order.replace(":", "-") for order in orders]

    killed = shop.run("flask", "work", "held:1", **environment)
    wait_for(killed, lambda: shop.runs("hold"))
    killed.kill()
    worker = shop.run("flask", "work", *orders, **environment)
    wait_for(worker, lambda: len(shop.runs("reserve")) >= 3)
    pooler.restart()
    shop.open_gate()

    wait_for(worker, lambda: ledger.have_completed([*instance_ids, "held-1"]), timeout=60)
    ledger.assert_exactly_once([*instance_ids, "held-1"])
    assert ledger.pids("held") == {worker.pid}
    worker.terminate()
    assert worker.wait() == 0
    assert "prepared statement" not in worker.log
