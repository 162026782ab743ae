"""The database ends connections under a worker: nothing is lost, nothing done twice, and nobody restarts anything."""

from __future__ import annotations

import asyncio

import psycopg
from sqlalchemy import make_url

from edda_engine import EddaApp, WorkflowContext, workflow
from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for
from tests.faults.wire import Wire

SOON = {"recovery_interval_seconds": 0.2, "poll_interval_seconds": 0.2}


def end_all_connections(ledger: Ledger) -> int:
    """How many were ended."""
    url = make_url(ledger.url).set(drivername="postgresql").render_as_string(False)
    with psycopg.connect(url, autocommit=True) as conn:
        ended = conn.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchone()
    assert ended is not None
    return int(ended[0])


def test_an_activity_whose_connection_is_ended_in_the_middle_is_run_again(
    postgres_ledger: Ledger, postgres_shop: Shop
) -> None:
    ledger, shop = postgres_ledger, postgres_shop
    worker = shop.work("held:1:write_first", **SOON)
    wait_for(worker, lambda: shop.runs("hold"))

    assert end_all_connections(ledger) >= 2
    shop.open_gate()

    wait_for(worker, lambda: ledger.have_completed(["held-1"]))
    ledger.assert_exactly_once(["held-1"])
    assert len(shop.runs("hold")) == 2


def test_orders_go_on_by_themselves_while_their_connections_are_ended_again_and_again(
    postgres_ledger: Ledger, postgres_shop: Shop
) -> None:
    ledger, shop = postgres_ledger, postgres_shop
    orders = [f"{kind}:{number}" for kind in ("fulfil", "fulfil_plainly") for number in range(8)]
    instance_ids = [order.replace(":", "-") for order in orders]
    worker = shop.work(*orders, max_running=2, **SOON)
    for finished in (1, 4, 7, 10):
        wait_for(worker, lambda finished=finished: ledger.finished() >= finished)  # type: ignore[misc]
        end_all_connections(ledger)

    wait_for(worker, lambda: ledger.have_completed(instance_ids))
    ledger.assert_exactly_once(instance_ids)


def test_two_workers_who_lose_their_signs_of_life_at_once_do_nothing_twice(
    postgres_ledger: Ledger, postgres_shop: Shop
) -> None:
    ledger, shop = postgres_ledger, postgres_shop
    workers = [shop.work("held:1", "held:2", max_running=1, **SOON), shop.work(max_running=1, **SOON)]
    wait_for(workers[0], lambda: len(shop.runs("hold")) == 2)

    end_all_connections(ledger)
    wait_for(workers[0], lambda: end_all_connections(ledger) >= 2)
    shop.open_gate()

    wait_for(workers[1], lambda: ledger.have_completed(["held-1", "held-2"]))
    ledger.assert_exactly_once(["held-1", "held-2"])
    wait_for(workers[0], lambda: ledger.live_pids() == {worker.pid for worker in workers}, timeout=40)


def test_a_start_whose_answer_is_lost_is_run_at_once_by_the_worker_that_holds_it(postgres_url: str) -> None:
    @workflow
    async def told(ctx: WorkflowContext, number: int) -> int:
        return number

    async def main() -> list[int]:
        async with EddaApp("tests", postgres_url, poll_interval_seconds=0.1) as app:
            found = []
            for number in range(5):
                wire.lose_next()
                found.append(await app.result(await app.start(told, number), timeout=20))
            return found

    with Wire(postgres_url) as wire:
        assert asyncio.run(main()) == [0, 1, 2, 3, 4]
    assert wire.lost == 5
