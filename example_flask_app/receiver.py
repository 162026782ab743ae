"""Somebody who wants to know what the shop does, as a process of its own: ``python -m example_flask_app.receiver``.

It takes CloudEvents, and says so only once they are written down: killed at any moment, it has lost nothing that it
has said yes to. Now and then it refuses an event, or writes it down and hangs up without an answer, and so it gets
some of them again. Each delivery is a row here, so that one can count.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

from example_flask_app.small_server import JsonRequest, Mood, SmallServer, arguments, listening_socket

REFUSED, HUNG_UP, PROMPT = "refused", "hung up", "prompt"
_ATTRIBUTES = ("source", "id", "type", "subject")


class Journal:
    """Every delivery, in a file."""

    def __init__(self, path: Path) -> None:
        self._conn = sqlite3.connect(path, check_same_thread=False)
        self._lock = threading.Lock()
        with self._lock, self._conn:
            self._conn.execute(
                "CREATE TABLE IF NOT EXISTS delivery (seq INTEGER PRIMARY KEY, source TEXT, id TEXT, type TEXT, subject TEXT)"
            )

    def write(self, event: dict[str, Any]) -> None:
        """Note a delivery; it is kept when this returns."""
        row = [event[name] for name in _ATTRIBUTES]
        with self._lock, self._conn:
            self._conn.execute("INSERT INTO delivery (source, id, type, subject) VALUES (?, ?, ?, ?)", row)

    def read(self) -> list[dict[str, Any]]:
        """All deliveries, in their order."""
        with self._lock:
            rows = self._conn.execute("SELECT source, id, type, subject FROM delivery ORDER BY seq").fetchall()
        return [dict(zip(_ATTRIBUTES, row, strict=True)) for row in rows]


class Delivery(JsonRequest):
    """``POST`` an event; ``GET`` shows what has come."""

    journal: Journal
    mood: Mood

    def do_GET(self) -> None:
        self.answer(200, {"deliveries": self.journal.read()})

    def do_POST(self) -> None:
        manner = self.mood.draw((REFUSED, HUNG_UP), PROMPT)
        try:
            event = self.body()
            if manner == REFUSED:
                return self.answer(503, {"error": "Not now."})
            self.journal.write(event)
        except (ValueError, TypeError, KeyError, sqlite3.Error):
            return self.answer(400, {"error": "Send a CloudEvent as JSON, with a subject."})
        return self.hang_up() if manner == HUNG_UP else self.answer(202, {"status": "accepted"})


def main() -> None:
    parser = arguments("Receive events until it is killed.", port=8002)
    parser.add_argument("--journal", type=Path, default=Path("received.db"), help="where it keeps them")
    given = parser.parse_args()
    journal, mood = Journal(given.journal), Mood(given.seed, given.trouble)
    SmallServer(listening_socket(given), Delivery, journal=journal, mood=mood).serve_forever()


if __name__ == "__main__":
    main()
