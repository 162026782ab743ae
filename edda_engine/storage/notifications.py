"""Notifications of PostgreSQL: how one process tells the others that there is something to look for.

They carry nothing that could be lost. Who hears one asks the database, and who hears none asks it a little later.
They are sent after the commit of what they tell of and never in a transaction of the user's: transactions that
notify queue at their commits for one lock of the whole server.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, text

from edda_engine.storage.alone import is_heard, takes_plain_text

WAKE_CHANNEL = "edda_wake"
"""Something became due, or was sent. The payload is the service whose workers are to look; empty: all of them."""

OUTBOX_CHANNEL = "edda_outbox"
"""An event waits to be published, by whatever relay."""

WORKERS_CHANNEL = "edda_workers"
"""A worker has entered itself. The payload is its service."""

CHANNELS = (WAKE_CHANNEL, OUTBOX_CHANNEL, WORKERS_CHANNEL)

Hear = Callable[[str, str], None]

_NOTIFY = text("SELECT pg_notify(:channel, :payload)")


def notify(conn: Connection, channel: str, payload: str) -> None:
    """Tell whoever listens; does nothing on SQLite."""
    if conn.dialect.name == "postgresql":
        conn.execute(_NOTIFY, {"channel": channel, "payload": payload})


def post(conn: Connection, channel: str, payload: str) -> bool:
    """Send the same without waiting for anything; False if it was not sent, perhaps because an answer is still to come.

    Of what was posted the answers have to be taken, by the next post or by :func:`take_answer`, before anything else is
    asked on the connection, which commits by itself.

    :raises Exception: the connection is broken.
    """
    raw: Any = conn.connection.dbapi_connection
    driver: Any = conn.dialect.loaded_dbapi
    if conn.dialect.driver != "psycopg" or is_heard(conn.engine) or not takes_plain_text(raw, driver):
        return False
    raw.pgconn.consume_input()
    raw.pgconn.consume_input()  # if the server has closed it, the first one has read only its last words
    if not _is_answered(raw, driver):
        return False
    quoted = driver.pq.Escaping(raw.pgconn).escape_literal(payload.encode(raw.info.encoding))
    raw.pgconn.send_query(b"NOTIFY " + channel.encode() + b", " + bytes(quoted))  # one of the channels above: a name
    is_sent: bool = raw.pgconn.flush() == 0
    return is_sent


def take_answer(conn: Connection, *, within: float) -> None:
    """Wait for the answer to what was posted, for so many seconds.

    :raises Exception: there is none, or it is a refusal.
    """
    raw: Any = conn.connection.dbapi_connection
    with selectors.DefaultSelector() as selector:
        selector.register(raw.fileno(), selectors.EVENT_READ)
        while not _is_answered(raw, conn.dialect.loaded_dbapi):
            if not selector.select(within):
                raise ConnectionError(f"the server has not answered for {within:g} s")
            raw.pgconn.consume_input()


def _is_answered(raw: Any, driver: Any) -> bool:
    while not raw.pgconn.is_busy():
        answer = raw.pgconn.get_result()
        if answer is None:
            return True
        if answer.status != driver.pq.ExecStatus.COMMAND_OK:
            raise ConnectionError(raw.pgconn.error_message.decode(errors="replace").strip())
    return False


def can_listen(conn: Connection) -> bool:
    """Whether the driver tells of notifications without being asked in SQL."""
    return conn.dialect.driver in ("psycopg", "psycopg2")


def listen(conn: Connection, hear: Hear) -> None:
    """Call *hear* with channel and payload of what comes on this connection from now on, whenever it is read."""
    raw: Any = conn.connection.dbapi_connection
    if conn.dialect.driver == "psycopg":
        # What comes together with the answer to a statement is told to the handler, and to nobody who reads later.
        raw.add_notify_handler(lambda notice: hear(notice.channel, notice.payload))
    for channel in CHANNELS:
        conn.execute(text(f"LISTEN {channel}"))


def read(conn: Connection, hear: Hear) -> None:
    """Take in what has come on a connection, with a statement or since; it may have nothing to read.

    :raises ConnectionError: its end has come.
    """
    raw: Any = conn.connection.dbapi_connection
    try:
        if conn.dialect.driver == "psycopg2":
            raw.poll()
            while raw.notifies:
                notice = raw.notifies.pop(0)
                hear(notice.channel, notice.payload)
            return
        raw.pgconn.consume_input()
        while (notice := raw.pgconn.notifies()) is not None:
            hear(notice.relname.decode(), notice.extra.decode())
    except conn.dialect.loaded_dbapi.Error as error:
        raise ConnectionError(str(error).strip() or "the server closed the connection") from error
