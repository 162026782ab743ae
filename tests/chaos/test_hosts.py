"""Two hosts, one database: one is cut off for longer than its leases last, and comes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text

from tests.chaos.hosts import CannotMakeHostsError, Host, Network
from tests.chaos.postgres import PrivatePostgres
from tests.faults.conftest import opened
from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for
from tests.support import cannot_run

LEASES = {"lock_timeout_seconds": 2, "poll_interval_seconds": 0.2}
ORDERS = ["held:1:write_first", "held:2", "thought:1"]
IDS = ["held-1", "held-2", "thought-1"]


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        cannot_run("only root can make network namespaces")
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Network())
        except CannotMakeHostsError as error:
            cannot_run(f"network namespaces cannot be made: {error}")
        yield made


@pytest.fixture
def hosts(network: Network) -> tuple[Host, Host]:
    try:
        return network.add_host("east"), network.add_host("west")
    except CannotMakeHostsError as error:
        cannot_run(f"network namespaces cannot be made: {error}")


@pytest.fixture
def ledger(network: Network) -> Iterator[Ledger]:
    with PrivatePostgres(address=network.address) as server:
        yield Ledger(server.url)


@pytest.fixture
def shop(ledger: Ledger, hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[Shop]:
    """Its processes are killed before their hosts are taken away."""
    with opened(ledger, tmp_path) as found:
        yield found


@pytest.mark.parametrize(("cut", "mend"), [(Host.pull_cable, Host.plug_in), (Host.go_deaf, Host.hear_again)])
def test_the_work_of_a_host_that_is_cut_off_is_taken_over_and_what_it_commits_late_is_refused(
    hosts: tuple[Host, Host], ledger: Ledger, shop: Shop, cut: Callable[[Host], None], mend: Callable[[Host], None]
) -> None:
    east, west = hosts
    cut_off = shop.work(*ORDERS, through=east.command, **LEASES)
    wait_for(cut_off, lambda: under_way(shop, cut_off.pid) == set(IDS))
    sibling = shop.work(through=west.command, **LEASES)
    wait_for(sibling, lambda: ledger.live_pids() == {cut_off.pid, sibling.pid})
    assert {name.partition("/")[0] for name in host_names(ledger)} == {"east", "west"}

    cut(east)

    wait_for(sibling, lambda: under_way(shop, sibling.pid) == set(IDS))  # the leases have ended
    shop.open_gate()  # the activities end on both hosts
    wait_for(sibling, lambda: ledger.have_completed(IDS))
    assert not cut_off.has_ended()

    mend(east)

    sibling.terminate()
    assert sibling.wait() == 0
    shop.place("fulfil:3")
    wait_for(cut_off, lambda: ledger.have_completed([*IDS, "fulfil-3"]), timeout=90.0)
    cut_off.terminate()
    assert cut_off.wait() == 0  # it has let its activities end, and commit if they could
    ledger.assert_exactly_once([*IDS, "fulfil-3"])
    assert ledger.pids("held") == {sibling.pid}
    assert ledger.pids("reserved") == {cut_off.pid}


def under_way(shop: Shop, pid: int) -> set[str]:
    """The instances whose activity at the gate has been begun in this process."""
    return {instance_id for what in ("hold", "think") for instance_id, where in shop.runs(what) if where == pid}


def host_names(ledger: Ledger) -> set[str]:
    """Where the registered workers say that they are."""
    with create_engine(ledger.url, poolclass=NullPool).connect() as conn:
        return set(conn.execute(text("SELECT host FROM edda_workers")).scalars())
