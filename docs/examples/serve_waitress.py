"""waitress, which hands its workflows over when it is told to stop."""

import signal
import sys
from typing import Any

import waitress
from flask import Flask

from edda_wsgi import EddaFlask


def serve(app: Flask, edda: EddaFlask, **address: Any) -> None:
    # Nobody else asks waitress to stop at SIGTERM; it ends as it does at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    waitress.serve(app, **address)
    edda.shutdown()  # running activities may end, within SHUTDOWN_SECONDS


if __name__ == "__main__":
    from shop import create_app, edda

    serve(create_app(), edda, listen="127.0.0.1:8000", threads=8)
