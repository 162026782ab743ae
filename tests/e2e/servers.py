"""Web servers of several makes with the shop in them, on a socket that the test owns."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tests.faults.processes import Process, Shop

APPLICATION = "tests.e2e.server_shop:create_app()"
CONFIGURED = ("-c", "python:edda_wsgi.gunicorn")


class Server:
    """A server process, and the way to ask it."""

    def __init__(self, process: Process, *, url: str = "http://shop", unix: Path | None = None) -> None:
        self.process, self._url, self._unix = process, url, unix

    @property
    def log(self) -> str:
        return self.process.log

    def post(self, path: str) -> int:
        """Place an order; returns who answered."""
        answer = self.ask("POST", path)
        assert answer.status_code == 202, answer.text
        return int(answer.json()["pid"])

    def ask(self, method: str, path: str) -> httpx.Response:
        transport = httpx.HTTPTransport(uds=str(self._unix)) if self._unix else None
        with httpx.Client(trust_env=False, transport=transport, timeout=30.0) as client:
            return client.request(method, self._url + path)

    @contextmanager
    def asked(self, path: str) -> Iterator[None]:
        """A request is under way, and nobody waits for its answer."""
        host, _, port = self._url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n".encode())
            yield

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def masters(self) -> set[int]:
        """Its child processes that have children themselves."""
        return {child.pid for child in psutil.Process(self.process.pid).children() if child.children()}


def serve(shop: Shop, *command: str, **environment: str) -> Server:
    """Start a server; ``{fd}`` and ``{port}`` in its command stand for its socket, which listens already."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port, number = listener.getsockname()[1], listener.fileno()
        filled = [word.replace("{fd}", str(number)).replace("{port}", str(port)) for word in command]
        process = shop._start(filled, _quiet(shop, environment), pass_fds=(number,))
        return Server(process, url=f"http://127.0.0.1:{port}")


def gunicorn(shop: Shop, *options: str, workers: int = 1, **environment: str) -> Server:
    return serve(
        shop, "gunicorn", *options, "--bind", "fd://{fd}", "--workers", str(workers), APPLICATION, **environment
    )


def upgradable_gunicorn(shop: Shop, *options: str, workers: int, unix: Path, **environment: str) -> Server:
    """One that can execute itself again, which needs a socket of its own making and a module that is no package."""
    command = ["gunicorn.app.wsgiapp", *options, "--bind", f"unix:{unix}", "--workers", str(workers), APPLICATION]
    return Server(shop._start(command, _quiet(shop, environment)), unix=unix)


def children_of(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children()}


def _quiet(shop: Shop, environment: dict[str, str]) -> dict[str, str]:
    # Where gunicorn puts its control socket, if it makes one.
    return {"XDG_RUNTIME_DIR": str(shop._folder), **environment}
