"""With what connections are opened that are ours: with the same as the application's.

How it thinks. An engine tells its URL, but not what else it was given for connecting. It tells that whenever it connects,
so it is noted then; the service pool has always connected before an async activity does. What no URL can say to psycopg
is taken out of the URLs that are given to us.
"""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy import URL, Engine, event

from edda_engine.errors import ConfigurationError

OUR_NAME = "edda"
_NAME_BYTES = 63
_PREPARE = "prepare_threshold"
_OF_SYNC_CONNECTIONS = ("cursor_factory", "row_factory")

_noted: weakref.WeakKeyDictionary[Engine, dict[str, Any]] = weakref.WeakKeyDictionary()


def without_driver_options(url: URL) -> tuple[URL, dict[str, Any]]:
    """A URL without the parameters that psycopg wants as numbers, and those.

    :raises ConfigurationError: one is no number.
    """
    given = url.query.get(_PREPARE)
    if given is None or url.drivername != "postgresql+psycopg":
        return url, {}
    text = given if isinstance(given, str) else ",".join(given)
    if not text.isdecimal() and text.lower() != "none":
        raise ConfigurationError(
            f"{_PREPARE}={text} in the database URL: a number is needed, after how many executions a statement is prepared,"
            " or none to prepare nothing, for example behind PgBouncer."
        )
    return url.difference_update_query([_PREPARE]), {_PREPARE: int(text) if text.isdecimal() else None}


def note_parameters(engine: Engine) -> None:
    """Remember what *engine* gives to its driver; safe to call again for the same engine."""
    if engine in _noted or engine.dialect.driver != "psycopg":
        return
    _noted[engine] = {}
    of_engine = weakref.ref(engine)

    @event.listens_for(engine, "do_connect")
    def _note(_dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
        found = of_engine()
        if found is not None:
            # The very dict: listeners of the application, which may put tokens into it, can come after this one.
            _noted[found] = cparams


def connect_like(engine: Engine, made: Engine) -> None:
    """Let *made*, an engine for asyncio on the same URL, give to its driver what *engine* last gave to its own."""

    @event.listens_for(made, "do_connect")
    def _take_over(_dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
        cparams.update(
            (name, value) for name, value in _noted.get(engine, {}).items() if name not in _OF_SYNC_CONNECTIONS
        )


def name_connections(engine: Engine) -> None:
    """Let ``pg_stat_activity`` tell the engine's own connections from the application's: ``shop edda`` beside ``shop``."""

    @event.listens_for(engine, "connect")
    def _add_our_name(dbapi_connection: Any, _record: Any) -> None:
        named = getattr(getattr(dbapi_connection, "info", None), "parameter_status", None)
        if named is None:
            return  # a driver that does not tell; the name is a comfort
        before, dbapi_connection.autocommit = dbapi_connection.autocommit, True
        name = f"{named('application_name') or ''} {OUR_NAME}".strip()
        with dbapi_connection.cursor() as cursor:
            cursor.execute("SELECT set_config('application_name', %s, false)", (name[-_NAME_BYTES:],))
        dbapi_connection.autocommit = before


def shown_url(url: URL) -> str:
    """A URL as an operator may read it: without passwords, also where a driver takes them as a parameter."""
    hidden = {name: "***" for name in url.query if "pass" in name.lower()}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)
