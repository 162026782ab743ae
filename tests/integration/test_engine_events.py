"""Events: who gets them, what of them, until when, and the same on replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from edda_engine import (
    EddaApp,
    PayloadError,
    ReceivedEvent,
    SyncWorkflowContext,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    wait_event,
    workflow,
)
from tests.integration.engines import Gate, Tables, edda
from tests.integration.talks import (
    KINDS,
    RARELY,
    asleep,
    begun,
    declare,
    in_two_lives,
    make_due,
    repeated,
    sending,
)

LIMIT = 1_000_000


class Payment(BaseModel):
    order_id: int
    amount: Decimal


@dataclass
class Parcel:
    number: str
    sent_at: datetime


async def told(url: str, flow: Any, *events: tuple[str, Any], **options: Any) -> Any:
    """The result of an instance that is asleep when each of the events is sent."""
    tables = Tables(url)
    async with edda(url, **options) as app:
        instance_id = await app.start(flow)
        for event_type, data in events:
            await asleep(tables, instance_id)
            await app.send_event(event_type, "test", data)
        return await app.result(instance_id, timeout=20)


# What is received.


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_arrives_with_everything_that_was_sent_and_when(database_url: str, kind: str) -> None:
    received: list[ReceivedEvent[Any]] = []

    def waits(ctx: Any) -> Any:
        received.append((yield wait_event(ctx, "order.paid")))

    flow = declare(kind, waits)
    before = datetime.now(UTC)
    asyncio.run(told(database_url, flow, ("order.paid", {"amount": 3}), poll_interval_seconds=RARELY))
    (event,) = received
    assert event.data == {"amount": 3}
    assert (event.type, event.source) == ("order.paid", "test")
    assert event.id
    assert event.time is not None
    assert before - timedelta(seconds=1) <= event.time <= datetime.now(UTC)
    assert event.time.utcoffset() == timedelta(0)
    assert (event.subject, event.datacontenttype, dict(event.extensions)) == (None, "application/json", {})
    metadata = event.metadata
    assert (metadata.type, metadata.source, metadata.id) == (event.type, event.source, event.id)
    assert (metadata.time, metadata.subject, metadata.datacontenttype) == (event.time, None, "application/json")


def test_the_id_that_the_sender_gets_is_the_id_of_the_event(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> str:
        return (await wait_event(ctx, "paid")).id

    async def main() -> tuple[str, str]:
        async with begun(database_url, waits) as (app, instance_id):
            sent = await app.send_event("paid", "test", None)
            return sent, await app.result(instance_id, timeout=20)

    sent, received = asyncio.run(main())
    assert sent == received


OF_ALL_KINDS = [
    {"nested": {"list": [1, 2.5, None, True, "é\u2028"]}, "": "empty key"},
    [1, [2, [3]]], "text", "", 7, 5.0, -0.25, 2**63, 10**30, True, False, None, b"\x00\xff binary", b"", [], {},
]  # fmt: skip


def test_data_of_any_kind_arrives_as_it_was_sent_and_on_replay_too(database_url: str) -> None:
    gate = Gate()
    seen: list[list[Any]] = []

    @activity
    async def at_the_gate(ctx: WorkflowContext) -> None:
        await gate.hold_async()

    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        seen.append([(await wait_event(ctx, "paid")).data for _ in OF_ALL_KINDS])
        await at_the_gate(ctx)

    meanwhile = sending(*(("paid", data) for data in OF_ALL_KINDS))
    asyncio.run(in_two_lives(database_url, gate, waits, meanwhile=meanwhile))
    assert repeated(seen) == OF_ALL_KINDS
    assert [type(data) for data in seen[1]] == [type(data) for data in OF_ALL_KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_sees_an_equal_event(database_url: str, kind: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def waits(ctx: Any) -> Any:
        seen.append((yield wait_event(ctx, "paid", 60)))
        yield at_the_gate(ctx)

    flow = declare(kind, waits)

    async def send(app: EddaApp, instance_id: str) -> None:
        await asleep(Tables(database_url), instance_id)
        await app.send_event("paid", "test", {"amount": 3})

    asyncio.run(in_two_lives(database_url, gate, flow, meanwhile=send))
    assert isinstance(repeated(seen), ReceivedEvent)


def test_an_event_is_immutable(database_url: str) -> None:
    refusals: list[type[Exception]] = []

    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        event = await wait_event(ctx, "paid")
        changes: list[Callable[[], Any]] = [
            lambda: setattr(event, "data", 1),
            lambda: setattr(event, "source", "me"),
            lambda: setattr(event.metadata, "source", "me"),
            lambda: event.extensions.__setitem__("a", 1),  # type: ignore[attr-defined]
            lambda: setattr(event, "anything", 1),
        ]
        for change in changes:
            try:
                change()
            except (AttributeError, TypeError) as error:
                refusals.append(type(error))

    asyncio.run(told(database_url, waits, ("paid", {"amount": 3})))
    assert len(refusals) == 5


MODELS: list[tuple[Any, Any, Any]] = [
    (Payment, {"order_id": 7, "amount": "2.50"}, Payment(order_id=7, amount=Decimal("2.50"))),
    (Parcel, {"number": "p1", "sent_at": "2099-01-01T12:00:00Z"}, Parcel("p1", datetime(2099, 1, 1, 12, tzinfo=UTC))),
    (list[Payment], [{"order_id": 7, "amount": 1}], [Payment(order_id=7, amount=Decimal(1))]),
    (int, 5, 5),
    (bytes, b"\x00\xff", b"\x00\xff"),
    (Any, {"a": 1}, {"a": 1}),
]


@pytest.mark.parametrize("kind", KINDS)
def test_data_is_of_the_model_given_and_on_replay_too(database_url: str, kind: str) -> None:
    gate = Gate()
    seen: list[list[Any]] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def waits(ctx: Any) -> Any:
        found = []
        for model, _, _ in MODELS:
            event = yield wait_event(ctx, "paid", model=model)
            found.append(event.data)
        seen.append(found)
        yield at_the_gate(ctx)

    flow = declare(kind, waits)
    meanwhile = sending(*(("paid", data) for _, data, _ in MODELS))
    asyncio.run(in_two_lives(database_url, gate, flow, meanwhile=meanwhile))
    assert repeated(seen) == [expected for _, _, expected in MODELS]


MISFITS = [{"order_id": "seven", "amount": 1}, {"order_id": 7}, [1], None, b"\xff\x00", b'{"order_id": 7}', "text"]


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_does_not_fit_the_model_is_a_clear_error_that_the_body_can_catch(
    database_url: str, kind: str
) -> None:
    """Live and on replay the same; the event is used up, and the next one is taken."""
    gate = Gate()
    seen: list[list[str]] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def waits(ctx: Any) -> Any:
        problems = []
        for _ in MISFITS:
            try:
                yield wait_event(ctx, "paid", model=Payment)
            except PayloadError as error:
                problems.append(str(error))
        seen.append(problems)
        event = yield wait_event(ctx, "paid", model=Payment)
        yield at_the_gate(ctx)
        return event.data.order_id

    flow = declare(kind, waits)
    meanwhile = sending(*(("paid", data) for data in MISFITS), ("paid", {"order_id": 7, "amount": 1}))
    assert asyncio.run(in_two_lives(database_url, gate, flow, meanwhile=meanwhile)) == 7
    problems = repeated(seen)
    assert len(problems) == len(MISFITS)
    for problem in problems:
        assert "'paid'" in problem
        assert "fit" in problem


def test_data_that_does_not_fit_fails_a_workflow_that_does_not_catch_it(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        await wait_event(ctx, "paid", model=Payment)

    with pytest.raises(WorkflowFailedError, match=r"order_id does not fit its annotation") as caught:
        asyncio.run(told(database_url, waits, ("paid", {"order_id": "seven", "amount": 1})))
    assert isinstance(caught.value.__cause__, PayloadError)


# Who gets it.


def test_an_event_for_nobody_in_particular_reaches_every_instance_that_waits_for_its_type(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext, event_type: str) -> Any:
        return (await wait_event(ctx, event_type)).data

    @workflow
    def waits_too(ctx: SyncWorkflowContext, event_type: str) -> Any:
        return wait_event(ctx, event_type).data

    tables = Tables(database_url)

    async def main() -> tuple[list[Any], Any]:
        async with edda(database_url) as app:
            concerned = [await app.start(each, "paid") for each in (waits, waits_too) for _ in range(3)]
            other = await app.start(waits, "shipped")
            await asleep(tables, other, *concerned)
            await app.send_event("paid", "test", 1)
            results = [await app.result(each, timeout=20) for each in concerned]
            late = await app.start(waits, "paid")
            await asleep(tables, late)
            assert (await app.get(other)).status == "waiting_for_event"
            assert (await app.get(late)).status == "waiting_for_event"
            await app.send_event("paid", "test", 2)
            return results, await app.result(late, timeout=20)

    results, late = asyncio.run(main())
    assert results == [1] * 6
    assert late == 2


def test_an_event_for_one_instance_reaches_no_other(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    tables = Tables(database_url)

    async def main() -> tuple[Any, list[str]]:
        async with edda(database_url) as app:
            ids = [await app.start(waits) for _ in range(3)]
            await asleep(tables, *ids)
            await app.send_event("paid", "test", "yours", instance_id=ids[1])
            result = await app.result(ids[1], timeout=20)
            return result, [str((await app.get(each)).status) for each in (ids[0], ids[2])]

    assert asyncio.run(main()) == ("yours", ["waiting_for_event"] * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_events_for_an_instance_are_kept_until_it_asks_for_them_in_the_order_of_sending(
    database_url: str, kind: str
) -> None:
    gate = Gate()

    @activity
    def busy(ctx: WorkflowContext) -> None:
        gate.hold()

    def waits(ctx: Any) -> Any:
        yield busy(ctx)
        found = []
        for event_type in ("b", "a", "a", "b"):
            event = yield wait_event(ctx, event_type)
            found.append([event_type, event.data])
        return found

    flow = declare(kind, waits)

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(flow)
            await app.send_event("a", "test", 1, instance_id=instance_id)
            await gate.is_reached()
            for event_type, data in (("b", 2), ("a", 3), ("b", 4), ("other", 5)):
                await app.send_event(event_type, "test", data, instance_id=instance_id)
            gate.open()
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [["b", 2], ["a", 1], ["a", 3], ["b", 4]]
    assert Tables(database_url).rows("SELECT * FROM edda_inbox") == []


def test_an_event_for_an_instance_that_nobody_has_claimed_yet_is_kept(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await waits.options(delay=3600).start()
            await app.send_event("paid", "test", "early", instance_id=instance_id)
            make_due(Tables(database_url), instance_id)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "early"


def test_instances_of_another_service_get_events_too(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        return [(await wait_event(ctx, "paid")).data, (await wait_event(ctx, "paid")).data]

    async def main() -> Any:
        async with edda(database_url) as ours, EddaApp("theirs", database_url, poll_interval_seconds=0.1) as theirs:
            instance_id = await theirs.start(waits)
            await asleep(Tables(database_url), instance_id)
            await ours.send_event("paid", "test", "for all")
            await ours.send_event("paid", "test", "for one", instance_id=instance_id)
            return await theirs.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ["for all", "for one"]
