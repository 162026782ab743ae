"""``edda_engine.testing`` without Flask and without pytest: an ``EddaApp`` on the same bench."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest

from edda_engine import EddaApp, WorkflowContext, activity, sleep, wait_event, workflow
from edda_engine.testing import CrashError, ReplayError, WorkflowRunner
from tests.integration.engines import INSERT_NOTE, Tables, write_note_async

forgotten: dict[str, str] = {}


@activity
async def remember_note(ctx: WorkflowContext, note: str) -> str:
    await write_note_async(ctx, note)
    return note


@activity
async def write_note_apart(ctx: WorkflowContext, url: str) -> None:
    Tables(url).execute(INSERT_NOTE.text, id=ctx.instance_id, note="apart")


@workflow
async def remembering_notes(ctx: WorkflowContext) -> list[str]:
    first = await remember_note(ctx, "first")
    await sleep(ctx, timedelta(days=30))
    event = await wait_event(ctx, "notes.said")
    return [first, await remember_note(ctx, str(event.data)), forgotten.get("mood", "")]


@workflow
async def careless_notes(ctx: WorkflowContext, url: str) -> None:
    await write_note_apart(ctx, url)


def test_an_asyncio_application_skips_time_is_killed_and_replayed(database_url: str) -> None:
    tables = Tables(database_url)
    tables.make_notes()
    with WorkflowRunner(EddaApp("notes", database_url)) as runner:
        runner.start(remembering_notes)
        runner.advance(days=31)
        assert runner.get().status == "waiting_for_event"
        runner.kill()
        runner.send_event("notes.said", "second")

        assert runner.finish() == ["first", "second", ""]
        assert runner.steps() == ["remember_note:1", "sleep:1", "wait_event:1", "remember_note:2"]
        assert tables.notes() == ["first", "second"]
        runner.assert_replays()
        forgotten["mood"] = "other"
        with pytest.raises(ReplayError, match="returned"):
            runner.assert_replays()
        forgotten.clear()


def test_an_asyncio_application_is_crashed_everywhere(sqlite_url: str) -> None:
    Tables(sqlite_url).make_notes()
    with (
        WorkflowRunner(EddaApp("notes", sqlite_url)) as runner,
        pytest.raises(CrashError, match=r"twice after it:  .*note='apart'"),
    ):
        runner.crash_everywhere(careless_notes, sqlite_url)


def test_the_runner_leaves_the_application_usable(sqlite_url: str) -> None:
    app = EddaApp("notes", sqlite_url)
    Tables(sqlite_url).make_notes()
    with WorkflowRunner(app) as runner:
        instance_id = runner.start(remembering_notes)
        runner.settle()
    before = app.conditions

    with WorkflowRunner(app) as runner:
        runner.send_event("notes.said", "again", instance_id=instance_id)
        assert runner.finish(instance_id)[1] == "again"

    assert app.conditions == before


def test_neither_an_application_nor_the_engine_imports_what_is_for_tests_and_that_needs_no_pytest() -> None:
    script = (
        "import sys, edda_engine, edda_wsgi\n"
        "assert not [name for name in sys.modules if '.testing' in name and name.startswith('edda')]\n"
        "import edda_engine.testing\n"
        "assert 'pytest' not in sys.modules\n"
        "import edda_wsgi.testing\n"
        "assert 'pytest' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
