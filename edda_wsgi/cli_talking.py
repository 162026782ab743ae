"""``flask edda send-event``, and how ``flask edda show`` words what came.

The command's transaction is its own and is committed before it ends: outside a request nobody would commit another.
"""

from __future__ import annotations

import json
from typing import Any

import click
from flask import current_app

from edda_engine.core.events import EventType, HistoryEvent
from edda_wsgi import talking, terminal
from edda_wsgi.application import Application

_EXAMPLE = "--data '{\"order_id\": 7}'"


@click.argument("event_type", metavar="TYPE")
@click.option("--data", "data_json", default="null", show_default=True, help="What it says, as JSON.")
@click.option("--source", default="flask edda", show_default=True, help="Who sends it.")
@click.option(
    "--instance", "instance_id", metavar="ID", help="The one instance it is for, even if it waits only later."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def send_event(event_type: str, data_json: str, source: str, instance_id: str | None, as_json: bool) -> None:
    """Send an event to every instance that waits for its TYPE, or to one instance."""
    application: Application = current_app.extensions["edda"]
    message = talking.event_of(application, event_type, source, _parsed(data_json), instance_id)
    event_id = talking.send(application, "send_event()", message, None)
    click.echo(json.dumps({"event_id": event_id}, indent=2) if as_json else event_id)


def told(event: HistoryEvent) -> str:
    """A step of a history in a few words."""
    result = event.event_data.get("result")
    match event.event_type:
        case EventType.ACTIVITY_FAILED:
            return terminal.visible(str(event.event_data.get("error", {}).get("message")))
        case EventType.EVENT_RECEIVED | EventType.MESSAGE_RECEIVED if isinstance(result, dict):
            content = short(result["data"]) if "data" in result else "some bytes"
            return f"{terminal.visible(result['name'])} {content}"
        case EventType.SUBSCRIBED | EventType.UNSUBSCRIBED:
            return short(event.event_data.get("input"))
        case EventType.TIMER_FIRED | EventType.WAIT_TIMED_OUT | EventType.WAIT_WITHDRAWN:
            return {"TimerFired": "time is up", "WaitTimedOut": "nothing came in time"}.get(
                event.event_type, "withdrawn"
            )
        case _:
            return short(result)


def short(value: Any) -> str:
    """A JSON value on one line."""
    return terminal.short(json.dumps(value, default=str, ensure_ascii=False))


def why_not_json(error: ValueError | RecursionError) -> str:
    """What was wrong with a text that ``json.loads`` did not read, in a few words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "an integer of too many digits" if "digits" in str(error) else str(error)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(
            f"not JSON ({why_not_json(error)}); for example {_EXAMPLE}, and --data '\"text\"' for a text",
            param_hint="--data",
        ) from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON value")
