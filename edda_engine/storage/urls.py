"""What database a URL means: by the driver that both threads and coroutines can use, or a clear refusal."""

from __future__ import annotations

from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from edda_engine.errors import ConfigurationError

_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "sqlite+aiosqlite": "sqlite",
}
"""What is meant by a URL: the same database, by the driver that both threads and coroutines can use."""


def normalized_url(url: str | URL) -> URL:
    """A URL with the driver this library needs: ``postgresql://`` means psycopg 3.

    :raises ConfigurationError: not a URL of a supported database.
    """
    try:
        made = make_url(url)
    except Exception as error:  # SQLAlchemy raises several kinds for several kinds of nonsense
        # Neither the text nor the error, which may repeat it: there may be a password in it.
        raise ConfigurationError(
            f"What was given is not a database URL ({type(error).__name__}). Examples: sqlite:///app.db,"
            " postgresql://user@host:5432/name; what has another meaning in a URL, such as / or @ in a password, is"
            " percent-encoded."
        ) from None
    if made.drivername in _DRIVERS:
        return made.set(drivername=_DRIVERS[made.drivername])
    check_backend(made.get_backend_name())
    try:
        is_async = made.get_dialect().is_async
    except SQLAlchemyError as error:
        raise ConfigurationError(
            f"SQLAlchemy knows no driver {made.drivername!r}. Use {_advised(made)}://..."
        ) from error
    if is_async:
        raise ConfigurationError(
            f"The driver {made.drivername!r} works in asyncio only, and edda uses the database from threads too. Use"
            f" {_advised(made)}://..., with which `async def` activities have an AsyncSession as well."
        )
    return made


def _advised(url: URL) -> str:
    return "sqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg"


def missing_driver(url: URL, error: ImportError) -> str:
    """What to say of a URL whose driver is not installed."""
    driver = url.get_driver_name()
    problem = f"The driver of {url.drivername!r} is not installed ({error})."
    if url.drivername == "postgresql+psycopg":
        return f"{problem} Install edda-wsgi[postgresql]."
    return f"{problem} Install {driver}, or use {_advised(url)}:// and install edda-wsgi[postgresql]."


def check_backend(name: str) -> None:
    """:raises ConfigurationError: it is no database that we know."""
    if name not in ("postgresql", "sqlite"):
        raise ConfigurationError(
            f"edda stores its state in PostgreSQL or SQLite; {name!r} is not supported."
            " Give it a database of its own with DATABASE_URL (or db_url=)."
        )
