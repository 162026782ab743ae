"""Serve the shop for a person to try: ``python -m example_flask_app.serve --database sqlite``, and Ctrl-C.

The orders stay in a folder, so those that Ctrl-C interrupts go on at the next start. A server that is killed is
started again, as systemd would do it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

from example_flask_app.processes import DATABASES, Manners, Shop, database, end_on_sigterm

MANNERS = Manners(packing_seconds=1.5, slow_seconds=3.0, payment_term_seconds=20.0)
LOOK_SECONDS = 0.3
READY_SECONDS = 30.0


def serve(kind: str, folder: Path, port: int) -> int:
    """Serve until Ctrl-C; the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        url = stack.enter_context(database(kind, folder))
        try:
            shop = Shop(folder, database_url=url, port=port, seed=int(time.time()), manners=MANNERS)
        except OSError as error:
            print(
                f"Port {port} cannot be used ({os.strerror(error.errno or 0)}). Choose another one with --port.",
                file=sys.stderr,
            )
            return 1
        stack.callback(shop.close)
        shop.open()
        try:
            if not _is_ready(shop):
                print(f"The server did not start. The end of its log:\n{shop.log_tail()}", file=sys.stderr)
                return 1
            print(f"The shop is open: {shop.url}")
            print(f"  database  {kind}, kept in {folder}")
            print(f"  events    {shop.receiver.url}")
            print(f"  log       {shop.log}")
            print("Stop it with Ctrl-C. Or kill it with -9 while orders move, and watch the page.", flush=True)
            return _keep_up(shop)
        except KeyboardInterrupt:
            print("\nClosing the shop ...", flush=True)
            shop.stop()
            print("Closed. Unfinished orders go on at the next start.", flush=True)
            return 0


def _is_ready(shop: Shop) -> bool:
    """Whether the server answers, given some time."""
    deadline = time.monotonic() + READY_SECONDS
    while not shop.has_ended and time.monotonic() < deadline:
        try:
            return httpx.get(shop.url, timeout=1.0).is_success
        except httpx.TransportError:
            continue  # it waits in the queue of the socket: it has waited a second already
    return False


def _keep_up(shop: Shop) -> int:
    """Start the server again whenever it ends; give up on one that cannot stay up."""
    while True:
        while not shop.has_ended:
            time.sleep(LOOK_SECONDS)
        print("The server has ended; it is started again.", flush=True)
        shop.kill()
        shop.start()
        if not _is_ready(shop):
            print(f"The server does not stay up. The end of its log:\n{shop.log_tail()}", file=sys.stderr)
            return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the example shop until Ctrl-C.")
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1 (default: %(default)s)")
    default_folder = Path(__file__).resolve().parent / "instance"
    parser.add_argument("--folder", type=Path, default=default_folder, help="where orders and logs stay")
    given = parser.parse_args()
    end_on_sigterm()
    try:
        return serve(given.database, given.folder.resolve(), given.port)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
