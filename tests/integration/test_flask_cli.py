"""``flask edda ...``: each command as text and as JSON, its errors, and a real worker process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import inspect, text

from edda_wsgi import EddaFlask, RetryPolicy, WorkflowContext, WorkflowFailedError, activity, workflow
from tests.integration.flask_apps import ONCE, Shop, driver_url, environment_of, open_shop, outside, saved_notes
from tests.support import eventually


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as opened:
        yield opened


@pytest.fixture
def new_shop(bare_database_url: str) -> Iterator[Shop]:
    """Without tables."""
    with open_shop(bare_database_url) as opened:
        yield opened


def cli(shop: Shop, *arguments: str) -> Result:
    return shop.app.test_cli_runner().invoke(args=["edda", *arguments])


def cli_json(shop: Shop, *arguments: str) -> Any:
    done = cli(shop, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def assert_one_clear_line(done: Result, said: str) -> None:
    assert done.exit_code == 1
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert re.search(said, lines[0]), lines[0]
    assert "Traceback" not in done.output


def declare() -> Any:
    @activity(retry_policy=RetryPolicy(max_attempts=2, initial_interval=0.01))
    def reserve(ctx: WorkflowContext, number: int) -> dict[str, int]:
        if ctx.attempt == 1:
            raise ValueError("busy")
        return {"reserved": number}

    @activity(retry_policy=ONCE)
    def charge(ctx: WorkflowContext, number: int) -> str:
        if number < 0:
            raise ValueError("card was refused")
        return "paid"

    @workflow
    async def order(ctx: WorkflowContext, number: int, note: str = "") -> str:
        await reserve(ctx, number)
        return await charge(ctx, number)

    return order


def start(shop: Shop, declared: Any, *args: Any, **options: Any) -> str:
    with shop.app.app_context():
        return str(declared.options(session=None, **options).start(*args))


# start


def test_start_prints_the_instance_id_and_starts(shop: Shop) -> None:
    declare()

    done = cli(shop, "start", "order", "--input", '{"number": 7}', "--instance-id", "order-7")

    assert (done.exit_code, done.stdout) == (0, "order-7\n")
    assert shop.edda.get("order-7").input == {"number": 7, "note": ""}


def test_start_as_json_prints_an_object(shop: Shop) -> None:
    declare()

    told = cli_json(shop, "start", "order", "--input", '{"number": 7}', "--delay", "3600")

    found = shop.edda.get(told["instance_id"])
    assert told == {"instance_id": found.instance_id}
    assert found.wake_at is not None
    assert (found.wake_at - found.created_at).total_seconds() > 3000


def test_start_of_an_unknown_workflow_is_one_clear_line(shop: Shop) -> None:
    declare()

    assert_one_clear_line(cli(shop, "start", "ordr"), r"'ordr'.*order")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"nummer": 7}', "order.*nothing was started"),
        ("{}", "order.*nothing was started"),
        ('{"number": "many"}', r"order.*\$\.number"),
    ],
)
def test_start_with_wrong_arguments_is_one_clear_line(shop: Shop, given: str, said: str) -> None:
    declare()

    assert_one_clear_line(cli(shop, "start", "order", "--input", given), said)


@pytest.mark.parametrize("given", ["number=7", "[7]", "{'number': 7}"])
def test_start_with_an_input_that_is_no_json_object_shows_an_example(shop: Shop, given: str) -> None:
    declare()

    done = cli(shop, "start", "order", "--input", given)

    assert done.exit_code != 0
    assert '{"order_id": 7}' in done.stderr


def test_start_with_an_id_of_another_input_is_one_clear_line(shop: Shop) -> None:
    declare()
    cli(shop, "start", "order", "--input", '{"number": 7}', "--instance-id", "order-7")

    done = cli(shop, "start", "order", "--input", '{"number": 8}', "--instance-id", "order-7")

    assert_one_clear_line(done, "'order-7' already runs")


# list


def test_list_of_nothing_says_so_also_on_a_new_database(shop: Shop) -> None:
    done = cli(shop, "list")

    assert (done.exit_code, done.stdout) == (0, "No instances match.\n")


def test_list_of_nothing_as_json_is_an_empty_page(shop: Shop) -> None:
    assert cli_json(shop, "list") == {"instances": [], "next_page_token": None}


def test_list_aligns_its_columns(shop: Shop) -> None:
    order = declare()

    @workflow(name="a_workflow_with_a_long_name")
    async def other(ctx: WorkflowContext) -> None: ...

    start(shop, order, 1, instance_id="short")
    start(shop, other, instance_id="an-instance-with-a-long-id")
    shop.edda.cancel("short", session=None)

    lines = cli(shop, "list").stdout.splitlines()

    header, *rows = lines
    assert header.split() == ["INSTANCE", "WORKFLOW", "STATUS", "STARTED"]
    assert [row.split()[:3] for row in rows] == [
        ["an-instance-with-a-long-id", "a_workflow_with_a_long_name", "pending"],
        ["short", "order", "cancelled"],
    ]
    for word in ("WORKFLOW", "STATUS"):
        column = header.index(word)
        assert all(row[column - 1] == " " and row[column] != " " for row in rows)


def test_list_aligns_coloured_columns_too(shop: Shop) -> None:
    order = declare()
    start(shop, order, 1, instance_id="a")
    start(shop, order, 2, instance_id="b")
    shop.edda.cancel("b", session=None)

    done = shop.app.test_cli_runner().invoke(args=["edda", "list"], color=True)

    assert "\x1b[36mpending\x1b[0m" in done.stdout
    plain = re.sub(r"\x1b\[\d*m", "", done.stdout).splitlines()
    column = plain[0].index("STARTED")
    assert all(row[column - 1] == " " and row[column] != " " for row in plain[1:])


def test_list_filters_by_status_and_workflow(shop: Shop) -> None:
    order = declare()

    @workflow
    async def refund(ctx: WorkflowContext) -> None: ...

    for instance_id in ("a", "b"):
        start(shop, order, 1, instance_id=instance_id)
    start(shop, refund, instance_id="c")
    shop.edda.cancel("a", session=None)

    def listed(*arguments: str) -> list[str]:
        return [found["instance_id"] for found in cli_json(shop, "list", *arguments)["instances"]]

    assert listed("--status", "pending") == ["c", "b"]
    assert listed("--status", "pending", "--status", "cancelled") == ["c", "b", "a"]
    assert listed("--workflow", "order") == ["b", "a"]
    assert listed("--workflow", "order", "--status", "pending") == ["b"]


def test_list_pages_with_a_token(shop: Shop) -> None:
    order = declare()
    for instance_id in ("a", "b", "c"):
        start(shop, order, 1, instance_id=instance_id)

    first = cli(shop, "list", "--limit", "2")
    token = first.stderr.split()[-1]
    second = cli(shop, "list", "--limit", "2", "--page-token", token)

    assert [line.split()[0] for line in first.stdout.splitlines()[1:]] == ["c", "b"]
    assert [line.split()[0] for line in second.stdout.splitlines()[1:]] == ["a"]
    assert second.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--status", "done"], "'done'.*completed"),
        (["--limit", "0"], "between 1 and 1000"),
        (["--page-token", "x"], "page_token"),
    ],
)
def test_list_with_a_wrong_option_is_one_clear_line(shop: Shop, arguments: list[str], said: str) -> None:
    assert_one_clear_line(cli(shop, "list", *arguments), said)


# show


def test_show_tells_the_history_as_a_timeline(shop: Shop) -> None:
    order = declare()
    shop.edda.start_worker()
    start(shop, order, 7, instance_id="order-7")
    shop.edda.result("order-7", timeout=20)

    done = cli(shop, "show", "order-7")

    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "order  order-7"
    assert "  status   completed" in lines
    assert '  input    {"number": 7, "note": ""}' in lines
    assert '  output   "paid"' in lines
    steps = [line for line in lines if " s  +  " in line]
    assert [line.split()[3] for line in steps] == ["reserve:1", "charge:1"]
    assert '{"reserved": 7}' in steps[0]
    assert re.search(r"\(2 attempts, \d+ ms\)", steps[0])
    assert len({line.index("+") for line in steps}) == 1


def test_show_tells_why_an_instance_failed(shop: Shop) -> None:
    order = declare()
    shop.edda.start_worker()
    instance_id = start(shop, order, -1)
    with pytest.raises(WorkflowFailedError):
        shop.edda.result(instance_id, timeout=20)

    printed = cli(shop, "show", instance_id).stdout

    assert re.search(r"s  x  charge:1 +card was refused", printed)
    assert "card was refused" in printed.split("status")[1].splitlines()[0]


def test_show_of_an_instance_that_has_not_run_says_so(shop: Shop) -> None:
    order = declare()
    instance_id = start(shop, order, 1, delay=3600)

    printed = cli(shop, "show", instance_id).stdout

    assert "(no step is recorded yet)" in printed
    assert re.search(r"  due +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", printed)


def test_show_as_json_holds_the_instance_and_its_history(shop: Shop) -> None:
    order = declare()
    shop.edda.start_worker()
    start(shop, order, 7, instance_id="order-7")
    shop.edda.result("order-7", timeout=20)

    told = cli_json(shop, "show", "order-7")

    assert (told["instance"]["status"], told["instance"]["output"]) == ("completed", "paid")
    assert [event["activity_id"] for event in told["history"]] == ["reserve:1", "charge:1"]
    assert told["history"][0]["event_data"]["retry_metadata"]["total_attempts"] == 2


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_a_command_for_an_unknown_instance_is_one_clear_line(shop: Shop, command: str, as_json: list[str]) -> None:
    assert_one_clear_line(cli(shop, command, "nobody", *as_json), "There is no workflow instance 'nobody'")


# cancel and retry


def test_cancel_cancels_and_says_so(shop: Shop) -> None:
    order = declare()
    instance_id = start(shop, order, 1)

    done = cli(shop, "cancel", instance_id, "--reason", "sold out")

    assert (done.exit_code, done.stdout) == (0, "Cancelled, or asked to stop at its next step.\n")
    assert (shop.edda.get(instance_id).status, shop.edda.get(instance_id).cancel_reason) == ("cancelled", "sold out")


def test_cancel_as_json_says_what_was_done(shop: Shop) -> None:
    order = declare()
    instance_id = start(shop, order, 1)

    assert cli_json(shop, "cancel", instance_id) == {"instance_id": instance_id, "done": True}


def test_cancel_of_an_ended_instance_says_so_with_exit_status_1(shop: Shop) -> None:
    order = declare()
    instance_id = start(shop, order, 1)
    cli(shop, "cancel", instance_id)
    shop.edda.start_worker()
    other = start(shop, order, 2)
    shop.edda.result(other, timeout=20)

    done = cli(shop, "cancel", other)

    assert (done.exit_code, done.stdout) == (1, "It has ended already.\n")


def test_retry_takes_a_failed_instance_up_again(shop: Shop) -> None:
    order = declare()
    shop.edda.start_worker()
    instance_id = start(shop, order, -1)
    with pytest.raises(WorkflowFailedError):
        shop.edda.result(instance_id, timeout=20)
    shop.edda.shutdown()

    done = cli(shop, "retry", instance_id)

    assert (done.exit_code, done.stdout) == (0, "It is due again; a worker takes it up.\n")
    found = shop.edda.get(instance_id)
    assert (found.status.is_finished, found.wake_at is not None) == (False, True)


def test_retry_of_an_instance_that_needs_none_says_so_with_exit_status_1(shop: Shop) -> None:
    order = declare()
    instance_id = start(shop, order, 1)

    done = cli(shop, "retry", instance_id, "--json")

    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"instance_id": instance_id, "done": False}


# upgrade and check


def test_upgrade_makes_the_tables_once(new_shop: Shop) -> None:
    first, second = cli(new_shop, "upgrade"), cli(new_shop, "upgrade")

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout.startswith("Upgraded to revision ")
    assert second.stdout.startswith("Already at revision ")
    with outside(new_shop.database_url) as engine:
        assert inspect(engine).has_table("edda_instances")


def test_upgrade_as_json_says_whether_anything_changed(new_shop: Shop) -> None:
    first, second = cli_json(new_shop, "upgrade"), cli_json(new_shop, "upgrade")

    assert (first["changed"], second["changed"]) == (True, False)
    assert first["revision"] == second["revision"]


def test_upgrade_works_when_auto_migrate_is_off(bare_database_url: str) -> None:
    with open_shop(bare_database_url, auto_migrate=False) as shop:
        before = cli(shop, "list")
        cli(shop, "upgrade")
        after = cli(shop, "list")

    assert_one_clear_line(before, "edda_ tables are not there.*flask edda upgrade")
    assert (after.exit_code, after.stdout) == (0, "No instances match.\n")


def test_check_prints_every_setting_with_its_source(database_url: str) -> None:
    declare()
    with open_shop(database_url, threads=3, config={"EDDA": {"SERVICE_NAME": "depot"}}) as shop:
        done = cli(shop, "check")

    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["SETTING", "VALUE", "FROM"]
    settings = lines[1 : lines.index("")]
    rows = {line.split()[0]: line.split()[1:] for line in settings}
    assert rows["SERVICE_NAME"] == ["depot", 'app.config["EDDA"]']
    assert rows["THREADS"] == ["3", "EddaFlask(...)"]
    assert rows["MAX_RUNNING"] == ["256", "default"]
    assert "workflows: order" in lines
    assert lines[-1] == "Everything is in order."
    column = lines[0].index("FROM")
    assert all(line[column - 1] == " " and line[column] != " " for line in settings)


def test_check_as_json_holds_values_sources_and_problems(shop: Shop) -> None:
    from edda_wsgi.settings import names

    told = cli_json(shop, "check")

    assert set(told["settings"]) == set(names())
    assert told["settings"]["ROLE"] == {"value": "embedded", "source": "default"}
    assert told["problems"] == []


def test_check_never_prints_the_password() -> None:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://user:geheim@127.0.0.1:1/nothing"
    EddaFlask(app, db=SQLAlchemy(app))

    done = app.test_cli_runner().invoke(args=["edda", "check"])

    assert "user:***@127.0.0.1" in done.output
    assert "geheim" not in done.output


def test_check_finds_a_database_that_does_not_answer() -> None:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://user@127.0.0.1:1/nothing"
    EddaFlask(app, db=SQLAlchemy(app))

    done = app.test_cli_runner().invoke(args=["edda", "check"])
    as_json = app.test_cli_runner().invoke(args=["edda", "check", "--json"])

    assert (done.exit_code, as_json.exit_code) == (1, 1)
    assert "PROBLEM  The database does not answer" in done.stdout
    (problem,) = json.loads(as_json.stdout)["problems"]
    assert problem.startswith("The database does not answer")


@pytest.mark.parametrize("command", [["list"], ["show", "x"], ["cancel", "x"], ["retry", "x"], ["upgrade"]])
def test_a_command_without_a_database_is_one_clear_line(command: list[str]) -> None:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://user@127.0.0.1:1/nothing"
    EddaFlask(app, db=SQLAlchemy(app))

    done = app.test_cli_runner().invoke(args=["edda", *command, "--json"])

    assert_one_clear_line(done, "database")


def test_check_finds_a_module_that_cannot_be_imported(database_url: str) -> None:
    with open_shop(database_url, workflows=["no_such_flows"], hooks=["no.such.Hooks"]) as shop:
        done = cli(shop, "check")

    assert done.exit_code == 1
    problems = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
    assert "'no_such_flows'" in problems[0]
    assert "'no.such.Hooks'" in problems[1]


def test_check_finds_a_module_that_raises_when_imported(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_flows.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with open_shop(database_url, workflows=["broken_flows"]) as shop:
        done = cli(shop, "check")

    assert done.exit_code == 1
    assert "ZeroDivisionError" in done.stdout


def test_check_finds_tables_that_are_not_there_when_auto_migrate_is_off(bare_database_url: str) -> None:
    with open_shop(bare_database_url, auto_migrate=False) as shop:
        done = cli(shop, "check")

    assert done.exit_code == 1
    assert re.search(r"PROBLEM  The edda_ tables need an upgrade.*flask edda upgrade", done.stdout)


def test_check_finds_tables_of_a_newer_version(shop: Shop) -> None:
    cli(shop, "upgrade")
    with shop.app.app_context(), shop.engine.begin() as conn:
        conn.execute(text("UPDATE edda_alembic_version SET version_num = '9999'"))

    done = cli(shop, "check")

    assert done.exit_code == 1
    assert "newer version" in done.stdout


# In processes of their own.

SHOP = """
import os
import time

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from edda_wsgi import EddaFlask, WorkflowContext, activity, workflow

