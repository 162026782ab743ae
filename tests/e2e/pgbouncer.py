"""A real PgBouncer in transaction mode in front of a test's database; from Debian's package."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from sqlalchemy import URL, make_url

from tests.support import eventually

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


class PgBouncer:
    """One pooler; :meth:`restart` ends all its connections."""

    def __init__(self, behind: str, folder: Path) -> None:
        self._behind, self._folder = make_url(behind), folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The database as clients of the pooler see it."""
        behind = self._behind
        return URL.create(
            "postgresql+psycopg",
            username=behind.username or "postgres",
            host="127.0.0.1",
            port=self._port,
            database=behind.database,
        ).render_as_string(False)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def start(self) -> None:
        assert PROGRAM is not None
        configuration = self._folder / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n{self._behind.database} = {self._server()} dbname={self._behind.database}"
            f" user={self._behind.username or 'postgres'}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self._port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = transaction\nmax_client_conn = 200\ndefault_pool_size = 20\n"
        )
        command = [PROGRAM, *(("-u", self._user()) if os.geteuid() == 0 else ()), str(configuration)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        eventually(self._answers)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _user(self) -> str:
        """It refuses to be root: then it is who owns the server's socket, or nobody."""
        host = Path(self._host())
        return pwd.getpwuid(host.stat().st_uid).pw_name if host.is_dir() else "nobody"

    def _host(self) -> str:
        return str(self._behind.host or self._behind.query.get("host", "/tmp"))

    def _server(self) -> str:
        port = f" port={self._behind.port}" if self._behind.port else ""
        return f"host={self._host()}{port}"

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True
