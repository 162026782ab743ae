"""``flask edda prune``: delete what is over, a batch at a time, with its progress."""

from __future__ import annotations

import json

import click
from flask import current_app

from edda_engine.storage import pruning
from edda_wsgi.application import Application

_DAY_SECONDS = 86_400.0


@click.option(
    "--older-than", "days", metavar="DAYS", type=click.FloatRange(min=0), help="That ended so many days ago or earlier."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def prune(days: float | None, as_json: bool) -> None:
    """Delete instances that have ended, with their histories."""
    application: Application = current_app.extensions["edda"]
    if days is None:
        days = application.settings.instance_retention_days
    if days is None:
        raise click.UsageError(
            "Say how old: --older-than DAYS, or set INSTANCE_RETENTION_DAYS. Without either, instances are kept for ever."
        )
    seconds = days * _DAY_SECONDS
    total = 0
    while count := application.client.write(
        "request.prune", lambda conn: pruning.prune_instances(conn, older_than_seconds=seconds)
    ):
        total += count
        if not as_json:
            click.echo(f"  {total} deleted ...", err=True)
    click.echo(json.dumps({"deleted": total}) if as_json else f"{total} instances deleted.")
