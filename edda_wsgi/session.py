"""Session sharing: inside an activity the application's ordinary ``db.session`` works in the step's transaction.

How it thinks. The application's session class gets a mixin whose ``get_bind`` asks where it is called from. In a
request it answers as before. In a sync activity it answers with the connection of that attempt's transaction,
opened and begun by the first SQL. The session factory gets ``join_transaction_mode="create_savepoint"``, so
``commit()`` and ``rollback()`` there end savepoints, nothing more. In a workflow body it refuses, and in an async
activity: there already ``add()``, because what is only pending would never be flushed.

Flask-SQLAlchemy, Flask-SQLAlchemy-Lite and plain sessionmakers differ only in where the factory and the current
session are found; that is what a :class:`SessionSource` knows.
"""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, object_mapper, scoped_session, sessionmaker

from edda_engine.core.ports import current_place
from edda_engine.errors import ConfigurationError, UsageError
from edda_engine.runtime.attempts import Attempt
from edda_wsgi.joining import connection_for


class SharesTransaction:
    """Mixed into the application's session class by :func:`share`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_in_body()  # even add() alone: what is only pending would be lost without a word
        super().__init__(*args, **kwargs)

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        """The engine as before; in a sync activity or a handler of events, the connection of its transaction."""
        found: Engine | Connection = super().get_bind(*args, **kwargs)  # type: ignore[misc]
        place = current_place.get()
        if place is None:
            return connection_for(found)
        _refuse_in_body()
        assert isinstance(place, Attempt)
        if not isinstance(found, Engine) or not place.transaction.serves(found):
            return found  # a model on another bind: outside the transaction
        if place.is_async:
            raise UsageError(
                f"db.session was used in the async activity {place.activity_id!r}, where it would block the event loop."
                " Use ctx.session, with `ctx.session.add(...)` and `await ctx.session.execute(...)`, or make the activity a"
                " plain def."
            )
        return place.transaction.connection()


def _refuse_in_body() -> None:
    place = current_place.get()
    if place is not None and place.is_body:
        raise UsageError(
            f"db.session was used in the body of workflow {place.workflow_name!r}. A body is replayed and has no"
            " transaction: read and write in an @activity, and pass on what the workflow needs."
        )


def _refuse_what_nobody_flushes(session: Session, instance: object) -> None:
    """Before an object comes into a session: in an async activity, ask what its flush would use, which refuses."""
    place = current_place.get()
    if isinstance(place, Attempt) and place.is_async:
        session.get_bind(object_mapper(instance))


def share(factory: sessionmaker[Any]) -> None:
    """Make the sessions of *factory* join the transaction of an activity; safe to call again."""
    if issubclass(factory.class_, SharesTransaction):
        return
    factory.class_ = type(factory.class_.__name__, (SharesTransaction, factory.class_), {})
    factory.configure(join_transaction_mode="create_savepoint")
    event.listen(factory, "before_attach", _refuse_what_nobody_flushes)


class SessionSource(Protocol):
    """Where an application's sessions come from."""

    @property
    def uses_instance_folder(self) -> bool:
        """Whether a relative path of SQLite is one below the application's instance folder."""
        ...

    def engine(self) -> Engine:
        """The engine of the default bind; called inside an app context."""
        ...

    def install(self) -> None:
        """Share the factory; called inside an app context."""
        ...

    def current(self) -> Any:
        """The session of the current app context, made if need be."""
        ...

    def sessions(self) -> Any:
        """The sessions of one attempt of a sync activity, or of one call of a handler."""
        ...


class _ContextSessions:
    """In an activity: the session of the activity's own app context, which that context closes."""

    def __init__(self, source: SessionSource, existing: Any) -> None:
        self._source, self._existing = source, existing

    def session(self) -> Any:
        """``db.session`` of this activity."""
        return self._source.current()

    def settle(self) -> None:
        """Save what the activity left uncommitted in its session, into its transaction."""
        session = self._existing()
        if session is not None and session.in_transaction():
            session.commit()

    def discard(self) -> None:
        """Drop what is pending."""
        session = self._existing()
        if session is not None:
            session.close()


