"""Settings: sources, precedence, and what is said about wrong ones."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from flask import Flask
from pydantic import ValidationError

from edda_engine import ConfigurationError, EddaApp, RetryPolicy
from edda_engine.settings import EngineSettings
from edda_wsgi.settings import FlaskSettings, load, names


def application(**config: Any) -> Flask:
    app = Flask("shop")
    app.config.update(config)
    return app


def settings_module(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """A module of these values, named by EDDA_SETTINGS_MODULE."""
    module = types.ModuleType("shop_settings")
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, "shop_settings", module)
    monkeypatch.setenv("EDDA_SETTINGS_MODULE", "shop_settings")


# Defaults.


def test_the_defaults_are_those_of_the_design() -> None:
    settings = load(application(), {}).settings
    assert settings.lock_timeout_seconds == 300
    assert (settings.threads, settings.max_running, settings.max_parked) == (16, 256, 1000)
    assert (settings.shutdown_seconds, settings.role, settings.workflows) == (20, "embedded", ())
    assert (settings.auto_migrate, settings.listen, settings.database_url) == (True, True, None)
    assert settings.recovery_interval_seconds <= 60


def test_settings_cannot_be_changed_once_they_are_made() -> None:
    settings = load(application(), {}).settings
    with pytest.raises(ValidationError):
        settings.threads = 3  # type: ignore[misc]


def test_every_setting_says_what_it_is_for() -> None:
    undescribed = [
        name
        for name, field in FlaskSettings.model_fields.items()
        if not field.description and name not in ("service_name",)
    ]
    assert undescribed == []


def test_the_engine_takes_its_part_of_the_settings() -> None:
    settings = load(application(EDDA={"THREADS": 3, "ROLE": "client"}), {}).settings
    assert settings.engine_settings() == EngineSettings(threads=3)


# Sources and precedence.


def test_each_source_wins_over_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    settings_module(monkeypatch, EDDA={"THREADS": 2, "MAX_RUNNING": 2, "MAX_PARKED": 2, "SERVICE_NAME": "by module"})
    app = application(EDDA={"THREADS": 3, "MAX_RUNNING": 3, "MAX_PARKED": 3}, EDDA_THREADS=4, EDDA_MAX_RUNNING=4)
    found = load(app, {"threads": 5})
    assert found.settings.service_name == "by module"
    assert found.settings.max_parked == 3
    assert found.settings.max_running == 4
    assert found.settings.threads == 5
    assert found.settings.poll_interval_seconds == 1.0
    assert {name: found.sources[name] for name in ("SERVICE_NAME", "MAX_PARKED", "MAX_RUNNING", "THREADS")} == {
        "SERVICE_NAME": "the module shop_settings",
        "MAX_PARKED": 'app.config["EDDA"]',
        "MAX_RUNNING": "app.config EDDA_*",
        "THREADS": "EddaFlask(...)",
    }
    assert found.sources["POLL_INTERVAL_SECONDS"] == "default"


def test_every_setting_has_a_source() -> None:
    assert sorted(load(application(), {}).sources) == sorted(names())


def test_a_module_may_give_a_dict_and_flat_names_and_the_flat_ones_win(monkeypatch: pytest.MonkeyPatch) -> None:
    settings_module(monkeypatch, EDDA={"THREADS": 2, "MAX_RUNNING": 2}, EDDA_THREADS=3, OTHER=1)
    settings = load(application(), {}).settings
    assert (settings.threads, settings.max_running) == (3, 2)


def test_a_settings_module_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDDA_SETTINGS_MODULE", "nowhere.settings")
    with pytest.raises(ConfigurationError, match=r"EDDA_SETTINGS_MODULE names 'nowhere.settings'.*No module named"):
        load(application(), {})


def test_an_unknown_name_in_a_settings_module_is_refused_naming_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    settings_module(monkeypatch, EDDA_TREADS=3)
    with pytest.raises(
        ConfigurationError, match=r"Unknown setting 'TREADS' in the module shop_settings. Did you mean THREADS"
    ):
        load(application(), {})


def test_the_environment_of_flask_sets_flat_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_EDDA_THREADS", "4")
    monkeypatch.setenv("FLASK_EDDA_LISTEN", "false")
    monkeypatch.setenv("FLASK_EDDA_SERVICE_NAME", "shop")
    monkeypatch.setenv("FLASK_EDDA_WORKFLOWS", '["shop.workflows"]')
    monkeypatch.setenv("FLASK_EDDA_DEFAULT_RETRY_POLICY", '{"max_attempts": 3}')
    app = application()
    app.config.from_prefixed_env()
    settings = load(app, {}).settings
    assert (settings.threads, settings.listen, settings.service_name) == (4, False, "shop")
    assert settings.workflows == ("shop.workflows",)
    assert settings.default_retry_policy == RetryPolicy(max_attempts=3)


def test_nested_names_of_the_environment_set_the_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_EDDA__THREADS", "4")
    app = application()
    app.config.from_prefixed_env()
    assert load(app, {}).settings.threads == 4


def test_the_name_of_the_settings_module_in_the_config_is_no_setting() -> None:
    assert load(application(EDDA_SETTINGS_MODULE="x"), {}).settings == load(application(), {}).settings


def test_keys_of_other_extensions_are_left_alone() -> None:
    assert load(application(EDDAFONE=1, SQLALCHEMY_DATABASE_URI="x"), {}).settings.threads == 16


# Wrong ones.


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("THREAD", "THREADS"), ("LOCK_TIMEOUT", "LOCK_TIMEOUT_SECONDS"), ("SERVICE", "SERVICE_NAME"),
        ("RETRY_POLICY", "DEFAULT_RETRY_POLICY"), ("AUTOMIGRATE", "AUTO_MIGRATE"), ("threads", "THREADS"),
    ],
)  # fmt: skip
def test_an_unknown_name_suggests_the_nearest_one(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(application(EDDA={wrong: 3}), {})
    assert f'Unknown setting {wrong!r} in app.config["EDDA"]. Did you mean {meant}?' in str(caught.value)


def test_an_unknown_name_that_resembles_nothing_lists_what_there_is() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(application(EDDA={"ZZZZ": 3}), {})
    assert "Did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in names())


def test_an_unknown_keyword_is_named_with_its_source() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown setting 'THREAD' in EddaFlask\(\.\.\.\)"):
        load(application(), {"thread": 3})


def test_an_unknown_flat_name_is_named_with_its_source() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown setting 'THREAD' in app.config EDDA_\*"):
        load(application(EDDA_THREAD=3), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("THREADS", 0), ("THREADS", "many"), ("LOCK_TIMEOUT_SECONDS", -1), ("ROLE", "server"), ("SERVICE_NAME", ""),
        ("MAX_PAYLOAD_BYTES", 0), ("LISTEN", "perhaps"), ("WORKFLOWS", 7), ("RECOVERY_INTERVAL_SECONDS", 61),
        ("DEFAULT_RETRY_POLICY", {"max_attempts": 0}), ("DEFAULT_RETRY_POLICY", {"tries": 3}),
        ("DEFAULT_RETRY_POLICY", "twice"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("source", ['app.config["EDDA"]', "app.config EDDA_*", "EddaFlask(...)"])
def test_a_wrong_value_is_named_with_its_value_and_its_source(name: str, value: Any, source: str) -> None:
    config: dict[str, Any] = {}
    keywords: dict[str, Any] = {}
    if source == 'app.config["EDDA"]':
        config["EDDA"] = {name: value}
    elif source == "EddaFlask(...)":
        keywords[name.lower()] = value
    else:
        config[f"EDDA_{name}"] = value
    with pytest.raises(ConfigurationError) as caught:
        load(application(**config), keywords)
    assert f"The setting {name} = {value!r} (from {source}) is wrong: " in str(caught.value)


def test_a_single_workflow_module_is_a_list_of_one_and_not_taken_apart_into_letters() -> None:
    assert load(application(EDDA={"WORKFLOWS": "shop.workflows"}), {}).settings.workflows == ("shop.workflows",)
    with pytest.raises(ConfigurationError, match="The setting WORKFLOWS = 7"):
        load(application(EDDA={"WORKFLOWS": 7}), {})


def test_a_lock_timeout_without_end_is_refused_as_it_is_at_the_decorator() -> None:
    with pytest.raises(ConfigurationError, match="LOCK_TIMEOUT_SECONDS"):
        load(application(EDDA={"LOCK_TIMEOUT_SECONDS": float("inf")}), {})


def test_a_config_that_is_no_dict_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r'app.config\["EDDA"\] must be a dict of settings, not a list'):
        load(application(EDDA=[]), {})


def test_a_retry_policy_may_be_a_policy_or_a_dict_of_its_parameters() -> None:
    given = {"max_attempts": 10, "initial_interval": 2.0, "max_interval": 120.0}
    as_dict = load(application(EDDA={"DEFAULT_RETRY_POLICY": given}), {}).settings
    as_policy = load(application(), {"default_retry_policy": RetryPolicy(**given)}).settings  # type: ignore[arg-type]
    assert as_dict.default_retry_policy == as_policy.default_retry_policy
    assert as_dict.default_retry_policy == RetryPolicy(max_attempts=10, initial_interval=2.0, max_interval=120.0)


# The asyncio front door.


def test_the_asyncio_application_takes_settings_as_keywords() -> None:
    app = EddaApp("users", "sqlite:///users.db", threads=3, default_retry_policy=RetryPolicy(max_attempts=2))
    assert (app.settings.service_name, app.settings.threads) == ("users", 3)
    assert app.settings.default_retry_policy == RetryPolicy(max_attempts=2)


def test_the_asyncio_application_refuses_an_unknown_setting() -> None:
    with pytest.raises(ConfigurationError, match="treads"):
        EddaApp("users", "sqlite:///users.db", treads=3)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://localhost/x", "PostgreSQL or SQLite"),
        ("sqlite://", "in-memory SQLite"),
        ("sqlite:///:memory:", "in-memory SQLite"),
        ("not a url", "is not a database URL"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_with_what_can(url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        EddaApp("users", url)
