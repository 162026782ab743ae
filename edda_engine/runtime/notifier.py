"""Tells the workers of other processes, after a commit, that there is something to do.

How it thinks. A request's thread leaves a note; a thread of ours sends it, so that no commit of a user waits for
a notification and no transaction of a user contains one. Many notes within a few milliseconds become few: the first is
sent at once, what comes meanwhile a moment later. The thread and its connection are made for the first note and end
when there has been none for a while, so a process that seldom starts something holds nothing. While the thread has its
connection and nothing to do, the request puts the note on the wire itself, which is quicker than to wake somebody for it;
the answer is taken by whoever comes next. Beside an engine no connection is kept: one of the engine's is used for a moment, so
that its process needs no more than it says.

A note may be lost, with the process or the connection. Then the workers find the work when they next look by
themselves. On SQLite nothing is sent: there every process sees that the file has changed.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from edda_engine.storage.database import Database
from edda_engine.storage.notifications import OUTBOX_CHANNEL, WAKE_CHANNEL, notify, post, take_answer

_log = logging.getLogger(__name__)

TOGETHER_SECONDS = 0.01
IDLE_SECONDS = 5.0
_AT_EXIT_SECONDS = 1.0
_ANSWER_SECONDS = 5.0

_Notes = set[tuple[str, str]]
"""Channels and payloads."""

_everywhere: weakref.WeakSet[Notifier] = weakref.WeakSet()
_beginning = threading.Lock()


class Notifier:
    """Sends notifications for one database, found when there is one to send; call it from any thread."""

    def __init__(self, find_database: Callable[[], Database], *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._find_database, self._idle_seconds = find_database, idle_seconds
        self._engine_pid: int | None = None
        self._pid = 0
        self._begin_anew()
        _everywhere.add(self)

    @property
    def is_beside_engine(self) -> bool:
        """Set by the engine while it runs; true in its process, and not in a child's."""
        return self._engine_pid == os.getpid()

    @is_beside_engine.setter
    def is_beside_engine(self, is_running: bool) -> None:
        self._engine_pid = os.getpid() if is_running else None

    def notify(self, service: str) -> None:
        """Let the workers of *service*, or of all if it is empty, look for work soon; returns at once."""
        self._note(WAKE_CHANNEL, service)

    def notify_relays(self) -> None:
        """Let the relays look for events to publish soon; returns at once."""
        self._note(OUTBOX_CHANNEL, "")

    def close(self, timeout: float = _AT_EXIT_SECONDS) -> None:
        """Send what is noted, within *timeout* seconds, and end the thread; a later note begins another one."""
        if self._pid != os.getpid():
            return
        with self._changed:
            thread = self._thread
            self._is_closing = thread is not None
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout)

    def _note(self, channel: str, payload: str) -> None:
        if self._find_database().is_sqlite:
            return
        if self._pid != os.getpid():  # a child of fork(): the thread is the parent's
            with _beginning:
                if self._pid != os.getpid():
                    self._begin_anew()
        with self._changed:
            if self._post(channel, payload):
                return
            self._noted.add((channel, payload))
            if self._thread is None:
                self._start_thread()
            self._changed.notify_all()

    def _begin_anew(self) -> None:
        self._changed = threading.Condition()
        self._noted: _Notes = set()
        self._posted: _Notes = set()
        """What was sent last by who noted it; the server has answered, or will."""
        self._posted_at = 0.0
        self._idle: Connection | None = None
        """The thread's, while it waits for notes."""
        self._is_closing = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()  # last: from here on another thread takes all of it for this process's own

    def _post(self, channel: str, payload: str) -> bool:
        """Send a note from here, without waiting; False if that is left to the thread."""
        now = time.monotonic()
        if self._idle is None or self.is_beside_engine or now - self._posted_at < TOGETHER_SECONDS:
            return False
        try:
            is_posted = post(self._idle, channel, payload)
        except Exception:  # it broke while it was idle, or what was posted last was refused
            self._noted |= self._posted
            self._posted = set()
            return False
        if is_posted:
            self._posted, self._posted_at = {(channel, payload)}, now
        return is_posted

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="edda-notifier", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending and begins no more threads
            self._noted.clear()
            return
        self._thread = thread

    def _work(self) -> None:
        conn: Connection | None = None
        try:
            while any(notes := self._next_notes(conn)):
                conn = self._send(conn, *notes)
                if conn is not None and self.is_beside_engine:
                    conn.close()  # back into the pool
                    conn = None
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closing, TOGETHER_SECONDS)
        finally:
            with self._changed:
                if self._thread is threading.current_thread():
                    self._thread, self._is_closing = None, False
            _let_go(conn)

    def _next_notes(self, conn: Connection | None) -> tuple[_Notes, _Notes]:
        """Wait for notes; with them comes what was posted meanwhile.

        None of either means that the thread is to end, and that the next note needs another one.
        """
        with self._changed:
            self._idle = conn
            self._changed.wait_for(lambda: self._noted or self._is_closing, self._idle_seconds)
            self._idle = None
            notes, posted, self._noted, self._posted = self._noted, self._posted, set(), set()
            if not notes and not posted:
                self._thread, self._is_closing = None, False
            return notes, posted

    def _send(self, conn: Connection | None, notes: _Notes, posted: _Notes) -> Connection | None:
        if conn is not None and posted:
            try:
                take_answer(conn, within=_ANSWER_SECONDS)
            except Exception as error:
                _log.debug("A notification was not answered, and is sent again: %s", error)
                _let_go(conn)
                conn, notes = None, notes | posted
        for channel, payload in notes:
            conn = self._send_one(conn, channel, payload)
        return conn

    def _send_one(self, conn: Connection | None, channel: str, payload: str) -> Connection | None:
        for _ in range(2):  # the first connection may be one that broke while it was idle
            try:
                if conn is None:
                    conn = self._find_database().autocommitting()
                notify(conn, channel, payload)
                return conn
            except Exception as error:  # a pool may be given functions of the user's that connect
                _log.debug("A notification could not be sent; the work is found at the next look: %s", error)
                _let_go(conn)
                conn = None
        return None


def _let_go(conn: Connection | None) -> None:
    """Close the connection itself, instead of keeping it open in the pool."""
    if conn is not None:
        with suppress(SQLAlchemyError):
            conn.invalidate()
        with suppress(SQLAlchemyError):
            conn.close()


@atexit.register
def _send_the_last() -> None:
    for notifier in list(_everywhere):
        notifier.close()
