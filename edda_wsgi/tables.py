"""The edda_ tables, made when they are first needed.

How it thinks. A process asks until it has seen that the tables are up to date, and then never again. Who wants to change
something is told why that is not possible. A request that may need none of it is not: before it the tables are only
tried for, and after a failure not again for a while, so that one that needs no database is neither refused nor held up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from edda_engine.errors import DatabaseUnavailableError, NewerVersionError
from edda_engine.storage import migrate
from edda_engine.storage.database import Database, is_outage

_log = logging.getLogger(__name__)

AGAIN_SECONDS = 2.0
_NEWER_AGAIN_SECONDS = 60.0


class Tables:
    """What this process knows of the tables of one application.

    :param may_make: The setting AUTO_MIGRATE; without it nothing is done here.
    :param keeps_service: Whether an engine of this process goes on using its own connections.
    """

    def __init__(
        self, find_database: Callable[[], Database], *, may_make: bool, keeps_service: Callable[[], bool]
    ) -> None:
        self._find_database, self._keeps_service = find_database, keeps_service
        self._are_settled = not may_make
        self._not_before = 0.0
        self._has_warned = False
        self.after_fork()

    def after_fork(self) -> None:
        """Locks of the parent may be held by threads that are not here."""
        self._making, self._trying = threading.Lock(), threading.Lock()

    def ensure(self) -> None:
        """Create or upgrade the tables, once in each process.

        :raises DatabaseUnavailableError: the database did not answer.
        :raises NewerVersionError: a newer version of this library upgraded them.
        """
        if self._are_settled:
            return
        database = self._find_database()
        with self._making:
            if not self._are_settled:
                self._make(database)

    def _make(self, database: Database) -> None:
        try:
            migrate.upgrade(database)
        except SQLAlchemyError as error:
            if not is_outage(error):
                raise
            raise _unavailable(error) from error
        self._are_settled = True
        if not self._keeps_service():
            database.close_service()  # a process that only starts and asks needs no second pool

    def ensure_within(self, conn: Connection) -> None:
        """The same for a session that may have written already: on SQLite it is the one writer."""
        if self._are_settled:
            return
        database = self._find_database()
        if not database.is_sqlite or migrate.check(database) is None:
            self.ensure()
        else:
            migrate.upgrade_within(conn)

    def try_for(self) -> None:
        """The same before a request that may need none of it; what is in the way is logged once."""
        if self._are_settled or time.monotonic() < self._not_before:
            return
        with self._trying:
            if time.monotonic() < self._not_before:
                return
            try:
                self.ensure()
            except DatabaseUnavailableError as error:
                self._put_off(error, AGAIN_SECONDS)
            except NewerVersionError as error:
                self._put_off(error, _NEWER_AGAIN_SECONDS)

    def _put_off(self, error: Exception, seconds: float) -> None:
        self._not_before = time.monotonic() + seconds
        if not self._has_warned:
            self._has_warned = True
            _log.warning("Requests go on without the edda_ tables, and those that need them fail: %s", error)


def _unavailable(error: SQLAlchemyError) -> DatabaseUnavailableError:
    first_line = str(getattr(error, "orig", None) or error).partition("\n")[0]
    return DatabaseUnavailableError(f"The database did not answer ({first_line}). Nothing was changed; try again.")
