"""How ``result()`` waits: for the end that this process announces, or by looking with growing pauses.

Who waits for an instance that runs here asks the database only now and then, in case the announcement does not come:
another worker may have taken the instance over. Everybody else looks often at first.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edda_engine.client import Client
from edda_engine.errors import ResultTimeoutError
from edda_engine.outcomes import Ended, outcome_of_ending
from edda_engine.runtime.completions import Ending
from edda_engine.timers import checked_seconds

_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 1.0
_GROWTH = 1.5


class ResultWait:
    """One caller's wait for one instance: :meth:`look`, pause for :meth:`seconds` or until woken, and again.

    :raises ValueError: *timeout* is no number of seconds.
    """

    def __init__(
        self,
        client: Client,
        instance_id: str,
        *,
        timeout: float | None,
        is_running_here: Callable[[str], bool],
        wake: Callable[[], None],
    ) -> None:
        timeout = None if timeout is None else checked_seconds("result", "timeout", timeout)
        self._client, self._instance_id, self._timeout = client, instance_id, timeout
        self._is_running_here, self._wake = is_running_here, wake
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pause = 0.0
        self._ending: Ending | None = None
        self._state = "running"

    def has_ended(self, ending: Ending | None) -> None:
        """Called when the instance ends in this process; from any thread."""
        self._ending = ending
        self._wake()

    @property
    def needs_database(self) -> bool:
        """Whether the next look asks the database."""
        if self._ending is not None:
            return False
        only_looks = self._timeout is not None and self._timeout <= 0
        return only_looks or self._pause > 0 or not self._is_running_here(self._instance_id)

    def look(self) -> Ended | None:
        """The result, if it is there.

        :raises EddaError: the instance failed, was cancelled, or does not exist.
        """
        if self._ending is not None:
            return outcome_of_ending(self._ending)
        if not self.needs_database:
            return None
        found = self._client.outcome(self._instance_id)
        if isinstance(found, Ended):
            return found
        self._state = found
        return None

    def seconds(self) -> float:
        """How long to pause before the next look.

        :raises ResultTimeoutError: the time is up.
        """
        if self._is_running_here(self._instance_id):
            self._pause = _LONGEST_PAUSE_SECONDS  # its end is announced; looking is only the safety net
        else:
            self._pause = min(max(_FIRST_PAUSE_SECONDS, self._pause * _GROWTH), _LONGEST_PAUSE_SECONDS)
        if self._deadline is None:
            return self._pause
        left = min(self._pause, self._deadline - time.monotonic())
        if left <= 0:
            raise ResultTimeoutError(self._instance_id, self._timeout or 0.0, self._state)
        return left
