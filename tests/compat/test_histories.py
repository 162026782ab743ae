"""Histories that earlier releases wrote, replayed by this one.

Each recording is put into tables as its release made them; then they are upgraded and a worker of this release
takes the instance up, as if the old one had been killed just before it ended.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

import edda_engine.storage.migrations as migrations
from edda_engine import EddaApp, HistoryEvent
from edda_engine.core.events import Recorded
from edda_engine.core.replay import Replay
from edda_engine.errors import NewerVersionError
from edda_engine.storage.database import Database
from edda_engine.storage.migrate import VERSION_TABLE
from tests.compat import release_0_1_0  # noqa: F401  declares its workflows once, before any test

RECORDINGS = sorted((Path(__file__).parent / "histories").glob("*.json"))

DECLARED_IN = ("tests.compat",)


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.param.read_text()) | {"module": request.param.stem.split("-")[0]}
    return found


@pytest.fixture
def module(recording: dict[str, Any]) -> ModuleType:
    found = importlib.import_module(f"tests.compat.{recording['module']}")
    found.attempts_made.clear()
    return found


def restore(bare_database_url: str, recording: dict[str, Any], *, steps: int) -> None:
    """Tables as the release made them, and in them the instance with its first *steps* steps, due now."""
    database = Database.from_url(bare_database_url)
    now = "now()" if database.dialect == "postgresql" else "strftime('%Y-%m-%d %H:%M:%f', 'now')"
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    config.attributes["version_table"] = VERSION_TABLE
    with database.write() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, recording["revision"])
        conn.execute(
            text(
                "INSERT INTO edda_instances (instance_id, workflow_name, service, status, input, source_hash, wake_at,"
                " lock_timeout_seconds, lock_epoch, created_at, started_at, updated_at) VALUES (:instance_id,"
                " :workflow_name, 'compat', 'running', :input, :source_hash,"
                f" {now}, 300, 1, {now}, {now}, {now})"
            ),
            recording["instance"],
        )
        for step in recording["steps"][:steps]:
            conn.execute(
                text(
                    "INSERT INTO edda_history (instance_id, activity_id, seq, branch, position, event_type, event_data,"
                    " format, created_at) VALUES (:instance_id, :activity_id, :seq, :branch, :position, :event_type,"
                    f" :event_data, :format, {now})"
                ),
                step | {"instance_id": recording["instance"]["instance_id"]},
            )
    database.close()


def finish(bare_database_url: str, instance_id: str) -> tuple[Any, list[HistoryEvent]]:
    """The result and the history, once this release has brought the instance to its end."""

    async def main() -> tuple[Any, list[HistoryEvent]]:
        async with EddaApp(service_name="compat", db_url=bare_database_url) as app:
            return await app.result(instance_id, timeout=20), await app.history(instance_id)

    return asyncio.run(main())


def test_there_is_a_recording_of_each_kind_of_body() -> None:
    assert [path.stem for path in RECORDINGS][:2] == ["release_0_1_0-asynchronous", "release_0_1_0-plain"]


def test_a_recording_holds_what_it_is_meant_to_prove(recording: dict[str, Any]) -> None:
    kinds = {step["event_type"] for step in recording["steps"]}
    data = [json.loads(step["event_data"]) for step in recording["steps"]]
    assert kinds == {"ActivityCompleted", "ActivityFailed", "ValueRecorded"}
    assert {entry["retry_metadata"]["exhausted"] for entry in data if "retry_metadata" in entry} == {True, False}
    assert any(step["branch"] for step in recording["steps"])


def test_a_whole_recorded_history_replays_to_the_recorded_result_and_runs_nothing(
    recording: dict[str, Any], module: ModuleType, bare_database_url: str
) -> None:
    restore(bare_database_url, recording, steps=len(recording["steps"]))
    result, history = finish(bare_database_url, recording["instance"]["instance_id"])
    assert result == module.Receipt.model_validate_json(recording["instance"]["output"])
    assert module.attempts_made == []
    assert [event.activity_id for event in history] == [step["activity_id"] for step in recording["steps"]]


@pytest.mark.parametrize("missing", [1, 4, 7])
def test_a_recorded_history_that_was_cut_off_goes_on_where_it_stopped(
    recording: dict[str, Any], module: ModuleType, bare_sqlite_url: str, missing: int
) -> None:
    steps = recording["steps"]
    restore(bare_sqlite_url, recording, steps=len(steps) - missing)
    result, history = finish(bare_sqlite_url, recording["instance"]["instance_id"])
    recorded = module.Receipt.model_validate_json(recording["instance"]["output"])
    assert result.model_copy(update={"at": recorded.at}) == recorded
    assert {(event.activity_id, event.event_type) for event in history} == {
        (step["activity_id"], step["event_type"]) for step in steps
    }
    assert 0 < len(module.attempts_made) <= 3 * missing


def test_what_a_person_reads_of_a_recorded_history_is_still_there(
    recording: dict[str, Any], module: ModuleType, bare_sqlite_url: str
) -> None:
    restore(bare_sqlite_url, recording, steps=len(recording["steps"]))
    _, history = finish(bare_sqlite_url, recording["instance"]["instance_id"])
    retried = next(event for event in history if event.activity_id.endswith("flaky:1"))
    assert retried.event_data["result"] == 3
    assert retried.event_data["retry_metadata"]["total_attempts"] == 3
    assert [error["error_type"] for error in retried.event_data["retry_metadata"]["errors"]] == ["ConnectionError"] * 2
    failed = next(event for event in history if event.event_data["activity_name"].endswith(".refuse"))
    assert failed.event_data["error"]["error_type"] == "CardRefused"


def test_a_recorded_format_is_one_that_this_release_reads(recording: dict[str, Any]) -> None:
    steps = [
        Recorded(
            step["activity_id"], step["branch"], step["position"], step["event_type"], json.loads(step["event_data"]),
            step["format"],
        )
        for step in recording["steps"]
    ]  # fmt: skip
    assert Replay("w", "i", steps).is_replaying
    newer = [Recorded(*[getattr(steps[0], name) for name in steps[0].__slots__][:-1], steps[0].format + 1)]  # type: ignore[arg-type]
    with pytest.raises(NewerVersionError):
        Replay("w", "i", newer)
