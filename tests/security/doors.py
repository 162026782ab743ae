"""Names that somebody would give to do harm, and how a door must answer to them.

A door is a call that takes a name. It either works with the name as it is, or refuses it with an error of ours that
says what is wrong; an error of a driver would mean that the name came further than it should.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import inspect, text

from edda_wsgi import EddaError, InstanceNotFoundError
from tests.integration.flask_apps import outside

POSSIBLE = [
    "'; DROP TABLE edda_instances; --",
    "' OR '1'='1",
    '"; DELETE FROM edda_history; --',
    'a"b',
    "a\\",
    "\\'; --",
    "$$; DROP TABLE edda_outbox; $$",
    "%s %(id)s",
    ":id",
    "?",
    "{0} {id}",
    "${id}",
    "a.b",
    "$.a",
    "[0]",
    "#-1",
    "*",
    "%",
    "_",
    "NULL",
    "-- ",
    "/* */",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    " ",
    "é",
    "e\u0301",
    "\u202eabc",
    "\ufeff",
    "😀",
    "x" * 255,
]
IMPOSSIBLE = [
    "",
    "\0",
    "a\0b",
    "\ud800",
    "a\udfff",
    "x" * 256,
    "x" * 1_000_000,
    "a\nb",
    "a\r\nb: c",
    "\x1b[2J",
    "\x7f",
    "\x85",
]
TOLD = 1500
"""No error repeats a giant."""


@dataclass
class Doors:
    """Calls that were made, and what was wrong about the answers."""

    wrong: list[str] = field(default_factory=list)

    def takes(self, door: str, name: str, call: Callable[[], Any], expected: Any) -> None:
        """It works, and gives back just this."""
        try:
            found = call()
        except Exception as error:  # whatever it is, it is reported
            self.wrong.append(f"{door} does not take {name!r:.40}: {type(error).__name__}: {error!s:.200}")
            return
        if found != expected:
            self.wrong.append(f"{door} took {name!r:.40} for {found!r:.200}")

    def refuses(self, door: str, name: str, call: Callable[[], Any]) -> None:
        """It is an error of ours, with a reason."""
        try:
            found = call()
        except EddaError as error:
            if len(str(error)) > TOLD:
                self.wrong.append(f"{door} repeats all of {name!r:.40}")
        except Exception as error:  # a driver's, or Python's own
            self.wrong.append(f"{door} lets {name!r:.40} through: {type(error).__name__}: {error!s:.200}")
        else:
            self.wrong.append(f"{door} takes {name!r:.40}: {found!r:.200}")

    def finds_nothing(self, door: str, name: str, call: Callable[[], Any]) -> None:
        """There is no instance of that name, and it says so."""
        try:
            found = call()
        except InstanceNotFoundError:
            pass
        except Exception as error:
            self.wrong.append(f"{door} lets {name!r:.40} through: {type(error).__name__}: {error!s:.200}")
        else:
            self.wrong.append(f"{door} found {found!r:.200} for {name!r:.40}")


def tables(database_url: str) -> dict[str, int]:
    """The edda_ tables that there are, and how many rows each has."""
    with outside(database_url) as engine, engine.connect() as conn:
        names = [name for name in inspect(conn).get_table_names() if name.startswith("edda_")]
        return {name: conn.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in sorted(names)}
