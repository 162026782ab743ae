"""The commands, given odd names, and asked to show what strangers wrote into a database."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import text

from edda_wsgi import TerminalError, WorkflowContext, activity, workflow
from edda_wsgi.terminal import short, visible, visible_lines
from tests.integration.flask_apps import ONCE, Shop, open_shop, outside
from tests.security.doors import IMPOSSIBLE, POSSIBLE, tables

OBEYED = "\x1b[2J\x1b[41m\x1b]0;title\x07\x9b31m\x7f\r\b\u202e\u2066"
"""Clear the screen, turn red, rename the window, delete, go back to the left margin, write from right to left."""
_OURS = re.compile("\x1b\\[([0-2]|3[1-6])m")
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@activity(name="commands.fail", retry_policy=ONCE)
def fail(ctx: WorkflowContext, content: str) -> None:
    raise TerminalError(f"first line {content}\nsecond line {content}")


@workflow(name="commands.failing")
async def failing(ctx: WorkflowContext, content: str) -> None:
    await fail(ctx, content)


@workflow(name="commands.waiting")
async def waiting(ctx: WorkflowContext, content: Any = None) -> None:
    pass


@pytest.fixture
def shop(sqlite_url: str) -> Iterator[Shop]:
    with open_shop(sqlite_url) as shop:
        yield shop


def run(shop: Shop, *arguments: str) -> Result:
    """A command, as it is for a terminal."""
    return shop.app.test_cli_runner().invoke(args=["edda", *arguments], color=True)


def assert_harmless(done: Result) -> None:
    """Nothing but our own colours would be obeyed."""
    assert _CONTROLS.findall(_OURS.sub("", done.output)) == []
    assert "Traceback (most recent call last)" not in done.stderr


COMMANDS = [
    ("show", "{}"),
    ("cancel", "{}"),
    ("retry", "{}"),
    ("list", "--status", "{}"),
    ("list", "--page-token", "{}"),
    ("list", "--limit", "{}"),
    ("start", "{}"),
    ("start", "commands.waiting", "--delay", "{}"),
    ("send-event", "t", "--instance", "{}"),
    ("outbox", "retry", "{}"),
    ("outbox", "purge", "{}"),
    ("outbox", "list", "--status", "{}"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_name_that_means_nothing_is_refused_in_a_few_harmless_words(shop: Shop, command: tuple[str, ...]) -> None:
    run(shop, "upgrade")
    before = tables(shop.database_url)
    for name in [*POSSIBLE, *(name for name in IMPOSSIBLE if name)]:
        if command[1:2] == ("--page-token",) and not name.strip():
            continue  # as if it were left out
        *words, last = command
        done = run(shop, *words, *([] if words[-1].startswith("--") else ["--"]), last.format(name))
        assert done.exit_code in (1, 2), (name, done.output)
        assert isinstance(done.exception, SystemExit), name
        assert_harmless(done)
        assert len(done.output) < 2000 or len(name) > 2000
    assert tables(shop.database_url) == before


def test_a_name_that_may_be_is_taken_as_it_is(shop: Shop) -> None:
    for name in POSSIBLE:
        done = run(shop, "start", "commands.waiting", "--instance-id", name, "--input", json.dumps({"content": name}))
        assert (done.exit_code, done.output) == (0, name + "\n")
        assert_harmless(run(shop, "show", "--", name))
        sent = run(shop, "send-event", "--source", name, "--data", json.dumps(name), "--instance", name, "--", name)
        assert sent.exit_code == 0
        assert run(shop, "cancel", "--reason", name, "--", name).exit_code == 0
        assert shop.edda.get(name).cancel_reason == name
    done = run(shop, "list", "--json")
    assert {found["instance_id"] for found in json.loads(done.output)["instances"]} == set(POSSIBLE)
    assert_harmless(run(shop, "list"))


def test_what_strangers_wrote_is_shown_and_not_obeyed(shop: Shop) -> None:
    shop.edda.start_worker()
    with shop.app.app_context():
        failed = failing.options(session=None).start(OBEYED)
        cancelled = waiting.options(session=None, delay=3600).start(OBEYED)
        shop.edda.cancel(cancelled, OBEYED, session=None)
        with pytest.raises(Exception, match="second line"):
            shop.edda.result(failed, timeout=30)
        event_id = shop.edda.send_event_transactional("t", "/s", 1, session=None)
    with outside(shop.database_url) as engine, engine.begin() as conn:
        # What an older version let in, or a broker answered.
        conn.execute(text("UPDATE edda_outbox SET last_error = :it, ordering_key = :it, type = :it"), {"it": OBEYED})
        conn.execute(text("UPDATE edda_instances SET workflow_name = :it WHERE instance_id = :id"),
                     {"it": OBEYED, "id": cancelled})  # fmt: skip

    shown = {name: run(shop, *command) for name, command in {
        "list": ("list",), "failed": ("show", failed), "cancelled": ("show", cancelled), "outbox": ("outbox", "list"),
        "json": ("show", failed, "--json"), "refused": ("show", OBEYED), "retry": ("outbox", "retry", OBEYED),
    }.items()}  # fmt: skip
    for done in shown.values():
        assert_harmless(done)
    assert "\\x1b[2J" in shown["failed"].output
    assert "first line" in shown["failed"].output
    assert "\n    " in shown["failed"].output  # the traceback keeps its lines
    assert "\\x1b[2J" in shown["cancelled"].output
    assert event_id in shown["outbox"].output


def test_a_text_is_made_visible_without_being_changed_otherwise() -> None:
    assert visible("ü€😀 'x' \\") == "ü€😀 'x' \\"
    assert visible("a\nb\r\t\x1b\x9b\u202e\ud800") == "a\\nb\\x0d\\x09\\x1b\\x9b\\u202e\\ud800"
    assert visible_lines("a\n\tb\x1b") == "a\n    b\\x1b"
    assert short("a\n  b") == "a b"
    assert short("x" * 101) == "x" * 99 + "…"
