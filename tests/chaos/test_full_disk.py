"""The disk under a SQLite file is full: whoever writes hears so, nothing is lost, and all goes on when there is room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.faults.conftest import opened
from tests.faults.ledger import Ledger
from tests.faults.processes import Shop, wait_for
from tests.support import cannot_run, eventually

SOON = {"recovery_interval_seconds": 0.2, "poll_interval_seconds": 0.2}
FULL = "database or disk is full"
ORDERS = [f"{kind}:{number}" for kind in ("fulfil", "fulfil_plainly") for number in range(12)]
IDS = [order.replace(":", "-") for order in ORDERS]


class Disk:
    """A small one, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no room at all."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (65_536, 1):
                _write_until_full(file, b"x" * size)

    def make_room(self) -> None:
        """As it was."""
        self._filler.unlink()


def _write_until_full(file: IO[bytes], piece: bytes) -> None:
    try:
        while True:
            file.write(piece)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        cannot_run("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        cannot_run(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def ledger(disk: Disk) -> Ledger:
    return Ledger(f"sqlite:///{disk.folder / 'shop.db'}")


@pytest.fixture
def shop(ledger: Ledger, tmp_path: Path) -> Iterator[Shop]:
    """Its processes are killed before the disk is taken away."""
    with opened(ledger, tmp_path) as found:
        yield found


def test_a_full_disk_loses_nothing_and_work_goes_on_by_itself_when_there_is_room(
    disk: Disk, ledger: Ledger, shop: Shop
) -> None:
    stays = shop.work(*ORDERS, max_running=3, **SOON)
    dies = shop.work(max_running=3, **SOON)
    wait_for(stays, lambda: ledger.live_pids() == {stays.pid, dies.pid})
    wait_for(stays, lambda: ledger.finished() >= 2)

    disk.fill()

    eventually(lambda: FULL in stays.log and FULL in dies.log, timeout=60.0, pause=0.05)
    assert "Traceback" not in stays.log
    refused = shop.run("flask", "place", "fulfil:99")
    assert refused.wait() != 0
    assert FULL in refused.log
    dies.kill()
    finished = ledger.finished()
    assert finished < len(ORDERS)

    disk.make_room()

    wait_for(stays, lambda: ledger.have_completed(IDS), timeout=90.0)
    ledger.assert_exactly_once(IDS)
    wait_for(stays, lambda: ledger.live_pids() == {stays.pid})
    stays.terminate()
    assert stays.wait() == 0
