"""What the tests of waiting and talking share: bodies of both kinds from one text, and a look at who waits for what."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from edda_engine import EddaApp, workflow
from edda_engine.core.ports import OutgoingMessage
from edda_engine.core.status import FINISHED
from edda_engine.storage import delivery
from edda_engine.storage.messages import insert_messages
from tests.integration.engines import Gate, Tables, edda, interrupted_at, run, storage, until

KINDS = ("async", "plain")
RARELY = 60.0
"""A poll interval that no test survives: what happens in time was woken."""
PAST = "2001-01-01 00:00:00.000"


def declare(kind: str, body: Callable[..., Any]) -> Any:
    """A workflow of either kind from one text: *body* says ``yield`` where an ``async def`` one says ``await``."""
    if kind == "plain":

        @functools.wraps(body)
        def flow(ctx: Any, *args: Any, **kwargs: Any) -> Any:
            calls, value = body(ctx, *args, **kwargs), None
            while True:
                try:
                    value = calls.send(value)
                except StopIteration as end:
                    return end.value
    else:

        @functools.wraps(body)
        async def flow(ctx: Any, *args: Any, **kwargs: Any) -> Any:
            calls = body(ctx, *args, **kwargs)
            go_on = functools.partial(calls.send, None)
            while True:
                try:
                    awaitable = go_on()
                except StopIteration as end:
                    return end.value
                try:
                    go_on = functools.partial(calls.send, await awaitable)
                except BaseException as error:
                    go_on = functools.partial(calls.throw, error)

    return workflow(flow)


async def run_once(url: str, flow: Any, *args: Any, **options: Any) -> Any:
    """The result of one run."""
    async with edda(url, **options) as app:
        return await app.result(await app.start(flow, *args), timeout=20)


@asynccontextmanager
async def begun(url: str, flow: Any, *args: Any, **options: Any) -> AsyncIterator[tuple[EddaApp, str]]:
    """An application, and the id of an instance that is asleep already."""
    async with edda(url, **options) as app:
        instance_id = await app.start(flow, *args)
        await asleep(Tables(url), instance_id)
        claimer = app._running()._claimer
        await until(lambda: claimer._offered_to is not None)  # its first claim does more than any after it
        yield app, instance_id


async def left_asleep(url: str, flow: Any, *args: Any) -> str:
    """Start an instance, and stop its worker as soon as it sleeps."""
    async with begun(url, flow, *args) as (_, instance_id):
        return instance_id


async def ended_by_another(url: str, instance_id: str, **options: Any) -> Any:
    """The result, by a worker that has never seen the instance."""
    async with edda(url, **options) as app:
        return await app.result(instance_id, timeout=20)


Meanwhile = Callable[[EddaApp, str], Awaitable[Any]]


async def in_two_lives(
    url: str, gate: Gate, flow: Any, *args: Any, meanwhile: Meanwhile | None = None, **options: Any
) -> Any:
    """Start *flow*, do *meanwhile*, stop the worker while an activity is at *gate*; the result that another one gives."""
    tables = Tables(url)
    async with edda(url, **options) as app:
        instance_id = await app.start(flow, *args)
        if meanwhile is not None:
            await meanwhile(app, instance_id)
        await until(lambda: gate.reached.is_set() or tables.status(instance_id) in FINISHED)
        if not gate.reached.is_set():
            return await app.result(instance_id, timeout=0)
        await interrupted_at(gate, app)
    return await ended_by_another(url, instance_id)


def sending(*events: tuple[str, Any]) -> Meanwhile:
    """To be done meanwhile: send these events to the instance."""

    async def send(app: EddaApp, instance_id: str) -> None:
        for event_type, data in events:
            await app.send_event(event_type, "test", data, instance_id=instance_id)

    return send


async def asleep(tables: Tables, *instance_ids: str) -> None:
    """Wait until each instance waits for something and holds nothing."""

    def all_sleep() -> bool:
        found = [tables.instance(each) for each in instance_ids]
        return all(row["status"].startswith("waiting_") and row["locked_by"] is None for row in found)

    await until(all_sleep)


async def waiting_at(tables: Tables, instance_id: str, activity_id: str) -> None:
    """Wait until a body waits there, whatever else it does."""
    await until(lambda: activity_id in waits_of(tables, instance_id))


def waits_of(tables: Tables, instance_id: str) -> list[str]:
    """The ids of what an instance waits for."""
    found = tables.rows(
        "SELECT activity_id FROM edda_waits WHERE instance_id = :id ORDER BY activity_id", id=instance_id
    )
    return [row["activity_id"] for row in found]


def steps_of(tables: Tables, instance_id: str) -> list[tuple[str, str]]:
    """The id and the type of each recorded step."""
    found = tables.rows(
        "SELECT activity_id, event_type FROM edda_history WHERE instance_id = :id ORDER BY seq", id=instance_id
    )
    return [(row["activity_id"], row["event_type"]) for row in found]


def expire(tables: Tables, instance_id: str) -> None:
    """Let the time of everything that a sleeping instance waits for be up."""
    tables.execute("UPDATE edda_waits SET expires_at = :past WHERE instance_id = :id", past=PAST, id=instance_id)
    make_due(tables, instance_id)


def make_due(tables: Tables, instance_id: str) -> None:
    """Wake a sleeping instance for no reason."""
    done = tables.execute(
        "UPDATE edda_instances SET wake_at = :past WHERE instance_id = :id AND locked_by IS NULL",
        past=PAST,
        id=instance_id,
    )
    assert done == 1


def instant(value: Any) -> datetime:
    """What a column of instants holds, on either database."""
    if isinstance(value, str):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    found: datetime = value.astimezone(UTC)
    return found


def send_behind(url: str, *outgoing: OutgoingMessage, is_delivered: bool = True) -> None:
    """Send while no worker runs, and deliver as one would that dies right afterwards."""
    with storage(url) as database:
        run(database, lambda conn: insert_messages(conn, outgoing))
        if is_delivered:
            run(database, delivery.deliver)


def nothing_is_kept(tables: Tables) -> bool:
    """Whether neither a message nor a wait nor a subscription is left."""
    return all(
        tables.value(f"SELECT count(*) FROM {table}") == 0
        for table in ("edda_messages", "edda_inbox", "edda_waits", "edda_subscriptions")
    )


def repeated(seen: Sequence[Any]) -> Any:
    """What a body saw both times it ran, which must be the same."""
    live, replayed = seen
    assert live == replayed, f"{live!r} != {replayed!r}"
    assert type(live) is type(replayed)
    return live
