"""gunicorn's life: reloads, upgrades, workers that hang. More of it is in test_gunicorn.py."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.servers import CONFIGURED, children_of, gunicorn, upgradable_gunicorn
from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for
from tests.support import eventually


@pytest.fixture
def unix() -> Iterator[Path]:
    """A socket's path; those of pytest are too long for one."""
    with tempfile.TemporaryDirectory(prefix="edda-") as folder:
        yield Path(folder) / "socket"


PATIENT = ("--graceful-timeout", "100")
OWN_CONFIGURATION = ("-c", str(Path(__file__).parents[2] / "docs/examples/gunicorn_conf.py"))


def test_a_server_with_its_own_configuration_is_reloaded_upgraded_and_terminated_and_loses_nothing(
    postgres_ledger: Ledger, postgres_shop: Shop, unix: Path
) -> None:
    ledger, shop = postgres_ledger, postgres_shop
    server = upgradable_gunicorn(
        shop, *OWN_CONFIGURATION, *PATIENT, "--preload", workers=4, unix=unix, FLASK_EDDA_SHUTDOWN_SECONDS="100"
    )
    wait_for(server.process, lambda: len(ledger.live_pids()) == 4, timeout=60)
    before = ledger.live_pids()
    server.post("/orders/held/1")
    wait_for(server.process, lambda: shop.runs("hold"))
    (_, holder) = shop.runs("hold")[0]

    # A reload: the new workers go on with everything but the activity that is under way in an old one.
    server.signal(signal.SIGHUP)
    wait_for(server.process, lambda: len(ledger.live_pids() - before) == 4, timeout=60)
    wait_for(server.process, lambda: ledger.live_pids() & before == {holder})
    server.post("/orders/fulfil/1")
    wait_for(server.process, lambda: ledger.have_completed(["fulfil-1"]))
    shop.open_gate()
    wait_for(server.process, lambda: ledger.have_completed(["held-1"]))
    assert ledger.pids("held") == {holder}
    assert ledger.pids("reserved") & before == set()

    # An upgrade: a second server on the same socket, then the first one leaves.
    wait_for(server.process, lambda: not ledger.live_pids() & before)
    first = ledger.live_pids()
    server.signal(signal.SIGUSR2)
    wait_for(server.process, lambda: len(ledger.live_pids() - first) == 4, timeout=60)
    (upgraded,) = server.masters()
    server.post("/orders/fulfil_plainly/2")
    server.process.terminate()
    assert server.process.wait() == 0
    eventually(lambda: ledger.live_pids() == children_of(upgraded))
    server.post("/orders/fulfil_plainly/3")
    eventually(lambda: ledger.have_completed(["fulfil_plainly-2", "fulfil_plainly-3"]))

    os.kill(upgraded, signal.SIGTERM)
    eventually(lambda: ledger.workers() == [])
    ledger.assert_exactly_once(["held-1", "fulfil-1", "fulfil_plainly-2", "fulfil_plainly-3"])
    assert "died" not in server.log  # every one of them has handed over


def test_a_worker_that_hangs_hands_over_before_it_is_killed_and_one_that_drains_is_left_alone(
    postgres_ledger: Ledger, postgres_shop: Shop
) -> None:
    ledger, shop = postgres_ledger, postgres_shop
    options = (*CONFIGURED, *PATIENT, "--preload", "--timeout", "3")
    server = gunicorn(shop, *options, workers=2, FLASK_EDDA_MAX_RUNNING="1", FLASK_EDDA_SHUTDOWN_SECONDS="100")
    wait_for(server.process, lambda: len(ledger.live_pids()) == 2, timeout=60)
    server.post("/orders/held/1")
    wait_for(server.process, lambda: len(shop.runs("hold")) == 1)
    server.post("/orders/held/2")
    wait_for(server.process, lambda: len(shop.runs("hold")) == 2)
    (first, draining), (second, hanging) = shop.runs("hold")

    os.kill(draining, signal.SIGTERM)
    wait_for(server.process, lambda: "drains" in server.log)
    with server.asked("/hang"):
        # gunicorn is strict with the one that hangs; the other has been silent for longer, but for the signs it gives.
        wait_for(server.process, lambda: "WORKER TIMEOUT" in server.log)
    wait_for(server.process, lambda: [each for each, _ in shop.runs("hold")].count(second) == 2, timeout=60)
    shop.open_gate()

    wait_for(server.process, lambda: ledger.have_completed([first, second]))
    ledger.assert_exactly_once([first, second])
    assert server.log.count("WORKER TIMEOUT") == 1
    assert [pid for each, pid in shop.runs("hold") if each == first] == [draining]
    assert hanging not in ledger.pids("held")
    assert "died" not in server.log


def test_a_reloader_lets_the_running_activity_end_and_starts_one_new_engine(
    sqlite_ledger: Ledger, sqlite_shop: Shop, tmp_path: Path
) -> None:
    ledger, shop, source = sqlite_ledger, sqlite_shop, tmp_path / "source.txt"
    source.touch()
    server = gunicorn(shop, *CONFIGURED, "--reload", "--reload-engine", "poll", "--reload-extra-file", str(source))
    server.post("/orders/held/1")
    wait_for(server.process, lambda: shop.runs("hold"))
    (_, holder) = shop.runs("hold")[0]

    # Changed ever again: the reloader may not have looked at it for the first time yet.
    versions = itertools.count(2_000_000_000)
    wait_for(server.process, lambda: os.utime(source, (next(versions),) * 2) or "drains" in server.log)
    shop.open_gate()

    wait_for(server.process, lambda: ledger.have_completed(["held-1"]))
    ledger.assert_exactly_once(["held-1"])
    assert ledger.pids("held") == {holder}
    wait_for(server.process, lambda: ledger.live_pids() == children_of(server.process.pid) != {holder})
