"""The setting EVENTS: what is wrong is said, what is secret is not."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from edda_wsgi import ConfigurationError, EddaFlask
from edda_wsgi.event_settings import EventSettings, event_settings

PREFIX = {"URL_PREFIX": "/events"}
OPEN = {**PREFIX, "AUTH": None}


def test_without_a_prefix_nothing_is_needed() -> None:
    assert event_settings({}).url_prefix is None
    assert str(event_settings({"SECRET": "kept to ourselves"})) == "{'URL_PREFIX': None}"


def test_a_prefix_without_a_word_on_who_may_deliver_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError) as refused:
        event_settings(PREFIX)
    for words in ("Set AUTH", "edda_wsgi.auth.check_signature", "edda_wsgi.auth.check_bearer_token", "None leaves"):
        assert words in str(refused.value)


def test_an_open_endpoint_must_be_asked_for() -> None:
    assert event_settings(OPEN).auth is None


@pytest.mark.parametrize("check", ["check_signature", "check_bearer_token"])
@pytest.mark.parametrize("secret", [{}, {"SECRET": ()}, {"SECRET": []}])
def test_a_ready_made_check_needs_a_secret(check: str, secret: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Set SECRET"):
        event_settings({**PREFIX, "AUTH": f"edda_wsgi.auth.{check}", **secret})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("/events", ["must be a dict"]),
        ({"URL_PREFX": "/events"}, ["URL_PREFX", "Did you mean URL_PREFIX?"]),
        ({"url_prefix": "/events"}, ["Did you mean URL_PREFIX?"]),
        ({**OPEN, "SECRETS": "x"}, ["Did you mean SECRET?"]),
        ({**OPEN, "URL_PREFIX": "events"}, ["URL_PREFIX", "'events'"]),
        ({**OPEN, "URL_PREFIX": "/events/"}, ["URL_PREFIX", "without a slash at its end"]),
        ({**OPEN, "URL_PREFIX": "/"}, ["URL_PREFIX"]),
        ({**OPEN, "URL_PREFIX": "/<path:x>"}, ["URL_PREFIX"]),
        ({**OPEN, "URL_PREFIX": 5}, ["URL_PREFIX", "5"]),
        ({**PREFIX, "AUTH": "check"}, ["AUTH", "'check'", "dotted path"]),
        ({**PREFIX, "AUTH": ""}, ["AUTH", "dotted path"]),
        ({**PREFIX, "AUTH": 5}, ["AUTH"]),
        ({**PREFIX, "AUTH": True}, ["AUTH"]),
        ({**PREFIX, "AUTH": dict}, ["AUTH", "function"]),
        ({**OPEN, "MAX_BYTES": 0}, ["MAX_BYTES", "0"]),
        ({**OPEN, "MAX_BYTES": "many"}, ["MAX_BYTES", "'many'"]),
        ({**OPEN, "DEDUPLICATION_DAYS": 0}, ["DEDUPLICATION_DAYS"]),
        ({**OPEN, "DEDUPLICATION_DAYS": float("inf")}, ["DEDUPLICATION_DAYS"]),
        ({**OPEN, "TOLERANCE_SECONDS": -1}, ["TOLERANCE_SECONDS"]),
    ],
)
def test_what_is_wrong_is_named(given: Any, words: Sequence[str]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        event_settings(given)
    assert "EVENTS" in str(refused.value)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "secret", ["", "  ", 12345678, ["topsecret", ""], ["topsecret", 5], {"topsecret": 1}, b"topsecret"]
)
def test_a_wrong_secret_is_refused_without_telling_it(secret: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"EVENTS\['SECRET'\] is wrong") as refused:
        event_settings({**PREFIX, "AUTH": "edda_wsgi.auth.check_signature", "SECRET": secret})
    told = "".join(str(each) for each in (refused.value, refused.value.__cause__, repr(refused.value)))
    assert "topsecret" not in told
    assert "12345678" not in told


def test_a_wrong_value_beside_a_secret_does_not_tell_it() -> None:
    app = Flask("shop")
    with pytest.raises(ConfigurationError) as refused:
        EddaFlask(app, events={**OPEN, "SECRET": "topsecret", "MAX_BYTES": 0})
    chain = [refused.value, refused.value.__cause__, refused.value.__context__]
    assert "topsecret" not in "".join(repr(each) for each in chain[:2])


def test_a_secret_may_come_from_the_environment_beside_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Flask("shop")
    app.config["EDDA"] = {"EVENTS": {**PREFIX, "AUTH": "edda_wsgi.auth.check_signature"}}
    monkeypatch.setenv("FLASK_EDDA__EVENTS__SECRET", "from-the-environment")
    app.config.from_prefixed_env()
    EddaFlask(app)
    settings = app.extensions["edda"].settings.events
    assert settings.secrets == (b"from-the-environment",)
    assert "from-the-environment" not in f"{settings} {settings!r}"


def test_the_endpoint_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cloudevents"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cloudevents", None)
    monkeypatch.delitem(sys.modules, "edda_wsgi.incoming", raising=False)
    with pytest.raises(ConfigurationError, match=r"Install edda-wsgi\[cloudevents\]"):
        EddaFlask(Flask("shop"), events=OPEN)
    EddaFlask(Flask("another shop"))
    monkeypatch.undo()
    importlib.import_module("edda_wsgi.incoming")


@pytest.mark.parametrize("name", [name.upper() for name in EventSettings.model_fields])
def test_every_key_has_an_entry_in_the_reference(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs/reference/settings.md").read_text()
    assert re.search(rf"^\| `{name}` \|", text, re.MULTILINE)
