"""The first savepoint of a transaction is the transaction itself, so it is not sent.

How it thinks. Sessions work in savepoints, which cost a wait for the server at their beginning and at their end. The
first one usually stands where nothing was executed yet: there is nothing that it could keep. To roll back to it is to
roll back everything, and the driver begins anew by itself; to release it is to do nothing. SQLAlchemy knows nothing of
this. What the server would refuse it is still asked, so that it refuses.
"""

from __future__ import annotations

import re
from typing import Any

_SAVEPOINT = re.compile(r"(SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT) (sa_savepoint_\d+)")
_IDLE, _FAILED = 0, 3
"""States of a transaction as libpq numbers them: nothing was sent yet; a statement has failed."""


class FirstSavepoint:
    """The savepoint of one connection, of psycopg or psycopg2, that is not sent."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._was_used = self._was_ended = False
        self._inside: str | None = None
        """The first one that was sent after it and was not released."""

    def stands_for(self, cursor: Any, statement: str) -> bool:
        """Whether that was all that *statement* needs."""
        state = int(cursor.connection.info.transaction_status)
        found = _SAVEPOINT.fullmatch(statement)
        verb, name = found.groups() if found is not None else (None, None)
        if verb == "SAVEPOINT" and self._name is None and state == _IDLE:
            self._name, self._inside, self._was_used, self._was_ended = name, None, False, False
            return True
        # By the driver, behind the back of SQLAlchemy: what was done until then is gone.
        self._was_ended = self._was_ended or (self._was_used and state == _IDLE)
        if name is None or name != self._name:
            self._was_used = True
            if verb == "SAVEPOINT":
                self._inside = self._inside or name
            elif verb == "RELEASE SAVEPOINT" and name == self._inside:
                self._inside = None
            return False
        if self._was_ended or (verb == "RELEASE SAVEPOINT" and state == _FAILED):
            return False  # the server refuses it
        self._name = None
        if verb == "ROLLBACK TO SAVEPOINT":
            cursor.connection.rollback()
        elif self._inside is not None:
            cursor.execute(f"RELEASE SAVEPOINT {self._inside}")  # as the outer one would, with all inside it
        return True