db = SQLAlchemy()
edda = EddaFlask()


class Note(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    text = db.Column(db.String(100))


def create_app():
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["SHOP_URL"]
    app.config.from_prefixed_env()
    db.init_app(app)
    edda.init_app(app, db=db)
    with app.app_context():
        db.create_all()
    return app


@activity
def write(ctx: WorkflowContext, text: str, seconds: float) -> str:
    if seconds:
        open(os.environ["SHOP_MARK"], "w").close()
        time.sleep(seconds)
    db.session.add(Note(text=text))
    return text


@workflow
async def take_note(ctx: WorkflowContext, text: str, seconds: float = 0) -> str:
    first = await write(ctx, text, seconds)
    return await write(ctx, first + "!", 0)
"""


class ShopProcess:
    """The commands of a shop in a folder of its own."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder, self.mark = folder, folder / "activity-is-running"
        (folder / "note_shop.py").write_text(SHOP)
        self.variables = {"SHOP_URL": driver_url(database_url), "SHOP_MARK": str(self.mark)}

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments), cwd=self.folder, env=environment_of(**self.variables, **variables),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(arguments), cwd=self.folder, env=environment_of(**self.variables),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def status_of(self, instance_id: str) -> str:
        told = json.loads(self.run("edda", "show", instance_id, "--json").stdout)
        return str(told["instance"]["status"])

    @staticmethod
    def _command(arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "flask", "--app", "note_shop:create_app", *arguments]


