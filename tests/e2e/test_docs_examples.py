"""Every piece of code that the documentation shows runs, on SQLite."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from flask import Flask

from edda_engine import EddaApp, PayloadError, Status, WorkflowFailedError
from tests.e2e.examples import DOCS, EXAMPLES, Load, run_with, working
from tests.receivers import receiving
from tests.support import eventually


def test_every_python_file_that_the_documentation_includes_exists_and_is_loaded_by_a_test() -> None:
    included = set()
    for page in DOCS.rglob("*.md"):
        if "_build" not in page.parts:
            included |= set(re.findall(r"literalinclude\} \S*examples/(\w+)\.py", page.read_text()))
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_docs*.py"))
    assert included
    assert {name for name in included if not (EXAMPLES / f"{name}.py").exists()} == set()
    assert {name for name in included if f'"{name}"' not in tests and f"{name}.py" not in tests} == set()


def test_every_marker_that_a_page_names_is_in_its_file() -> None:
    missing = []
    for page in DOCS.rglob("*.md"):
        if "_build" in page.parts:
            continue
        blocks = re.findall(r"literalinclude\} (\S+)\n((?::.*\n)*)", page.read_text())
        for target, options in blocks:
            text = (page.parent / target).resolve().read_text()
            for marker in re.findall(r":(?:start|end)-(?:before|after|at): (.+)", options):
                if marker.strip('"') not in text:
                    missing.append((page.name, target, marker))
    assert missing == []


def test_every_setting_error_and_command_has_its_entry_in_the_reference() -> None:
    from edda_engine import errors
    from edda_wsgi.cli import edda_commands
    from edda_wsgi.settings import FlaskSettings

    settings, told_errors, cli = (
        (DOCS / "reference" / f"{page}.md").read_text() for page in ("settings", "errors", "cli")
    )
    classes = [name for name, found in vars(errors).items() if isinstance(found, type) and name in errors.__doc__]

    assert [name for name in FlaskSettings.model_fields if f"| `{name.upper()}` |" not in settings] == []
    assert [name for name in classes if f"\n`{name}`\n: " not in told_errors] == []
    assert [name for name in edda_commands.commands if f"\n## {name}\n" not in cli] == []
    assert len(classes) == 30


def test_every_public_name_has_its_entry_in_the_api_reference() -> None:
    import edda_engine
    import edda_wsgi

    api = (DOCS / "reference" / "api.md").read_text()
    names = {*edda_engine.__all__, *edda_wsgi.__all__} - {"__version__"}

    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", api)] == []


def test_every_decision_is_indexed() -> None:
    index = (DOCS / "decisions" / "index.md").read_text()
    pages = [path.stem for path in (DOCS / "decisions").glob("[0-9]*.md")]
    assert len(pages) >= 8
    assert [name for name in pages if f"\n{name}\n" not in index] == []


def test_quick_start_fulfils_an_order_placed_over_http(load: Load, sqlite_url: str) -> None:
    shop = load("shop")
    app = shop.create_app({"TESTING": True, "SQLALCHEMY_DATABASE_URI": sqlite_url, "PACKING_SECONDS": 0})
    client = app.test_client()

    placed = client.post("/orders/book")

    assert placed.status_code == 202
    with working(app, shop.edda):
        result = shop.edda.result(placed.json["instance_id"], timeout=30)
    assert result == {"parcel": "parcel with one book", "status": "shipped"}
    assert client.get("/orders/1").json == {"order_id": 1, "item": "book", "status": "shipped"}


def test_quick_start_goes_on_after_its_worker_was_killed(load: Load, sqlite_url: str, tmp_path: Path) -> None:
    shop = load("shop")
    app = shop.create_app({"TESTING": True, "SQLALCHEMY_DATABASE_URI": sqlite_url})
    instance_id = app.test_client().post("/orders/book").json["instance_id"]
    environment = {**os.environ, "FLASK_SQLALCHEMY_DATABASE_URI": sqlite_url}

    def edda(*words: str, packing_seconds: float = 60) -> list[str]:
        environment["FLASK_PACKING_SECONDS"] = str(packing_seconds)
        return [sys.executable, "-m", "flask", "--app", str(EXAMPLES / "shop.py"), "edda", *words]

    def recorded() -> list[str]:
        with app.app_context():
            return [event.activity_id for event in shop.edda.history(instance_id)]

    killed = subprocess.Popen(edda("worker"), env=environment, cwd=tmp_path)
    try:
        eventually(lambda: recorded() == ["reserve:1"])
    finally:
        killed.kill()
        killed.wait()
    second = subprocess.Popen(edda("worker", packing_seconds=0), env=environment, cwd=tmp_path)
    try:
        with app.app_context():
            result = shop.edda.result(instance_id, timeout=30)
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=30) == 0

    assert result == {"parcel": "parcel with one book", "status": "shipped"}
    assert recorded() == ["reserve:1", "pack:1", "ship:1"]
    shown = subprocess.run(edda("show", instance_id), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0
    assert "pack:1" in shown.stdout


@pytest.fixture
def transactions(load: Load, sqlite_url: str) -> tuple[ModuleType, Flask]:
    module = load("transactions")
    return module, module.create_app({"TESTING": True, "SQLALCHEMY_DATABASE_URI": sqlite_url})


def test_transactions_page_keeps_what_committed_and_drops_what_failed(transactions: tuple[ModuleType, Flask]) -> None:
    module, app = transactions
    instance_id = app.test_client().post("/settle/a").json["instance_id"]

    with working(app, module.edda):
        result = module.edda.result(instance_id, timeout=30)
        references = sorted(module.db.session.scalars(module.db.select(module.Payment.reference)))

    assert result == {"problem": "the card was refused", "is_new": False, "parts": 12, "payments": 4}
    assert references == ["a", "a-0", "a-2", "told"]
    assert module.announced == ["told"]


def test_a_start_is_gone_with_the_rollback_unless_it_was_committed_at_once(
    transactions: tuple[ModuleType, Flask],
) -> None:
    module, app = transactions
    client = app.test_client()

    client.post("/forget/x")
    kept = client.post("/at-once/y").json["instance_id"]

    with app.app_context():
        assert [found.instance_id for found in module.edda.find_instances().instances] == [kept]


def test_the_same_instance_id_starts_nothing_twice(transactions: tuple[ModuleType, Flask]) -> None:
    module, app = transactions
    client = app.test_client()

    answers = [client.post("/once/k").json["instance_id"] for _ in range(2)]

    with app.app_context():
        assert answers == ["settle-k", "settle-k"]
        assert len(module.edda.find_instances().instances) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "expected", "ids"),
    [
        ("price_list", {"items": ["a", "bb"]}, [1, 2], {"price:1", "price:2"}),
        (
            "discounts",
            {"items": ["aa", "bbb"]},
            [1, 2],
            {"1/price:1", "1/discount:1", "2/price:1", "2/discount:1"},
        ),
        ("two_prices", {"first": "a", "second": "bb"}, [1, 2], {"1/price:1", "2/price:1"}),
        ("catalogue", {"items": ["a", "bb"]}, 3, {"price:1", "price:2"}),
    ],
)
def test_replay_page_numbers_its_calls_as_it_says(
    load: Load, sqlite_url: str, name: str, arguments: dict[str, Any], expected: Any, ids: set[str]
) -> None:
    workflow = getattr(load("replaying"), name)
    app = EddaApp("replaying", sqlite_url)

    async def ask() -> tuple[Any, set[str]]:
        instance_id = await workflow.start(**arguments)
        result = await app.result(instance_id, timeout=30)
        return result, {event.activity_id for event in await app.history(instance_id)}

    assert run_with(app, ask) == (expected, ids)


def test_replay_page_records_the_time_and_derives_the_rest(load: Load, sqlite_url: str) -> None:
    module = load("replaying")
    app = EddaApp("replaying", sqlite_url)

    async def ask() -> tuple[dict[str, str], list[tuple[str, str]]]:
        instance_id = await module.offer.start(item="book")
        result = await app.result(instance_id, timeout=30)
        return result, [(event.activity_id, event.event_type) for event in await app.history(instance_id)]

    result, recorded = run_with(app, ask)
    assert recorded == [("ctx.now:1", "ValueRecorded"), ("price:1", "ActivityCompleted")]
    assert UUID(result["number"]).version == 4
    assert result["amount"] == "4"


def test_retries_page_tells_the_story_it_promises(load: Load, sqlite_url: str) -> None:
    module = load("retrying")
    app = EddaApp("retrying", sqlite_url)

    async def ask() -> list[str]:
        found: list[str] = await app.result(await module.careful.start(), timeout=30)
        return found

    assert run_with(app, ask) == [
        "flaky needed 3 attempts",
        "broken failed 3 times with ConnectionError",
        "charge said no money",
        "parse was not tried again",
        "slow ended with ActivityTimeoutError",
    ]


def test_asyncio_page_registers_a_user(load: Load, sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(load("asyncio_app").main(sqlite_url)) == "Welcome, Ada! Your account is number 1."
    assert capsys.readouterr().out.splitlines() == [
        "create_account:1 ActivityCompleted",
        "greet:1 ActivityCompleted",
    ]


def test_asyncio_page_joins_the_transaction_of_a_session(load: Load, sqlite_url: str) -> None:
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    module = load("asyncio_app")
    app = EddaApp("users", sqlite_url)

    async def ask() -> tuple[int, int]:
        engine = create_async_engine(sqlite_url.replace("sqlite://", "sqlite+aiosqlite://"))
        async with AsyncSession(engine) as session:
            await module.register_in_session(session, "Ada")
            await session.rollback()
            before = len((await app.find_instances()).instances)
            await module.register_in_session(session, "Grace")
            await session.commit()
        await engine.dispose()
        return before, len((await app.find_instances()).instances)

    assert run_with(app, ask) == (0, 1)


def test_payloads_page_restores_types_and_names_what_it_refuses(load: Load, sqlite_url: str) -> None:
    module = load("payloads")
    app = EddaApp("payloads", sqlite_url)
    order = module.Order(order_id=UUID(int=1), price=Decimal("9.50"), size="small", tags={"gift"})

    async def ask() -> tuple[list[Decimal], BaseException | None]:
        prices = await app.result(await module.buy.start(order), timeout=30)
        try:
            await app.result(await module.leaking.start(), timeout=30)
        except WorkflowFailedError as failed:
            return prices, failed.__cause__
        return prices, None

    prices, refused = run_with(app, ask)
    assert prices == [Decimal("4.75"), Decimal("4.75")]
    assert isinstance(refused, PayloadError)
    assert (refused.owner, refused.path) == ("activity 'leak' (leak:1)", "$['rows'][0]")


def test_locks_page_gives_the_nearest_timeout(load: Load, sqlite_url: str) -> None:
    module = load("locking")
    app = module.make_app(sqlite_url)

    async def ask() -> list[float]:
        return [(await app.get(instance_id)).lock_timeout_seconds for instance_id in await module.start_them()]

    assert run_with(app, ask) == [30.0, 120.0, 600.0]


def test_hooks_page_counts_what_happens(load: Load, sqlite_url: str) -> None:
    telemetry, module = load("telemetry"), load("retrying")
    app = EddaApp("telemetry", sqlite_url, hooks=telemetry.Hooks())

    async def ask() -> Any:
        return await app.result(await module.careful.start(), timeout=30)

    run_with(app, ask)
    assert telemetry.counts == {"flaky retried": 2, "broken retried": 2, "careful completed": 1}


def test_gunicorn_configuration_has_the_three_hooks(load: Load) -> None:
    module = load("gunicorn_conf")  # servers run with it in test_servers_gunicorn.py

    assert callable(module.post_worker_init)
    assert callable(module.worker_abort)
    assert callable(module.worker_exit)


def test_settings_page_module_is_valid_and_wins_over_the_defaults(
    load: Load, monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    shop = load("shop")
    load("settings_module")
    monkeypatch.setenv("EDDA_SETTINGS_MODULE", "settings_module")

    app = shop.create_app({"TESTING": True, "SQLALCHEMY_DATABASE_URI": sqlite_url, "EDDA": {"SERVICE_NAME": "mine"}})

    settings = app.extensions["edda"].settings
    assert (settings.threads, settings.hooks, settings.service_name) == (8, ("telemetry.Hooks",), "mine")
    assert settings.default_retry_policy.max_attempts == 10


def test_migrations_page_hides_our_tables_from_autogenerate(sqlite_url: str, tmp_path: Path) -> None:
    flask = [sys.executable, "-m", "flask", "--app", str(EXAMPLES / "migrate_app.py")]
    environment = {**os.environ, "FLASK_SQLALCHEMY_DATABASE_URI": sqlite_url}

    for words in (["edda", "upgrade"], ["db", "init"], ["db", "migrate"]):
        subprocess.run([*flask, *words], env=environment, cwd=tmp_path, check=True, capture_output=True)

    (version,) = (path.read_text() for path in (tmp_path / "migrations" / "versions").glob("*.py"))
    assert "create_table('item'" in version
    assert "edda_" not in version


def test_instances_are_found_by_status_and_input(load: Load, sqlite_url: str) -> None:
    module = load("replaying")
    app = EddaApp("replaying", sqlite_url)

    async def ask() -> list[str]:
        ids = [await module.offer.start(item=item) for item in ("book", "pen")]
        for instance_id in ids:
            await app.result(instance_id, timeout=30)
        page = await app.find_instances(status=Status.COMPLETED, input_filters={"item": "pen"})
        return [ids.index(found.instance_id) for found in page.instances]

    assert run_with(app, ask) == [1]


def test_publishing_page_publishes_what_a_view_and_an_activity_send(
    load: Load, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("publishing")
    monkeypatch.setattr(module, "journal", tmp_path / "journal.jsonl")
    app = module.create_app(
        {"TESTING": True, "SQLALCHEMY_DATABASE_URI": sqlite_url, "EDDA": {"OUTBOX": module.outbox_of_a_function}}
    )

    app.test_client().post("/orders/7")

    def lines() -> list[str]:
        return module.journal.read_text().splitlines() if module.journal.exists() else []

    with working(app, module.edda):
        eventually(lambda: len(lines()) == 2)
    told = [json.loads(line) for line in lines()]
    assert [(event["type"], event["data"]) for event in told] == [
        ("order.placed", {"number": "7"}),
        ("order.shipped", {"number": "7"}),
    ]


def test_publishing_page_has_a_publisher_of_ones_own_that_refuses_and_puts_off(load: Load) -> None:
    from datetime import UTC, datetime

    from edda_engine import PublishLaterError, PublishRefusedError

    module = load("publishing")

    def event(content_type: str) -> Any:
        return module.OutgoingEvent("1", "t", "s", datetime.now(UTC), content_type, data_json="1")

    async def ask() -> float | None:
        publisher = module.QueuePublisher(room=1)
        await publisher.publish(event("application/json"))
        with pytest.raises(PublishRefusedError, match="only JSON"):
            await publisher.publish(event("text/plain"))
        with pytest.raises(PublishLaterError) as later:
            await publisher.publish(event("application/json"))
        await publisher.close()
        return later.value.retry_after_seconds

    assert asyncio.run(ask()) == 30


def test_publishing_page_relays_from_a_process_of_its_own(load: Load, sqlite_url: str) -> None:
    module = load("publishing")
    app = module.create_app({"TESTING": True, "SQLALCHEMY_DATABASE_URI": sqlite_url})
    app.test_client().post("/orders/8")

    with receiving() as receiver:
        published = asyncio.run(module.relay_once(sqlite_url, receiver.url))

    assert published == 1
    assert receiver.data == [{"number": "8"}]
    assert callable(module.relay)