class FlaskSQLAlchemySource:
    """``db = SQLAlchemy()`` of Flask-SQLAlchemy."""

    uses_instance_folder = True

    def __init__(self, db: Any) -> None:
        self._db = db

    def engine(self) -> Engine:
        """The engine of the bind ``None``."""
        found: Engine = self._db.engine
        return found

    def install(self) -> None:
        """Share ``db.session``'s factory."""
        share(self._db.session.session_factory)

    def current(self) -> Any:
        """The scoped session's session."""
        return self._db.session()

    def sessions(self) -> _ContextSessions:
        """``db.session``."""
        return _ContextSessions(self, self._existing)

    def _existing(self) -> Any:
        registry = self._db.session.registry
        return registry() if registry.has() else None


class FlaskSQLAlchemyLiteSource:
    """``db = SQLAlchemy()`` of Flask-SQLAlchemy-Lite."""

    uses_instance_folder = True

    def __init__(self, db: Any) -> None:
        self._db = db

    def engine(self) -> Engine:
        """The engine named ``default``."""
        found: Engine = self._db.engine
        return found

    def install(self) -> None:
        """Share ``db.sessionmaker``."""
        share(self._db.sessionmaker)

    def current(self) -> Any:
        """``db.session``."""
        return self._db.session

    def sessions(self) -> _ContextSessions:
        """``db.session``; asking makes it, which opens no connection."""
        return _ContextSessions(self, self.current)


class FactorySource:
    """A plain ``sessionmaker``, or a ``scoped_session`` of one."""

    uses_instance_folder = False

    def __init__(self, factory: sessionmaker[Any], scoped: scoped_session[Any] | None) -> None:
        self._factory, self._scoped = factory, scoped

    def engine(self) -> Engine:
        """The engine that the factory is bound to."""
        bind = self._factory.kw.get("bind")
        if not isinstance(bind, Engine):
            raise ConfigurationError(
                "The sessionmaker given to EddaFlask(db=...) must be bound to an Engine: sessionmaker(engine)."
            )
        return bind

    def install(self) -> None:
        """Share the factory."""
        share(self._factory)

    def current(self) -> Any:
        """The scoped session; a plain factory has no current one."""
        return self._scoped() if self._scoped is not None else None

    def sessions(self) -> _FactorySessions:
        """One session for each attempt."""
        return _FactorySessions(self._factory, self._scoped)


class _FactorySessions:
    def __init__(self, factory: sessionmaker[Any], scoped: scoped_session[Any] | None) -> None:
        self._factory, self._scoped = factory, scoped
        self._session: Session | None = None

    def session(self) -> Session:
        """The scoped session of this thread, or one made for this attempt."""
        if self._session is None:
            self._session = self._scoped() if self._scoped is not None else self._factory()
        return self._session

    def settle(self) -> None:
        """Save what is uncommitted in the session, into the transaction."""
        session = self._existing()
        if session is not None:
            if session.in_transaction():
                session.commit()
            self._close(session)

    def discard(self) -> None:
        """Drop what is pending."""
        session = self._existing()
        if session is not None:
            self._close(session)

    def _existing(self) -> Session | None:
        if self._session is None and self._scoped is not None and self._scoped.registry.has():
            self._session = self._scoped()
        return self._session

    def _close(self, session: Session) -> None:
        session.close()
        if self._scoped is not None:
            self._scoped.remove()


def source_for(db: Any) -> SessionSource | None:
    """How to find the sessions of what was given as ``db=``.

    :raises ConfigurationError: it is nothing that makes sessions.
    """
    if db is None:
        return None
    if isinstance(db, sessionmaker):
        return FactorySource(db, None)
    if isinstance(db, scoped_session):
        return FactorySource(db.session_factory, db)
    module = type(db).__module__
    mro_modules = {kind.__module__.partition(".")[0] for kind in type(db).__mro__}
    if "flask_sqlalchemy" in mro_modules:
        return FlaskSQLAlchemySource(db)
    if "flask_sqlalchemy_lite" in mro_modules:
        return FlaskSQLAlchemyLiteSource(db)
    raise ConfigurationError(
        f"EddaFlask(db=...) takes the SQLAlchemy object of Flask-SQLAlchemy or Flask-SQLAlchemy-Lite, a sessionmaker, or a"
        f" scoped_session; this is a {type(db).__name__} of {module}."
    )
