"""Settings, from each source to their effect."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from edda_wsgi import (
    ConfigurationError,
    EddaFlask,
    HooksBase,
    RetryExhaustedError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from tests.integration.flask_apps import open_shop
from tests.support import eventually


def effective(app: Flask, **keywords: Any) -> tuple[Any, Any]:
    EddaFlask(app, **keywords)
    application = app.extensions["edda"]
    return application.settings, application.sources


@pytest.fixture
def app() -> Flask:
    return Flask("shop")


@pytest.fixture
def settings_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("shop_edda_settings")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("EDDA_SETTINGS_MODULE", module.__name__)
    return module


def test_without_any_source_the_defaults_hold(app: Flask) -> None:
    settings, sources = effective(app)

    assert (settings.service_name, settings.lock_timeout_seconds, settings.role) == ("edda", 300.0, "embedded")
    assert set(sources.values()) == {"default"}


def test_the_dict_edda_of_the_config_is_read(app: Flask) -> None:
    app.config["EDDA"] = {"SERVICE_NAME": "shop", "THREADS": 3}

    settings, sources = effective(app)

    assert (settings.service_name, settings.threads) == ("shop", 3)
    assert sources["THREADS"] == 'app.config["EDDA"]'


def test_flat_names_of_the_config_are_read(app: Flask) -> None:
    app.config["EDDA_MAX_RUNNING"] = 5

    settings, sources = effective(app)

    assert settings.max_running == 5
    assert sources["MAX_RUNNING"] == "app.config EDDA_*"


def test_prefixed_environment_variables_are_read_through_flask(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_EDDA_LOCK_TIMEOUT_SECONDS", "12.5")
    monkeypatch.setenv("FLASK_EDDA_AUTO_MIGRATE", "false")
    monkeypatch.setenv("FLASK_EDDA_WORKFLOWS", '["shop.workflows"]')
    app.config.from_prefixed_env()

    settings, _ = effective(app)

    assert settings.lock_timeout_seconds == 12.5
    assert settings.auto_migrate is False
    assert settings.workflows == ("shop.workflows",)


def test_nested_environment_variables_fill_the_dict(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_EDDA__THREADS", "2")
    app.config.from_prefixed_env()

    assert effective(app)[0].threads == 2


def test_a_keyword_of_the_extension_is_read(app: Flask) -> None:
    settings, sources = effective(app, threads=9)

    assert settings.threads == 9
    assert sources["THREADS"] == "EddaFlask(...)"


def test_a_keyword_of_init_app_wins_over_one_of_the_extension(app: Flask) -> None:
    EddaFlask(threads=9).init_app(app, threads=10)

    assert app.extensions["edda"].settings.threads == 10


def test_a_settings_module_is_read_as_dict_and_as_flat_names(app: Flask, settings_module: Any) -> None:
    settings_module.EDDA = {"THREADS": 4, "MAX_RUNNING": 6}
    settings_module.EDDA_MAX_RUNNING = 7

    settings, sources = effective(app)

    assert (settings.threads, settings.max_running) == (4, 7)
    assert sources["THREADS"] == "the module shop_edda_settings"


def test_later_sources_win_in_the_documented_order(app: Flask, settings_module: Any) -> None:
    settings_module.EDDA = dict.fromkeys(("THREADS", "MAX_RUNNING", "MAX_PARKED", "SHUTDOWN_SECONDS"), 1)
    app.config["EDDA"] = dict.fromkeys(("MAX_RUNNING", "MAX_PARKED", "SHUTDOWN_SECONDS"), 2)
    app.config["EDDA_MAX_PARKED"] = app.config["EDDA_SHUTDOWN_SECONDS"] = 3

    settings, _ = effective(app, shutdown_seconds=4)

    assert (settings.threads, settings.max_running, settings.max_parked, settings.shutdown_seconds) == (1, 2, 3, 4)


@pytest.mark.parametrize("where", ["dict", "flat", "keyword"])
def test_an_unknown_setting_is_an_error_that_suggests_the_nearest(app: Flask, where: str) -> None:
    keywords = {}
    if where == "dict":
        app.config["EDDA"] = {"LOCK_TIMEOUT": 5}
    elif where == "flat":
        app.config["EDDA_LOCK_TIMEOUT"] = 5
    else:
        keywords = {"lock_timeout": 5}

    with pytest.raises(ConfigurationError, match=r"'LOCK_TIMEOUT'.*Did you mean LOCK_TIMEOUT_SECONDS\?"):
        EddaFlask(app, **keywords)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOCK_TIMEOUT_SECONDS", -1),
        ("THREADS", "many"),
        ("ROLE", "worker"),
        ("SERVICE_NAME", ""),
        ("DEFAULT_RETRY_POLICY", {"attempts": 3}),
        ("DEFAULT_RETRY_POLICY", {"max_attempts": 0}),
    ],
    ids=str,
)
def test_a_wrong_value_is_an_error_that_names_the_setting_and_its_source(app: Flask, name: str, value: object) -> None:
    app.config["EDDA"] = {name: value}

    with pytest.raises(ConfigurationError, match=rf'The setting {name} = .*from app\.config\["EDDA"\]'):
        EddaFlask(app)


def test_edda_that_is_no_dict_is_refused(app: Flask) -> None:
    app.config["EDDA"] = "shop"

    with pytest.raises(ConfigurationError, match="must be a dict of settings, not a str"):
        EddaFlask(app)


def test_a_settings_module_that_cannot_be_imported_is_named(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDDA_SETTINGS_MODULE", "no_such_settings")

    with pytest.raises(ConfigurationError, match="EDDA_SETTINGS_MODULE names 'no_such_settings'"):
        EddaFlask(app)


def test_the_default_retry_policy_of_the_settings_applies_to_activities_without_their_own(database_url: str) -> None:
    ran: list[int] = []

    @activity
    def fail(ctx: WorkflowContext) -> None:
        ran.append(ctx.attempt)
        raise ValueError("no")

    @workflow
    async def flow(ctx: WorkflowContext) -> None:
        await fail(ctx)

    policy = {"max_attempts": 3, "initial_interval": 0.01}
    with open_shop(database_url, config={"EDDA": {"DEFAULT_RETRY_POLICY": policy}}) as shop:
        shop.edda.start_worker()
        with shop.app.app_context():
            instance_id = flow.options(session=None).start()
        with pytest.raises(WorkflowFailedError) as caught:
            shop.edda.result(instance_id, timeout=20)

    assert isinstance(caught.value.__cause__, RetryExhaustedError)
    assert ran == [1, 2, 3]


def test_the_modules_named_in_workflows_are_imported_when_a_worker_starts(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_flows_by_setting.py").write_text(
        "from edda_wsgi import workflow\n\n@workflow\nasync def from_a_module(ctx):\n    return 'ran'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with open_shop(database_url, workflows=["shop_flows_by_setting"]) as shop:
        assert "shop_flows_by_setting" not in sys.modules
        shop.edda.start_worker()
        flow = sys.modules["shop_flows_by_setting"].from_a_module
        with shop.app.app_context():
            instance_id = flow.options(session=None).start()

        assert shop.edda.result(instance_id, timeout=20) == "ran"
    sys.modules.pop("shop_flows_by_setting")


def test_a_module_of_workflows_that_does_not_exist_is_named_when_a_worker_starts(database_url: str) -> None:
    with (
        open_shop(database_url, workflows=["no_such_flows"]) as shop,
        pytest.raises(ConfigurationError, match="WORKFLOWS names 'no_such_flows'"),
    ):
        shop.edda.start_worker()


class CountingHooks(HooksBase):
    """Named by its dotted path below."""

    completed: list[str] = []

    def on_workflow_complete(self, instance_id: str, workflow_name: str) -> None:
        self.completed.append(instance_id)


class FailingHooks(HooksBase):
    def on_workflow_complete(self, instance_id: str, workflow_name: str) -> None:
        raise ValueError("a hook that fails")


def test_all_hooks_of_the_settings_are_called_even_when_one_fails(database_url: str) -> None:
    @workflow
    async def nothing(ctx: WorkflowContext) -> None: ...

    CountingHooks.completed.clear()
    paths = [f"{__name__}.FailingHooks", f"{__name__}.CountingHooks"]
    with open_shop(database_url, config={"EDDA": {"HOOKS": paths}}) as shop:
        shop.edda.start_worker()
        with shop.app.app_context():
            instance_id = nothing.options(session=None).start()
        shop.edda.result(instance_id, timeout=20)

        assert eventually(lambda: CountingHooks.completed == [instance_id])


def test_a_hook_that_cannot_be_loaded_is_named_when_a_worker_starts(database_url: str) -> None:
    with (
        open_shop(database_url, hooks=["shop.telemetry.Nothing"]) as shop,
        pytest.raises(ConfigurationError, match=r"HOOKS names 'shop\.telemetry\.Nothing'"),
    ):
        shop.edda.start_worker()
