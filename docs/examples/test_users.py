"""How an asyncio application tests its workflows; the tests are plain functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from asyncio_app import register

from edda_engine import EddaApp
from edda_engine.testing import WorkflowRunner


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[WorkflowRunner]:
    with WorkflowRunner(EddaApp("users", f"sqlite:///{tmp_path / 'test.db'}")) as found:
        yield found


def test_a_user_is_registered(runner: WorkflowRunner) -> None:
    assert runner.run(register, name="Ada") == "Welcome, Ada! Your account is number 1."
    assert runner.steps() == ["create_account:1", "greet:1"]
    runner.assert_replays()