@pytest.fixture
def note_shop(tmp_path: Path, database_url: str) -> ShopProcess:
    return ShopProcess(tmp_path, database_url)


def stop(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    process.send_signal(number)
    _, told = process.communicate(timeout=40)
    return process.returncode, told


def completed(database_url: str) -> list[str]:
    with outside(database_url) as engine, engine.connect() as conn:
        if not inspect(conn).has_table("edda_instances"):
            return []
        query = text("SELECT instance_id FROM edda_instances WHERE status = 'completed'")
        return list(conn.execute(query).scalars())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_worker_runs_workflows_and_stops_cleanly_on_a_signal(
    note_shop: ShopProcess, database_url: str, number: int
) -> None:
    started = note_shop.run("edda", "start", "take_note", "--input", '{"text": "a"}', "--instance-id", "note-a")
    worker = note_shop.begin("edda", "worker")
    try:
        eventually(lambda: completed(database_url) == ["note-a"], timeout=40)
    finally:
        status, told = stop(worker, number)

    assert (started.returncode, started.stdout) == (0, "note-a\n")
    assert status == 0, told
    assert "worker for service 'edda'" in told
    assert "take_note" in told
    assert "stopped; nothing is left behind" in told
    assert "Traceback" not in told
    assert "geheim" not in told
    assert saved_notes(database_url) == ["a", "a!"]
    with outside(database_url) as engine, engine.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM edda_workers")).scalar() == 0


def test_worker_lets_a_running_activity_finish_and_hands_the_rest_over(
    note_shop: ShopProcess, database_url: str
) -> None:
    note_shop.run(
        "edda", "start", "take_note", "--input", '{"text": "slow", "seconds": 3}', "--instance-id", "note-slow"
    )
    worker = note_shop.begin("edda", "worker")
    try:
        eventually(note_shop.mark.exists, timeout=40)
    finally:
        status, told = stop(worker, signal.SIGTERM)

    assert status == 0, told
    assert "Traceback" not in told
    assert saved_notes(database_url)[:1] == ["slow"]
    with outside(database_url) as engine, engine.connect() as conn:
        locked = conn.execute(text("SELECT count(*) FROM edda_instances WHERE locked_by IS NOT NULL")).scalar()
    assert locked == 0


def test_what_a_stopped_worker_handed_over_goes_on_in_the_next_one(note_shop: ShopProcess, database_url: str) -> None:
    note_shop.run("edda", "start", "take_note", "--input", '{"text": "slow", "seconds": 2}', "--instance-id", "n")
    first = note_shop.begin("edda", "worker")
    try:
        eventually(note_shop.mark.exists, timeout=40)
    finally:
        stop(first, signal.SIGTERM)
    second = note_shop.begin("edda", "worker")
    try:
        eventually(lambda: completed(database_url) == ["n"], timeout=40)
    finally:
        status, _ = stop(second, signal.SIGTERM)

    assert status == 0
    assert saved_notes(database_url) == ["slow", "slow!"]


def test_a_real_process_shows_and_lists(note_shop: ShopProcess) -> None:
    note_shop.run("edda", "start", "take_note", "--input", '{"text": "a"}', "--instance-id", "note-a")

    listed, shown = note_shop.run("edda", "list"), note_shop.run("edda", "show", "note-a")

    assert (listed.returncode, shown.returncode) == (0, 0)
    assert listed.stdout.splitlines()[1].split()[:3] == ["note-a", "take_note", "pending"]
    assert shown.stdout.startswith("take_note  note-a\n")
    assert "\x1b[" not in listed.stdout  # not a terminal
    assert note_shop.status_of("note-a") == "pending"


def test_settings_from_the_environment_reach_a_real_process(note_shop: ShopProcess) -> None:
    done = note_shop.run("edda", "check", "--json", FLASK_EDDA_SERVICE_NAME="depot", FLASK_EDDA__THREADS="2")

    settings = json.loads(done.stdout)["settings"]
    assert settings["SERVICE_NAME"] == {"value": "depot", "source": "app.config EDDA_*"}
    assert settings["THREADS"] == {"value": "2", "source": 'app.config["EDDA"]'}


def test_an_unknown_setting_in_a_real_process_names_the_nearest(note_shop: ShopProcess) -> None:
    done = note_shop.run("edda", "check", FLASK_EDDA_THREAD="2")

    assert done.returncode != 0
    assert "Unknown setting 'THREAD'" in done.stderr
    assert "Did you mean THREADS?" in done.stderr


def test_worker_whose_workflows_cannot_be_imported_says_so_in_one_line(note_shop: ShopProcess) -> None:
    done = note_shop.run("edda", "worker", FLASK_EDDA_WORKFLOWS='["no_such_flows"]')

    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("Error: WORKFLOWS names 'no_such_flows'")
    assert "Traceback" not in done.stderr


def test_four_workers_that_start_at_once_on_a_new_database_all_run(note_shop: ShopProcess, database_url: str) -> None:
    with outside(database_url) as engine, engine.begin() as conn:
        number = "SERIAL" if engine.dialect.name == "postgresql" else "INTEGER"
        conn.exec_driver_sql(f"CREATE TABLE note (id {number} PRIMARY KEY, text VARCHAR(100))")
    processes = [note_shop.begin("edda", "worker") for _ in range(4)]
    told: list[tuple[int, str]] = []
    try:

        def count_workers() -> bool:
            with outside(database_url) as engine, engine.connect() as conn:
                if not inspect(conn).has_table("edda_workers"):
                    return False
                return conn.execute(text("SELECT count(*) FROM edda_workers")).scalar() == 4

        eventually(count_workers, timeout=60, pause=0.2)
    finally:
        stopping = [
            threading.Thread(target=lambda process=process: told.append(stop(process, signal.SIGTERM)))
            for process in processes
        ]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join(60)

    assert [status for status, _ in told] == [0] * 4, told
