"""Settings, Django-style: upper-case names from several sources, validated once.

Later sources win: defaults, the module named by ``EDDA_SETTINGS_MODULE``, ``app.config["EDDA"]``, flat
``app.config["EDDA_<NAME>"]`` (so ``app.config.from_prefixed_env()`` works), keyword arguments of ``EddaFlask``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flask import Flask
from pydantic import Field, ValidationError, field_validator

from edda_engine.errors import ConfigurationError
from edda_engine.settings import EngineSettings, check_name
from edda_wsgi.event_settings import EventSettings, event_settings

MODULE_VARIABLE = "EDDA_SETTINGS_MODULE"
_PREFIX = "EDDA_"
_SECRET = ("DATABASE_URL", "OUTBOX", "EVENTS")
"""What is never repeated in an error: a password may be in it."""


class FlaskSettings(EngineSettings):
    """The engine's settings, and those that only make sense in an application."""

    database_url: str | None = Field(
        None,
        description="Where the edda_ tables live; by default the application's own SQLAlchemy engine, and without"
        " one a SQLite file in the instance folder. Another database than the application's cannot share its transactions.",
    )
    workflows: tuple[str, ...] = Field(
        (), description="Modules with workflows, imported when a worker starts, like INSTALLED_APPS."
    )
    role: Literal["embedded", "client"] = Field(
        "embedded",
        description="'embedded': each server process runs workflows too. 'client': this process only starts and asks;"
        " `flask edda worker` runs them.",
    )
    hooks: tuple[str, ...] = Field((), description="Dotted paths of hook classes, made without arguments.")
    events: EventSettings = Field(
        default_factory=lambda: event_settings({}),
        description="CloudEvents over HTTP: whether and how they are taken; see edda_wsgi.event_settings.",
    )

    @field_validator("workflows", "hooks", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("events", mode="before")
    @classmethod
    def _events_from_dict(cls, value: object) -> EventSettings:
        return event_settings(value)

    def engine_settings(self) -> EngineSettings:
        """The part that the engine knows."""
        return EngineSettings(**{name: getattr(self, name) for name in EngineSettings.model_fields})


@dataclass(frozen=True, slots=True)
class Effective:
    """Validated settings, and for each name where its value came from."""

    settings: FlaskSettings
    sources: Mapping[str, str]


def load(app: Flask, keywords: Mapping[str, Any]) -> Effective:
    """Collect and validate the settings of an application.

    :raises ConfigurationError: an unknown name or a wrong value; the message names its source.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, found in _sources(app, keywords):
        for name, value in found.items():
            check_name(name, names(), source=source)
            values[name.lower()] = value
            sources[name] = source
    try:
        settings = FlaskSettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "EDDA"
        value = "" if name in _SECRET else f" = {first.get('input')!r}"
        raise ConfigurationError(
            f"The setting {name}{value} (from {sources.get(name, 'its default')}) is wrong: {first['msg']}."
        ) from None  # the cause would show all that was given
    return Effective(settings, {name: sources.get(name, "default") for name in names()})


def names() -> list[str]:
    """Every setting's name, in upper case."""
    return [name.upper() for name in FlaskSettings.model_fields]


def _sources(app: Flask, keywords: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = []
    module_name = os.environ.get(MODULE_VARIABLE)
    if module_name:
        found.append((f"the module {module_name}", _from_module(module_name)))
    mapping = app.config.get("EDDA", {})
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(
            f'app.config["EDDA"] must be a dict of settings, not a {type(mapping).__name__}. If it comes from the'
            " environment, it must be JSON."
        )
    found.append(('app.config["EDDA"]', mapping))
    flat = {key.removeprefix(_PREFIX): value for key, value in app.config.items() if key.startswith(_PREFIX)}
    flat.pop("SETTINGS_MODULE", None)
    found.append(("app.config EDDA_*", flat))
    found.append(("EddaFlask(...)", {name.upper(): value for name, value in keywords.items()}))
    return found


def _from_module(module_name: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            f"{MODULE_VARIABLE} names {module_name!r}, which cannot be imported: {error}"
        ) from error
    collected = dict(getattr(module, "EDDA", {}))
    collected.update(
        {name.removeprefix(_PREFIX): getattr(module, name) for name in dir(module) if name.startswith(_PREFIX)}
    )
    return collected
