"""Values that are built to exhaust or to break who reads them, at every door for values but HTTP (see test_event_door)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edda_wsgi import (
    ConfigurationError,
    EddaError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    publish,
    receive,
    send_event_transactional,
    send_to,
    wait_event,
    workflow,
)
from tests.integration.deliveries import rows
from tests.integration.flask_apps import ONCE, Shop, open_shop
from tests.security.doors import Doors, tables


def nested(depth: int, *, as_object: bool = False) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if as_object else [value]
    return value


def around_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


BOMBS: dict[str, Any] = {
    "deep lists": nested(100_000),
    "deep objects": nested(100_000, as_object=True),
    "just too deep to be read": nested(200),
    "itself": around_itself(),
    "a long integer": 10**4300,
    "a long negative integer": -(10**5000),
    "a long integer inside": {"a": [1, {"b": 10**5000}]},
    "a long text": "x" * 1_100_000,
    "a long key": {"x" * 1_100_000: 1},
    "a wide list": list(range(300_000)),
    "two-byte characters": "é" * 600_000,
    "NaN": float("nan"),
    "infinity": [float("inf")],
    "a NUL": "a\0b",
    "a NUL in a key": {"a\0b": 1},
    "half a pair": "\ud800",
    "an integer as a key": {1: 2},
    "a long key with nothing to store": {"x" * 1_000_000: [object()]},
    "a long key with half a pair": {"x" * 1_000_000 + "\ud800": 1},
    "a long key with a NUL": {"x" * 1_000_000 + "\0": 1},
    "deep keys": {"x" * 1000: {"x" * 1000: {"x" * 1000: object()}}},
    "an object": object(),
}
GOOD: dict[str, Any] = {
    "as deep as may be": nested(180),
    "as long an integer as may be": 10**4300 - 1,
    "digits": "9" * 10_000,
    "as much as may be": "x" * 1_000_000,
    "beyond 64 bits": 2**64,
    "small": 5e-324,
    "large": 1.7976931348623157e308,
    "SQL": "'; DROP TABLE edda_instances; --",
    "what looks like an escape": "\\u0000",
}


@workflow(name="bombs.echo")
async def echo(ctx: WorkflowContext, content: Any) -> Any:
    received = await receive(ctx)
    event = await wait_event(ctx, "bombs.echo")
    return [received.data, event.data, content] if len(str(content)) < 100_000 else len(content)


@activity(name="bombs.returned", retry_policy=ONCE)
def returned(ctx: WorkflowContext, name: str) -> Any:
    return {**BOMBS, **GOOD}[name]


@activity(name="bombs.sent", retry_policy=ONCE)
def sent(ctx: WorkflowContext, name: str, by: str) -> None:
    match by:
        case "publish":
            publish(ctx, "channel", BOMBS[name])
        case "send_to":
            send_to(ctx, ctx.instance_id, BOMBS[name])
        case "outbox":
            send_event_transactional(ctx, "type", "/source", BOMBS[name])


@workflow(name="bombs.run")
async def run_bomb(ctx: WorkflowContext, name: str, by: str) -> int:
    """Which of the two steps it came to."""
    if by == "returned":
        await returned(ctx, name)
    else:
        await sent(ctx, name, by)
    return 1


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as shop:
        yield shop


def test_a_bomb_is_refused_where_it_is_given_before_any_database_is_asked(sqlite_url: str) -> None:
    doors = Doors()
    with open_shop(sqlite_url) as shop, shop.app.app_context():
        known = run_bomb.options(session=None, delay=3600).start("a NUL", "returned")
        before = tables(shop.database_url)
        for name, value in BOMBS.items():
            for door, give in {
                "start()": lambda value=value: echo.start(value),
                "send_event()": lambda value=value: shop.edda.send_event("t", "/s", value),
                "publish()": lambda value=value: shop.edda.publish("c", value),
                "metadata": lambda value=value: shop.edda.publish("c", 1, {"m": value}),
                "send_to()": lambda value=value: shop.edda.send_to(known, value),
                "outbox": lambda value=value: shop.edda.send_event_transactional("t", "/s", value),
            }.items():
                doors.refuses(door, name, give)
        shop.db.session.commit()
    assert doors.wrong == []
    assert tables(shop.database_url) == before


def test_a_bomb_that_a_step_returns_or_sends_fails_that_workflow_and_no_other(shop: Shop) -> None:
    shop.edda.start_worker()
    with shop.app.app_context():
        bad = {
            (name, by): run_bomb.options(session=None).start(name, by)
            for name in BOMBS
            for by in ("returned", "publish", "send_to", "outbox")
        }
        good = {name: run_bomb.options(session=None).start(name, "returned") for name in GOOD}
    for key, instance_id in bad.items():
        with pytest.raises(WorkflowFailedError, match="PayloadError") as caught:
            shop.edda.result(instance_id, timeout=60)
        assert len(str(caught.value)) < 1500, key
    for instance_id in good.values():
        assert shop.edda.result(instance_id, timeout=60) == 1
    assert rows(shop.database_url, "SELECT count(*) FROM edda_messages") == [(0,)]
    assert rows(shop.database_url, "SELECT count(*) FROM edda_outbox") == [(0,)]


def test_the_largest_and_oddest_values_that_are_taken_come_out_as_they_went_in(shop: Shop) -> None:
    shop.edda.start_worker()
    with shop.app.app_context():
        started = {name: echo.options(session=None).start(value) for name, value in GOOD.items()}
        for name, instance_id in started.items():
            shop.edda.send_to(instance_id, GOOD[name], session=None)
            shop.edda.send_event("bombs.echo", "/s", GOOD[name], instance_id=instance_id, session=None)
    for name, instance_id in started.items():
        result = shop.edda.result(instance_id, timeout=60)
        assert result in ([GOOD[name]] * 3, 1_000_000), name
        assert len(shop.edda.history(instance_id)) == 2
        assert shop.edda.get(instance_id).input == {"content": GOOD[name]}


# Options that are given with the arguments.


@pytest.mark.parametrize(
    "seconds", [1e308, 1e12, 31_536_001, 10**400, 0, -1, float("nan"), float("inf"), "5", [], True]
)
def test_a_lock_timeout_that_no_clock_can_hold_is_refused_everywhere(seconds: Any, tmp_path: Path) -> None:
    """One of 1e308 seconds once made every claim of the service fail, on PostgreSQL."""
    with open_shop(f"sqlite:///{tmp_path / 'edda.db'}") as shop, shop.app.app_context():
        for start in (
            lambda: run_bomb.start("a", "b", lock_timeout_seconds=seconds),
            lambda: run_bomb.options(lock_timeout_seconds=seconds).start("a", "b"),
            lambda: workflow(name="bombs.locked", lock_timeout_seconds=seconds)(run_bomb.function),
        ):
            with pytest.raises(EddaError, match="lock_timeout_seconds must be"):
                start()
    if not isinstance(seconds, (str, bool)):
        with pytest.raises(ConfigurationError, match="LOCK_TIMEOUT_SECONDS"):
            open_shop(f"sqlite:///{tmp_path / 'other.db'}", lock_timeout_seconds=seconds).__enter__()


def test_the_longest_lock_timeout_is_claimed_on_both_databases(shop: Shop) -> None:
    shop.edda.start_worker()
    with shop.app.app_context():
        started = run_bomb.options(session=None).start("digits", "returned", lock_timeout_seconds=31_536_000)
    assert shop.edda.result(started, timeout=60) == 1


@pytest.mark.parametrize("delay", [-1, 1e10, 10**400, float("nan"), float("inf"), "5", True])
def test_a_delay_that_no_clock_can_hold_is_refused(delay: Any, tmp_path: Path) -> None:
    shop = open_shop(f"sqlite:///{tmp_path / 'edda.db'}")
    with shop as opened, opened.app.app_context(), pytest.raises(EddaError, match="a number of seconds"):
        run_bomb.options(delay=delay).start("a", "b")


# Commands.

TEXTS = {
    "deep lists": "[" * 50_000 + "]" * 50_000,
    "lists that never end": "[" * 100_000,
    "deep objects": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "a long integer": "9" * 5000,
    "NaN": "NaN",
    "infinity": "1e999",
    "a NUL": '"\\u0000"',
    "half a pair": '"\\ud800"',
    "a long text": '"' + "x" * 1_100_000 + '"',
    "nothing": "",
    "no JSON": "{'a': 1}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_bomb_given_to_a_command_is_refused_in_a_few_words(sqlite_url: str, name: str) -> None:
    with open_shop(sqlite_url) as shop:
        runner = shop.app.test_cli_runner()
        for arguments in (
            ["start", "bombs.echo", "--input", json.dumps({"content": 0}).replace("0", TEXTS[name])],
            ["start", "bombs.echo", "--input", TEXTS[name]],
            ["send-event", "bombs.echo", "--data", TEXTS[name]],
        ):
            done = runner.invoke(args=["edda", *arguments])
            assert done.exit_code in (1, 2)
            assert isinstance(done.exception, SystemExit)
            assert "Error: " in done.output
            assert len(done.output) < 1000
        assert [
            count for table, count in tables(sqlite_url).items() if table in ("edda_instances", "edda_messages")
        ] in ([], [0, 0])
