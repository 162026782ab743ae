"""The first savepoint of a transaction is the transaction itself, so it is not sent.

How it thinks. Sessions work in savepoints, which cost a wait for the server at their beginning and at their end. The
first one usually stands where nothing was executed yet: there is nothing that it could keep. To roll back to it is to
roll back everything, and the driver begins anew by itself; to release it is to do nothing. To SQLAlchemy it is a
savepoint like any other. What the server would refuse it is still asked, so that it refuses.
"""

from __future__ import annotations

import re
from typing import Any

from edda_engine.storage.libpq import FAILED, IDLE, state_of

_STATEMENT = re.compile(r"(SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT) (sa_savepoint_\d+)")


class FirstSavepoint:
    """The savepoint of one connection, of psycopg or psycopg2, that is not sent."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._was_used = self._was_ended = False
        self._inside: str | None = None
        """The first one that was sent after it and was not released."""

    def begins(self, raw: Any, name: str) -> bool:
        """The savepoint *name* begins on the driver's connection *raw*: is it this one? Then it is kept in mind."""
        if self._name is not None or state_of(raw) != IDLE:
            return False
        self._name, self._inside, self._was_used, self._was_ended = name, None, False, False
        return True

    def ends(self, raw: Any, name: str) -> bool:
        """The savepoint *name* is released: was it this one, and is nothing to be sent? Then it is over."""
        if self._inside is not None or not self._is_sound(name, state_of(raw), is_released=True):
            return False
        self._name = None
        return True

    def stands_for(self, cursor: Any, statement: str) -> bool:
        """Whether that was all that *statement* needs; all are told, except what was done by the two above."""
        found = _STATEMENT.fullmatch(statement)
        verb, name = found.groups() if found is not None else (None, None)
        is_sound = self._is_sound(name, state_of(cursor.connection), is_released=verb == "RELEASE SAVEPOINT")
        if name is None or name != self._name:
            self._was_used = True
            if verb == "SAVEPOINT":
                self._inside = self._inside or name
            elif verb == "RELEASE SAVEPOINT" and name == self._inside:
                self._inside = None
            return False
        if not is_sound:
            return False  # the server refuses it
        self._name = None
        if verb == "ROLLBACK TO SAVEPOINT":
            cursor.connection.rollback()
        elif self._inside is not None:
            cursor.execute(f"RELEASE SAVEPOINT {self._inside}")  # as the outer one would, with all inside it
        return True

    def _is_sound(self, name: str | None, state: int, *, is_released: bool) -> bool:
        """Whether it is of that *name*, and the server would not refuse its end."""
        # By the driver, behind the back of SQLAlchemy: what was done until then is gone.
        self._was_ended = self._was_ended or (self._was_used and state == IDLE)
        return name == self._name and not self._was_ended and not (is_released and state >= FAILED)
