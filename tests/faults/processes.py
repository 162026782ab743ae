"""Processes of the shop: started, watched by what they note, killed, stopped and resumed, each in its own group."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import httpx
import psutil

from tests.faults import forks
from tests.faults.ledger import Ledger
from tests.support import eventually

_ROOT = Path(__file__).parents[2]
_EXIT_SECONDS = 40.0


class Forked:
    """A forked process, with what is needed of the interface of ``Popen``."""

    def __init__(self, process: ForkServerProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Process:
    """One process of the shop, or a gunicorn master with its workers."""

    def __init__(self, popen: subprocess.Popen[bytes] | Forked, log: Path, base_url: str = "") -> None:
        self._popen, self._log, self._base_url = popen, log, base_url
        self.pid = popen.pid

    @property
    def log(self) -> str:
        """What it has logged; nothing if it was killed before it began to."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait(self) -> int:
        """Its exit status."""
        try:
            return self._popen.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.pid} does not end; its log:\n{self.log}") from None

    def has_ended(self) -> bool:
        return self._popen.poll() is not None

    def kill(self) -> None:
        """SIGKILL to it alone."""
        self._popen.kill()
        self._popen.wait()

    def kill_child(self, pid: int) -> None:
        """SIGKILL to one worker of this master."""
        assert pid in self.children()
        os.kill(pid, signal.SIGKILL)

    def kill_group(self) -> None:
        """SIGKILL to it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def terminate(self) -> None:
        self._popen.terminate()

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def is_stopped(self) -> bool:
        return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def children(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.pid).children()}

    def post(self, path: str) -> dict[str, object]:
        answer = self._request("POST", path)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def get(self, path: str) -> dict[str, object]:
        return self._request("GET", path).json()

    def _request(self, method: str, path: str) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=20.0) as client:
            return client.request(method, self._base_url + path)


class Shop:
    """Starts processes of the shop on one database."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir()
        self._started: list[Process] = []
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "EDDA_", "GUNICORN_"))
        } | {
            "PYTHONPATH": str(_ROOT),
            "FLASK_APP": "tests.faults.shop",
            "SHOP_DATABASE_URL": database_url,
            "SHOP_FOLDER": str(folder),
        }

    # What runs.

    def work(self, *orders: str, probe: str = "", through: Sequence[str] = (), **settings: object) -> Process:
        """A worker that first places orders, each given as ``"kind:number"``.

        :param through: A command that executes it somewhere else, such as on another host.
        """
        environment = {"SHOP_PROBE": probe, **_prefixed(settings)}
        if through:
            return self._start(["flask", "work", *orders], environment, through=through)
        return self.fork("flask", "work", *orders, **environment)

    def place(self, *orders: str) -> None:
        """Place orders from a process that ends at once."""
        assert self.fork("flask", "place", *orders).wait() == 0

    def gunicorn(self, *options: str, workers: int = 2, environment: dict[str, str] | None = None) -> Process:
        """A gunicorn master on a port that the test owns."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port, number = listener.getsockname()[1], listener.fileno()
            return self._start(
                [
                    "gunicorn",
                    "--bind",
                    f"fd://{number}",
                    "--workers",
                    str(workers),
                    *options,
                    "tests.faults.shop:create_app()",
                ],
                environment or {},
                pass_fds=(number,),
                base_url=f"http://127.0.0.1:{port}",
            )

    def run(self, *command: str, **environment: str) -> Process:
        """Any module as a command."""
        return self._start(list(command), environment)

    def fork(self, *command: str, **environment: str) -> Process:
        """Any module as a command, in a process forked from one that has imported everything."""
        log = self._folder / f"log-{len(self._started)}"
        forked = forks.fork(forks.run_module, *command, log=log, environment=self._environment | environment)
        process = Process(Forked(forked), log)
        self._started.append(process)
        return process

    # What the activities note, and the gate they wait at.

    def runs(self, what: str) -> list[tuple[str, int]]:
        """The instance and process of each run of an activity so far."""
        file = self._folder / "runs"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(line.split()[1], int(line.split()[2])) for line in lines if line.split()[0] == what]

    def wait_until_stopped(self, process: Process, ledger: Ledger) -> None:
        """Until it has stopped itself, and without a lock by which another thread of it would keep everybody out."""

        def look() -> bool:
            if not process.is_stopped():
                return False
            if ledger.can_be_written():
                return True
            process.resume()
            return False

        eventually(look, timeout=30.0, pause=0.05)

    def wake(self, process: Process) -> None:
        """Let a stopped process go on."""
        (self._folder / "awake").touch()
        process.resume()

    def open_gate(self) -> None:
        (self._folder / "gate").touch()

    def clean_up(self) -> None:
        """Kill what is left, and show what all have logged: pytest prints it if the test has failed."""
        for process in self._started:
            process.kill_group()
        for process in self._started:
            print(f"--- log of process {process.pid}:\n{process.log[-6000:]}")

    def _start(
        self,
        command: list[str],
        environment: dict[str, str],
        *,
        pass_fds: tuple[int, ...] = (),
        base_url: str = "",
        through: Sequence[str] = (),
    ) -> Process:
        log = self._folder / f"log-{len(self._started)}"
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [*through, sys.executable, "-m", *command],
                cwd=_ROOT,
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        process = Process(popen, log, base_url)
        self._started.append(process)
        return process


def wait_for(process: Process, ledger_is_as_wanted: object, *, timeout: float = 30.0) -> None:
    """Wait as :func:`eventually` does, but not for a process that has died."""
    assert callable(ledger_is_as_wanted)

    def look() -> bool:
        assert not process.has_ended(), f"process {process.pid} ended:\n{process.log}"
        return bool(ledger_is_as_wanted())

    eventually(look, timeout=timeout, pause=0.05)


def _prefixed(settings: dict[str, object]) -> dict[str, str]:
    return {f"FLASK_EDDA_{name.upper()}": str(value) for name, value in settings.items()}
