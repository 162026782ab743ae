"""The examples of the page on deployment that are no Python: their commands exist, and their times fit the defaults."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from click import Command, Context

from edda_wsgi.cli import edda_commands
from edda_wsgi.settings import FlaskSettings
from edda_wsgi.supervisor import _EXTRA_SECONDS
from tests.e2e.examples import EXAMPLES, Load

UNIT, DOCKERFILE, COMPOSE = (
    (EXAMPLES / name).read_text() for name in ("edda-worker.service", "Dockerfile", "compose.yaml")
)
SHUTDOWN_SECONDS = FlaskSettings().shutdown_seconds
GUNICORN_GRACEFUL_SECONDS = 30


def flask_commands() -> list[list[str]]:
    """What follows ``flask edda`` in the examples."""
    lists = [json.loads(found) for found in re.findall(r"\[\"[^\]]*\]", DOCKERFILE + COMPOSE)]
    lists += [shlex.split(line) for line in re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)]
    return [words[words.index("edda") + 1 :] for words in lists if "edda" in words]


def stop_seconds(service: str) -> float:
    (found,) = re.findall(rf"^  {service}:$.*?stop_grace_period: (\d+)s$", COMPOSE, re.MULTILINE | re.DOTALL)
    return float(found)


@pytest.mark.parametrize("words", flask_commands(), ids=" ".join)
def test_a_command_of_the_examples_exists_with_its_options(words: list[str]) -> None:
    name, *options = words
    command = edda_commands.get_command(Context(edda_commands), name)
    assert isinstance(command, Command)
    command.make_context(name, options)


def test_waitress_is_served_by_a_function_that_runs_in_another_test(load: Load) -> None:
    assert callable(load("serve_waitress").serve)  # tests/e2e/run_waitress.py


def test_the_examples_run_and_check_workers() -> None:
    assert sorted(words[0] for words in flask_commands()) == ["health", "worker", "worker"]


def test_nobody_is_killed_before_it_has_drained() -> None:
    (unit,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert float(unit) > SHUTDOWN_SECONDS + _EXTRA_SECONDS
    assert stop_seconds("worker") > SHUTDOWN_SECONDS
    assert stop_seconds("web") > GUNICORN_GRACEFUL_SECONDS
