"""``flask edda worker --processes N``: real processes, killed and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from tests.integration.flask_apps import outside
from tests.integration.test_flask_cli import ShopProcess, completed, note_shop, stop
from tests.support import eventually

__all__ = ["note_shop"]


def workers(database_url: str) -> set[int]:
    with outside(database_url) as engine, engine.connect() as conn:
        if not inspect(conn).has_table("edda_workers"):
            return set()
        return set(conn.execute(text("SELECT pid FROM edda_workers")).scalars())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Whatever the database: each test has processes, which cost a second each.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@contextmanager
def supervised(shop: ShopProcess, database_url: str) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    shop.run("edda", "upgrade")
    supervisor = shop.begin("edda", "worker", "--processes", "2")
    try:
        eventually(lambda: len(workers(database_url)) == 2, timeout=90)
        yield supervisor, workers(database_url)
    finally:
        if supervisor.poll() is None:
            supervisor.kill()
            supervisor.communicate(timeout=20)


@on_sqlite
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_all_stop_cleanly_with_their_supervisor(note_shop: ShopProcess, database_url: str, number: int) -> None:
    with supervised(note_shop, database_url) as (supervisor, pids):
        status, told = stop(supervisor, number)
        assert (status, [pid for pid in pids if is_alive(pid)]) == (0, []), told
        assert workers(database_url) == set()


@on_sqlite
def test_ctrl_c_again_ends_them_all_at_once_and_says_so_by_its_status(
    note_shop: ShopProcess, database_url: str
) -> None:
    with supervised(note_shop, database_url) as (supervisor, pids):
        note_shop.run("edda", "start", "take_note", "--input", '{"text": "slow", "seconds": 300}')
        eventually(note_shop.mark.exists, timeout=40)
        eventually(lambda: supervisor.poll() is not None or supervisor.send_signal(signal.SIGINT), pause=0.2)
        supervisor.communicate(timeout=20)
        assert supervisor.returncode == 1
        assert not any(is_alive(pid) for pid in pids)


@on_sqlite
def test_a_worker_that_is_killed_is_started_again_and_the_work_goes_on(
    note_shop: ShopProcess, database_url: str
) -> None:
    with supervised(note_shop, database_url) as (_, before):
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        note_shop.run("edda", "start", "take_note", "--input", '{"text": "a"}', "--instance-id", "n")
        eventually(lambda: completed(database_url) == ["n"], timeout=60)
        eventually(lambda: len({pid for pid in workers(database_url) if is_alive(pid)} - before) == 2, timeout=60)


@on_sqlite
def test_workers_whose_supervisor_is_killed_stop_by_themselves(note_shop: ShopProcess, database_url: str) -> None:
    with supervised(note_shop, database_url) as (supervisor, pids):
        supervisor.kill()
        eventually(lambda: not any(is_alive(pid) for pid in pids), timeout=40)
        supervisor.communicate(timeout=20)
        assert workers(database_url) == set()
