"""What cannot be sent: each is refused with a clear error, and nothing is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edda_engine import (
    ConfigurationError,
    PayloadError,
    UsageError,
    WorkflowContext,
    publish,
    send_event,
    send_to,
    workflow,
)
from tests.integration.engines import Tables, edda
from tests.integration.talks import nothing_is_kept, run_once

UNSENDABLE: list[tuple[Callable[[Any], Any], type[Exception]]] = [
    (lambda app: app.send_event("paid", "test", object()), PayloadError),
    (lambda app: app.send_event("paid", "test", "a\0b"), PayloadError),
    (lambda app: app.send_event("paid", "test", {"a": "\ud800"}), PayloadError),
    (lambda app: app.send_event("paid", "test", {1, object()}), PayloadError),
    (lambda app: app.send_event("paid", "test", "x" * 2000), PayloadError),
    (lambda app: app.send_event("paid", "test", b"x" * 2000), PayloadError),
    (lambda app: app.send_event("", "test", 1), UsageError),
    (lambda app: app.send_event("x" * 256, "test", 1), UsageError),
    (lambda app: app.send_event("paid", "", 1), UsageError),
    (lambda app: app.send_event("paid", None, 1), UsageError),
    (lambda app: app.send_event("paid", "test", 1, instance_id=""), UsageError),
    (lambda app: app.send_event("paid", "test", 1, instance_id=7), UsageError),
    (lambda app: app.publish("news", object()), PayloadError),
    (lambda app: app.publish("news", "x" * 2000), PayloadError),
    (lambda app: app.publish("news", b"x" * 2000), PayloadError),
    (lambda app: app.publish("news", 1, {"a": object()}), PayloadError),
    (lambda app: app.publish("news", 1, {"a": "x" * 2000}), PayloadError),
    (lambda app: app.publish("news", 1, [1]), UsageError),
    (lambda app: app.publish("", 1), UsageError),
    (lambda app: app.publish("a\0b", 1), UsageError),
    (lambda app: app.publish(None, 1), UsageError),
    (lambda app: app.send_to("", 1), UsageError),
    (lambda app: app.send_to(None, 1), UsageError),
    (lambda app: app.send_to("x", 1, channel=""), UsageError),
    (lambda app: app.send_event("paid", "test", 1, session="session"), UsageError),
]


def test_what_cannot_be_sent_is_refused_clearly_and_nothing_is_written(database_url: str) -> None:
    async def main() -> list[Any]:
        refusals: list[Any] = []
        lengths: list[int] = []
        async with edda(database_url, max_payload_bytes=1000) as app:
            for send, _ in UNSENDABLE:
                try:
                    refusals.append(await send(app))
                except Exception as error:
                    refusals.append(type(error))
                    lengths.append(len(str(error)))
        assert max(lengths) < 500
        return refusals

    assert asyncio.run(main()) == [kind for _, kind in UNSENDABLE]
    assert nothing_is_kept(Tables(database_url))


def test_a_body_can_catch_that_something_cannot_be_sent(database_url: str) -> None:
    @workflow
    async def tells(ctx: WorkflowContext) -> list[str]:
        problems = []
        for send in (
            lambda: send_event("paid", "test", object()),
            lambda: publish(ctx, "news", "x" * 2000),
            lambda: send_to(ctx, "", 1),
        ):
            try:
                await send()
            except (PayloadError, UsageError) as error:
                problems.append(str(error))
        await publish(ctx, "news", "small")
        return problems

    problems = asyncio.run(run_once(database_url, tells, max_payload_bytes=1000))
    assert len(problems) == 3
    assert "event 'paid'" in problems[0]
    assert "MAX_PAYLOAD_BYTES = 1000" in problems[1]
    assert "instance_id=''" in problems[2]


def test_sending_without_an_application_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r"send_event\(\) needs a running EddaApp"):
        send_event("paid", "test", 1)
    with pytest.raises(UsageError, match=r"publish\(\) takes a ctx, or the application"):
        publish("news", "x", 1)
    with pytest.raises(UsageError, match=r"send_to\(\) takes a ctx, or the application"):
        send_to(None, "x", 1)
