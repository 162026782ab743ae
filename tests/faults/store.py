"""A small store in Flask, which passes every point where a process can be hurt.

Its rows and events tell whether something was done twice. A test imports it for the workflows that it declares, and
opens it once for each life.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import insert, select
from sqlalchemy.exc import DBAPIError

from edda_engine.errors import DatabaseUnavailableError
from edda_wsgi import (
    EddaFlask,
    ReceivedEvent,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    activity,
    publish,
    receive,
    send_event_transactional,
    sleep,
    subscribe,
    wait_event,
    workflow,
)
from tests.faults.books import entries
from tests.faults.stage import Stage

T = TypeVar("T")

RESULT_SECONDS = 60.0

db = SQLAlchemy()


def write(ctx: WorkflowContext, what: str) -> None:
    db.session.execute(insert(entries).values(instance_id=ctx.instance_id, what=what, pid=os.getpid()))


def stage() -> Stage:
    found: Stage = current_app.extensions["stage"]
    return found


@activity
def store_quote(ctx: WorkflowContext, cents: int) -> int:
    """Needs no session."""
    return cents * 2


@activity
def store_reserve(ctx: WorkflowContext) -> str:
    """Writes and sends; commits in the middle, as people do."""
    send_event_transactional(ctx, "store.reserved", "store", {})
    write(ctx, "reserved")
    db.session.commit()
    return "reserved"


@activity(retry_policy=RetryPolicy(max_attempts=9, initial_interval=0.01, backoff_coefficient=1.0))
def store_charge(ctx: WorkflowContext) -> int:
    """Fails once, after it has written and committed."""
    write(ctx, "charged")
    db.session.commit()
    if ctx.attempt == 1:
        raise ConnectionError("the payment service hung up")
    return 1


@activity
async def store_label(ctx: WorkflowContext) -> str:
    """Writes through an ``AsyncSession``, and sends."""
    await send_event_transactional(ctx, "store.labelled", "store", {})
    values = {"instance_id": ctx.instance_id, "what": "labelled", "pid": os.getpid()}
    await ctx.session.execute(insert(entries).values(**values))
    return "labelled"


@workflow
async def store_fulfil(ctx: WorkflowContext) -> list[Any]:
    """Passes every point of steps and of talking; alone, and one step after the other."""
    await subscribe(ctx, "restocked")
    cents = await store_quote(ctx, 100)
    await store_reserve(ctx)
    charged = await store_charge(ctx)
    label = await store_label(ctx)
    await publish(ctx, "restocked", "shoes")
    await sleep(ctx, 0.12)
    return [cents, charged, label, (await receive(ctx, "restocked")).data]


@activity
def store_linger(ctx: WorkflowContext, until: str) -> str:
    """Takes until its lease was renewed, or until its engine is stopped, and then writes."""
    here = stage()
    here.until(lambda: here.is_draining or (until == "renewed" and here.has_passed("renew.after_commit")))
    write(ctx, "lingered")
    return until


@workflow
async def store_hold(ctx: WorkflowContext, until: str) -> str:
    await store_linger(ctx, until)
    await store_reserve(ctx)
    return until


@workflow
async def store_hurry(ctx: WorkflowContext) -> str:
    """Loses its patience once it is parked, and has to get its lease back."""
    loop = asyncio.get_running_loop()

    def lose_patience() -> None:
        with suppress(RuntimeError):  # it is lost already
            patience.reschedule(loop.time())

    try:
        async with asyncio.timeout(5.0) as patience:
            stage().when_passed("wait.after_commit", lambda: loop.call_soon_threadsafe(lose_patience))
            await wait_event(ctx, "store.never", timeout_seconds=3600)
    except TimeoutError:
        await store_reserve(ctx)
    return "hurried"


@workflow
async def store_pay(ctx: WorkflowContext) -> Any:
    paid = await wait_event(ctx, "store.paid")
    await store_reserve(ctx)
    return paid.data


@activity
def store_break(ctx: WorkflowContext) -> None:
    """Fails for good, until somebody mends it."""
    write(ctx, "mended")
    if not (stage().folder / "mended").exists():
        raise TerminalError("broken")


@workflow
async def store_mend(ctx: WorkflowContext) -> str:
    await store_reserve(ctx)
    await store_break(ctx)
    return "mended"


@workflow(event_handler=True)
async def store_return(ctx: WorkflowContext, order: int) -> int:
    """Is started by an event of its name."""
    await store_reserve(ctx)
    return order


class Store:
    """The application of one life."""

    def __init__(self, here: Stage, settings: dict[str, Any]) -> None:
        self.stage = here
        self.app = Flask("tests.faults.store")
        self.app.config["SQLALCHEMY_DATABASE_URI"] = here.books.url
        self.app.extensions["stage"] = here
        db.init_app(self.app)
        self.edda = EddaFlask(
            db=db, probe=here, role="client", events={"URL_PREFIX": "/events", "AUTH": None},
            poll_interval_seconds=0.1, recovery_interval_seconds=0.1, threads=4, **settings,
        )  # fmt: skip
        self.edda.init_app(self.app)
        here.is_at_work_on = self._is_at_work_on
        self.app.post("/orders/<instance_id>")(self._place)
        self.edda.on_event("store_return")(self._note_return)

    def _place(self, instance_id: str) -> tuple[dict[str, str], int]:
        """Start an order, with a row of the application beside it; the same request again does nothing."""
        is_placed = entries.c.instance_id == instance_id, entries.c.what == "placed"
        if db.session.execute(select(entries.c.id).where(*is_placed)).first() is None:
            store_fulfil.options(instance_id=instance_id).start()
            db.session.execute(insert(entries).values(instance_id=instance_id, what="placed", pid=os.getpid()))
        self.stage("view.before_commit")
        db.session.commit()
        self.stage("view.after_commit")
        return {"instance_id": instance_id}, 202

    def _is_at_work_on(self, instance_id: str) -> bool:
        engine = self.app.extensions["edda"]._engine
        return engine is not None and engine.is_running_here(instance_id)

    def _note_return(self, event: ReceivedEvent[Any]) -> None:
        db.session.execute(insert(entries).values(instance_id=event.id, what="returned", pid=os.getpid()))
        db.session.commit()

    def post(self, path: str, **request: Any) -> None:
        """A request of a client that sends it again until it is accepted."""
        for _ in range(20):
            if self.app.test_client().post(path, **request).status_code == 202:
                return
        raise AssertionError(f"POST {path} was never accepted")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Its engine runs."""
        self.edda.start_worker()
        try:
            yield
        finally:
            self.edda.shutdown(timeout=RESULT_SECONDS)

    def result(self, instance_id: str) -> Any:
        """What an instance has returned."""
        return self.ask(lambda: self.edda.result(instance_id, timeout=RESULT_SECONDS))

    def ask(self, ask: Callable[[], T]) -> T:
        """As a program asks, each time in a context of its own: again, if its own question has met a broken connection."""
        for _ in range(20):
            try:
                with self.app.app_context():
                    return ask()
            except (DatabaseUnavailableError, DBAPIError):
                continue
        raise AssertionError("the database never answered")


@contextmanager
def opened(here: Stage, **settings: Any) -> Iterator[Store]:
    """The store, until the end of the life."""
    store = Store(here, settings)
    try:
        yield store
    finally:
        store.edda.shutdown(timeout=0)
        with store.app.app_context():
            db.engine.dispose()
