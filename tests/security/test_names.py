"""SQL and worse in every name that a caller gives: stored as it is, or refused with a reason; never run."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from edda_engine.storage.schema import TABLE_NAMES
from edda_wsgi import ConfigurationError, WorkflowContext, activity, receive, subscribe, wait_event, workflow
from tests.integration.deliveries import rows
from tests.integration.flask_apps import Shop, open_shop
from tests.security.doors import IMPOSSIBLE, POSSIBLE, Doors, tables


@workflow(name="order.named")
async def order_named(ctx: WorkflowContext, content: Any = None) -> Any:
    return content


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as shop:
        yield shop


@pytest.fixture
def doors(shop: Shop, database_url: str) -> Iterator[Doors]:
    """At the end nothing was wrong, and every table is there."""
    with shop.app.app_context():
        order_named.options(session=None, instance_id="known", delay=3600).start({"a": 1})
    found = Doors()
    yield found
    assert found.wrong == []
    assert set(TABLE_NAMES) <= tables(database_url).keys()
    assert shop.edda.get("known").input == {"content": {"a": 1}}


def only_names(
    shop: Shop, doors: Doors, door: str, give: Callable[..., Any], stored: Callable[[str], Any], *, longest: int = 255
) -> None:
    """*give* writes a name, in a transaction of its own and in the session of a request; *stored* reads what is kept."""
    impossible = [name for name in IMPOSSIBLE if len(name) != 256 or longest == 255]
    with shop.app.app_context():
        for name in impossible:
            doors.refuses(door, name, lambda name=name: give(name, session=None))
            doors.refuses(f"{door} in a session", name, lambda name=name: give(name))
        for name in POSSIBLE:
            doors.takes(door, name, lambda name=name: (give(name, session=None), stored(name))[1], name)
        name = POSSIBLE[0] + "again"
        doors.takes(f"{door} in a session", name, lambda: (give(name), shop.db.session.commit(), stored(name))[2], name)


def last(shop: Shop, table: str, column: str) -> Any:
    (row,) = rows(shop.database_url, f"SELECT {column} FROM {table} ORDER BY seq DESC LIMIT 1")
    return row[0]


# Writing.


def test_an_instance_id_is_only_an_id(shop: Shop, doors: Doors) -> None:
    def start(name: str, **options: Any) -> None:
        order_named.options(instance_id=name, **options).start()

    only_names(shop, doors, "start(instance_id)", start, lambda name: shop.edda.get(name).instance_id)
    before = tables(shop.database_url)
    for name in POSSIBLE:
        doors.takes("cancel()", name, lambda name=name: shop.edda.cancel(name, name, session=None), True)
        doors.takes("cancel(reason)", name, lambda name=name: shop.edda.get(name).cancel_reason, name)
    with shop.app.app_context():
        for name in IMPOSSIBLE:
            for call in (shop.edda.get, shop.edda.history, shop.edda.retry, shop.edda.cancel):
                doors.finds_nothing(call.__name__, name, lambda name=name, call=call: call(name))
            doors.finds_nothing("result", name, lambda name=name: shop.edda.result(name, timeout=0))
            doors.finds_nothing("cancel", name, lambda name=name: shop.edda.cancel(name, session=None))
        for reason in ("\0", "\ud800", "x" * 100_000):
            doors.refuses("cancel(reason)", reason, lambda reason=reason: shop.edda.cancel("known", reason))
            doors.refuses(
                "cancel(reason)", reason, lambda reason=reason: shop.edda.cancel("known", reason, session=None)
            )
    assert tables(shop.database_url) == before


def test_names_of_events_and_channels_are_only_names(shop: Shop, doors: Doors) -> None:
    edda = shop.edda

    def send_event(name: str, **options: Any) -> None:
        edda.send_event(name, "/s", 1, instance_id="known", **options)

    def send_from(name: str, **options: Any) -> None:
        edda.send_event("t", name, 1, instance_id="known", **options)

    def send_to(name: str, **options: Any) -> None:
        edda.send_to("known", 1, name, **options)

    def source(_: str) -> Any:
        return json.loads(last(shop, "edda_messages", "CAST(metadata AS TEXT)"))["source"]

    def name_of(_: str) -> Any:
        return last(shop, "edda_messages", "name")

    only_names(shop, doors, "send_event(event_type)", send_event, name_of)
    only_names(shop, doors, "send_event(source)", send_from, source, longest=2000)
    only_names(shop, doors, "send_to(channel)", send_to, name_of)
    only_names(shop, doors, "publish(channel)", lambda name, **options: edda.publish(name, 1, **options), name_of)
    for name in [*POSSIBLE, *IMPOSSIBLE]:
        doors.refuses("send_to(id)", name, lambda name=name: edda.send_to(name, 1, session=None))
        doors.refuses(
            "send_event(id)", name, lambda name=name: edda.send_event("t", "/", 1, instance_id=name, session=None)
        )


def test_names_of_the_outbox_are_only_names(shop: Shop, doors: Doors) -> None:
    def giving(parameter: str) -> Callable[..., Any]:
        usual = {"event_type": "t", "source": "/s", "data": 1}
        return lambda name, **options: shop.edda.send_event_transactional(**{**usual, parameter: name}, **options)

    limits = {"event_type": 255, "source": 2000, "subject": 2000, "ordering_key": 255, "content_type": 255}
    for parameter, longest in limits.items():
        column = parameter.removeprefix("event_")
        stored = partial(last, shop, "edda_outbox", column)
        only_names(shop, doors, parameter, giving(parameter), lambda _, stored=stored: stored(), longest=longest)


# Asking.


def test_no_question_is_more_than_a_question(shop: Shop, doors: Doors) -> None:
    find = shop.edda.find_instances
    nested = {name: {name: name} for name in POSSIBLE if "." not in name}
    with shop.app.app_context():
        order_named.options(session=None, instance_id="nested", delay=3600).start(nested)

    def found(**criteria: Any) -> list[str]:
        return [instance.instance_id for instance in find(**criteria).instances]

    for name in POSSIBLE:
        doors.takes("workflow_name", name, lambda name=name: found(workflow_name=name), [])
        doors.takes("instance_id", name, lambda name=name: found(instance_id=name), [])
        doors.takes("value", name, lambda name=name: found(input_filters={"content.a": name}), [])
        if "." not in name:
            doors.takes(
                "path", name, lambda name=name: found(input_filters={f"content.{name}.{name}": name}), ["nested"]
            )
            doors.takes(
                "value", name, lambda name=name: found(input_filters={f"content.{name}": {name: name}}), ["nested"]
            )
        doors.takes("path", name, lambda name=name: found(input_filters={name: 1}), [])
        doors.refuses("status", name, lambda name=name: find(status=name))
        doors.refuses("page_token", name, lambda name=name: find(page_token=name))
        doors.takes("page_token", name, lambda name=name: find(page_token=token([EARLY, name])).instances, ())
    for name in IMPOSSIBLE:
        doors.refuses("workflow_name", name, lambda name=name: find(workflow_name=name))
        doors.refuses("instance_id", name, lambda name=name: find(instance_id=name))
        doors.refuses("status", name, lambda name=name: find(status=name))
        if name:
            doors.refuses("page_token", name, lambda name=name: find(page_token=name))
    for odd in ("\0", "\ud800"):
        doors.refuses("path", odd, lambda odd=odd: find(input_filters={f"content.{odd}": 1}))
        doors.refuses("value", odd, lambda odd=odd: find(input_filters={"content.a": odd}))
        doors.refuses("page_token", odd, lambda odd=odd: find(page_token=token([EARLY, odd])))


EARLY = "2001-01-01T00:00:00+00:00"


def token(content: Any) -> str:
    """A forged page token."""
    return base64.urlsafe_b64encode(content if isinstance(content, bytes) else json.dumps(content).encode()).decode()


def test_a_question_that_cannot_be_asked_is_refused(shop: Shop, doors: Doors) -> None:
    find = shop.edda.find_instances
    forged: list[Any] = [
        5, "x", None, [], {}, [5, 5], [None, "x"], [EARLY], [EARLY, 5], [EARLY, "x", "y"], ["2001-01-01", "x"], ["x", "x"],
        ["0001-01-01T00:00:00+14:00", "x"], ["9999-12-31T23:59:59-14:00", "x"], ["2001-01-01T00:00:00+01:00", "x"],
        {"a": 1, "b": 2}, b"[" * 100_000, b"\xff", b"",
    ]  # fmt: skip
    for content in forged[:-1]:
        doors.refuses("page_token", repr(content), lambda content=content: find(page_token=token(content)))
    values = [float("nan"), float("inf"), 2**63, -(2**63) - 1, 10**5000, object(), {1: 2}, {"a": float("nan")}]
    deep: Any = 1
    for _ in range(1000):
        deep = [deep]
    for value in [*values, deep]:
        doors.refuses("value", repr(type(value)), lambda value=value: find(input_filters={"content.a": value}))
    for limit in (0, -1, 1001, 10**30, "5", 2.5, None, True):
        doors.refuses("limit", repr(limit), lambda limit=limit: find(limit=limit))
    for moment in (
        datetime(2001, 1, 1),
        "2001",
        5,
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    ):
        doors.refuses("started_after", repr(moment), lambda moment=moment: find(started_after=moment))
        doors.refuses("started_before", repr(moment), lambda moment=moment: find(started_before=moment))
    doors.takes(
        "started_before", "now", lambda: len(find(started_before=datetime.now(UTC) + timedelta(1)).instances), 1
    )


# Running.


def test_whatever_things_are_called_workflows_run(database_url: str) -> None:
    """One workflow of every name, with steps, waits and messages of that name, in a service of such a name."""
    service = POSSIBLE[0] + '"'
    before = '"; DROP TABLE edda_history; --'

    @activity(name=before)
    def step(ctx: WorkflowContext, number: int) -> int:
        ctx.session.execute(text("INSERT INTO note (text) VALUES (:name)"), {"name": f"{ctx.instance_id} {number}"})
        return number

    async def body(ctx: WorkflowContext, name: str) -> list[Any]:
        first = await step(ctx, 1, activity_id=name)
        await subscribe(ctx, name)
        came = await wait_event(ctx, name, event_id=f"{name[:200]} event")
        told = await receive(ctx, name, message_id=f"{name[:200]} message")
        return [first, came.data, came.source, told.data]

    named = {name: workflow(name=name)(body_of(body)) for name in POSSIBLE}
    with open_shop(database_url, service_name=service) as shop:
        shop.edda.start_worker()
        with shop.app.app_context():
            for name, declared in named.items():
                declared.options(instance_id=name, session=None).start(name)
                shop.edda.send_event(name, name, name, instance_id=name, session=None)
                shop.edda.send_to(name, name, name, session=None)
        results = {name: shop.edda.result(name, timeout=60) for name in POSSIBLE}
        assert results == {name: [1, name, name, name] for name in POSSIBLE}
        assert {name: shop.edda.get(name).workflow_name for name in POSSIBLE} == {name: name for name in POSSIBLE}
        for name in POSSIBLE:
            steps = {event.activity_id for event in shop.edda.history(name)}
            assert {name, f"{name[:200]} event", f"{name[:200]} message"} <= steps
        assert len(shop.edda.find_instances(workflow_name=POSSIBLE[0]).instances) == 1
    kept = tables(database_url)
    assert set(TABLE_NAMES) <= kept.keys()
    assert kept["edda_instances"] == len(POSSIBLE)
    assert len(rows(database_url, "SELECT DISTINCT text FROM note")) == len(POSSIBLE)


def body_of(body: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own for each workflow, since one function has one name."""

    async def own(ctx: WorkflowContext, name: str) -> list[Any]:
        found: list[Any] = await body(ctx, name)
        return found

    return own


@pytest.mark.parametrize("name", [name for name in IMPOSSIBLE if name], ids=lambda name: ascii(name)[:20])
def test_what_cannot_be_a_name_is_refused_where_it_is_declared_or_set(name: str, tmp_path: Path) -> None:
    def function(ctx: WorkflowContext) -> None: ...

    for declare in (workflow, activity):
        with pytest.raises(ConfigurationError, match="without control"):
            declare(name=name)(function)
    with pytest.raises(ConfigurationError, match="SERVICE_NAME"):
        open_shop(f"sqlite:///{tmp_path / 'x.db'}", service_name=name).__enter__()
