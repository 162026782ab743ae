"""``flask edda outbox ...``: what waits to be published, what never will be, and what to do about it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from flask import current_app
from sqlalchemy import Connection

from edda_engine.errors import UsageError
from edda_engine.storage import outbox_upkeep
from edda_engine.storage.outbox_upkeep import STATUSES, OutboxEntry
from edda_wsgi import terminal
from edda_wsgi.application import Application

T = TypeVar("T")

_DAY_SECONDS = 86_400.0
_AT_ONCE = 500
_MOST = 10_000
_COLOURS = {"pending": "cyan", "publishing": "blue", "published": "green", "dead": "red"}

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.option("--status", "statuses", multiple=True, type=click.Choice(STATUSES), help="Only these; may be repeated.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, _MOST), help="How many.")
@_as_json
def list_(statuses: Sequence[str], limit: int, as_json: bool) -> None:
    """List events, the latest first, and why they are not published yet."""
    application = _application()
    with application.database.read() as conn:
        entries = outbox_upkeep.listed(conn, statuses=statuses, limit=limit)
    if as_json:
        click.echo(json.dumps({"events": [dataclasses.asdict(entry) for entry in entries]}, default=_plain, indent=2))
        return
    if not entries:
        click.echo("No events match.")
    for entry in entries:
        status = click.style(f"{entry.status:<10}", fg=_COLOURS[entry.status])
        what = terminal.visible(entry.type + _of_key(entry))
        click.echo(f"{entry.event_id:<36}  {status}  {what}  {_remark(entry)}".rstrip())


@click.argument("event_ids", metavar="[EVENT_ID]...", nargs=-1)
@click.option("--all-dead", is_flag=True, help="All dead ones.")
@_as_json
def retry(event_ids: tuple[str, ...], all_dead: bool, as_json: bool) -> None:
    """Publish dead events after all, or make waiting ones due now."""
    _need_one_of(event_ids, all_dead, "--all-dead")
    application = _application()
    if all_dead:
        done = _all(application, lambda conn: outbox_upkeep.retry_dead(conn, limit=_AT_ONCE))
    else:
        _refuse_unknown(application, event_ids)
        done = _change(application, lambda conn: outbox_upkeep.retry(conn, event_ids))
    application.wake_relay()
    _report(event_ids, done, as_json, word="due now", otherwise="published already, or being published")


@click.argument("event_ids", metavar="[EVENT_ID]...", nargs=-1)
@click.option("--all-dead", is_flag=True, help="All dead ones.")
@click.option(
    "--older-than-days", type=click.FloatRange(min=0), help="With --all-dead: only those written so long ago."
)
@_as_json
def purge(event_ids: tuple[str, ...], all_dead: bool, older_than_days: float | None, as_json: bool) -> None:
    """Delete dead events, or any others that are named; what was not published never will be."""
    _need_one_of(event_ids, all_dead, "--all-dead")
    if older_than_days is not None and not all_dead:
        raise click.UsageError("--older-than-days belongs to --all-dead.")
    application = _application()
    if all_dead:
        seconds = (older_than_days or 0.0) * _DAY_SECONDS
        done = _all(
            application, lambda conn: outbox_upkeep.purge_dead(conn, older_than_seconds=seconds, limit=_AT_ONCE)
        )
    else:
        _refuse_unknown(application, event_ids)
        done = _change(application, lambda conn: outbox_upkeep.purge(conn, event_ids))
    application.wake_relay()
    _report(event_ids, done, as_json, word="deleted", otherwise="being published just now; try again")


COMMANDS: dict[str, Callable[..., Any]] = {"list": list_, "retry": retry, "purge": purge}


def _application() -> Application:
    found: Application = current_app.extensions["edda"]
    found.tables.ensure()
    return found


def _change(application: Application, work: Callable[[Connection], T]) -> T:
    return application.client.write("request.outbox", work)


def _all(application: Application, work: Callable[[Connection], list[str]]) -> list[str]:
    """Do it batch by batch, each committed, until nothing is left to do."""
    done: list[str] = []
    while batch := _change(application, work):
        done += batch
    return done


def _need_one_of(event_ids: tuple[str, ...], flag: bool, name: str) -> None:
    if bool(event_ids) == flag:
        raise click.UsageError(f"Name events by their ids, or give {name}.")


def _refuse_unknown(application: Application, event_ids: Sequence[str]) -> None:
    with application.database.read() as conn:
        unknown = set(event_ids) - outbox_upkeep.existing(conn, event_ids)
    if unknown:
        raise UsageError(
            f"The outbox has no event {', '.join(map(terminal.visible, sorted(unknown)))}; nothing was changed. `flask edda outbox list`"
            " shows what there is; published events are deleted after RETENTION_DAYS."
        )


def _report(wanted: Sequence[str], done: Sequence[str], as_json: bool, *, word: str, otherwise: str) -> None:
    left = [event_id for event_id in wanted if event_id not in done]
    if as_json:
        click.echo(json.dumps({"events": list(done), "left": left}, indent=2))
    else:
        click.echo(f"{len(done)} {'event' if len(done) == 1 else 'events'} {word}.")
        for event_id in left:
            click.echo(f"{event_id} is {otherwise}.")
    if left:
        raise SystemExit(1)


def _of_key(entry: OutboxEntry) -> str:
    return "" if entry.ordering_key is None else f" [{entry.ordering_key}]"


def _remark(entry: OutboxEntry) -> str:
    told = terminal.short(entry.last_error or "")
    tries = f"{entry.attempts} {'try' if entry.attempts == 1 else 'tries'}" if entry.attempts else ""
    soon = ""
    if entry.status == "pending" and entry.attempts and entry.next_attempt_at is not None:
        soon = f"next {max(0, int((entry.next_attempt_at - datetime.now(UTC)).total_seconds()))} s from now"
    return ", ".join(part for part in (tries, soon, told) if part)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
