"""``session=``: whatever an application calls its session joins, and what is no session is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from edda_wsgi import UsageError, WorkflowContext, workflow
from tests.integration.flask_apps import (
    FLASK_SQLALCHEMY,
    KINDS,
    LITE,
    SCOPED_SESSION,
    SESSIONMAKER,
    Shop,
    open_shop,
    saved_instances,
)


def declare_order():  # type: ignore[no-untyped-def]
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> int:
        return number * 10

    return order


def named_session(shop: Shop) -> Any:
    """What the application's code writes: ``db.session``, a scoped session itself, or a session of its own."""
    match shop.kind:
        case "flask-sqlalchemy" | "flask-sqlalchemy-lite":
            return shop.db.session
        case "scoped_session":
            return shop.db
        case _:
            return shop.db()


@pytest.mark.parametrize("kind", KINDS)
def test_starts_and_cancels_join_the_session_by_the_name_the_application_has_for_it(sqlite_url: str, kind: str) -> None:
    order = declare_order()
    with open_shop(sqlite_url, kind=kind) as shop, shop.app.app_context():
        session = named_session(shop)
        order.options(session=session, delay=3600).start(number=1)
        session.rollback()
        instance_id = order.options(session=session, delay=3600).start(number=2)
        before = saved_instances(sqlite_url)
        session.commit()
        after = saved_instances(sqlite_url)
        shop.edda.cancel(instance_id, session=session)
        session.rollback()
        undone = shop.edda.get(instance_id).status
        shop.edda.cancel(instance_id, session=session)
        session.commit()
        session.close()

        assert (before, after) == ([], [instance_id])
        assert (undone, shop.edda.get(instance_id).status) == ("pending", "cancelled")


@pytest.mark.parametrize("kind", [FLASK_SQLALCHEMY, SCOPED_SESSION])
def test_joining_a_session_leaves_no_listener(sqlite_url: str, kind: str) -> None:
    """All sessions are listened to, from the beginning."""
    order = declare_order()
    with open_shop(sqlite_url, kind=kind) as shop, shop.app.app_context():
        scoped = named_session(shop)
        order.options(session=None).start(number=1)  # from now on sessions of that class are shared
        of_class = listeners(scoped.session_factory())
        order.options(session=scoped).start(number=2)
        scoped.commit()

        assert listeners(scoped.session_factory()) == listeners(scoped()) == of_class


def listeners(session: Any) -> list[int]:
    return [len(session.dispatch.after_commit), len(session.dispatch.after_transaction_end)]


NO_SESSIONS: dict[str, Callable[[Shop], Any]] = {
    "text": lambda shop: "db.session",
    "number": lambda shop: 7,
    "engine": lambda shop: shop.engine,
    "class": lambda shop: Session,
    "factory": lambda shop: shop.db.sessionmaker,
    "db": lambda shop: shop.db,
    "false": lambda shop: False,
}


@pytest.mark.parametrize("what", NO_SESSIONS)
def test_what_is_no_session_is_refused_before_anything_is_written(sqlite_url: str, what: str) -> None:
    order = declare_order()
    with open_shop(sqlite_url, kind=LITE) as shop, shop.app.app_context():
        given = NO_SESSIONS[what](shop)
        with pytest.raises(UsageError, match=r"takes an SQLAlchemy Session, such as db\.session, or None"):
            order.options(session=given).start(number=1)
        with pytest.raises(UsageError, match=f"not {type(given).__name__}"):
            shop.edda.publish("news", {}, session=given)
        with pytest.raises(UsageError, match="Leave it out"):
            shop.edda.cancel("anything", session=given)
        shop.db.session.commit()

        assert saved_instances(sqlite_url) == []


def test_an_async_session_is_refused_with_what_to_do_instead(sqlite_url: str) -> None:
    order = declare_order()
    refused = pytest.raises(UsageError, match=r"not an AsyncSession. In an async activity leave session= out")
    with open_shop(sqlite_url, kind=SESSIONMAKER) as shop, shop.app.app_context(), refused:
        order.options(session=AsyncSession()).start(number=1)
