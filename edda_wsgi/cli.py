"""``flask edda ...``: run a worker, look at instances, and act on them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import click
from flask import current_app
from flask.cli import AppGroup, with_appcontext
from sqlalchemy.exc import SQLAlchemyError

from edda_engine.client import Instance
from edda_engine.core.events import HistoryEvent
from edda_engine.core.status import WAITING, Status
from edda_engine.errors import EddaError
from edda_engine.outbox.publishers import load_publisher
from edda_engine.storage import migrate
from edda_engine.storage.connecting import shown_url
from edda_engine.storage.database import is_outage
from edda_engine.version import __version__
from edda_engine.workflow import StartOptions, workflows
from edda_wsgi import cli_outbox, cli_prune, cli_talking, health, lifecycle, terminal
from edda_wsgi.application import Application
from edda_wsgi.loading import import_modules, load_check, load_hooks
from edda_wsgi.settings import names
from edda_wsgi.supervisor import Supervisor, is_supervised

_COLOURS = {
    Status.PENDING: "cyan",
    Status.RUNNING: "blue",
    Status.COMPLETED: "green",
    Status.FAILED: "red",
    Status.CANCELLED: "yellow",
    Status.COMPENSATING: "magenta",
}
_EXIT_PROBLEM = 1

edda_commands = AppGroup("edda", help="Durable workflows: run a worker, look at instances, act on them.")

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def _command(name: str, group: AppGroup = edda_commands) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of a group whose expected errors are one line, not a traceback."""

    def declare(function: Callable[..., Any]) -> click.Command:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (EddaError, ValueError) as error:
                _fail(str(error))
            except SQLAlchemyError as error:
                first_line = str(error).splitlines()[0]
                if is_outage(error):
                    _fail(
                        f"The database does not answer: {first_line}. Check that it runs, and `flask edda check` for its URL."
                    )
                _fail(f"The database refused: {first_line}")

        guarded.__doc__ = function.__doc__
        guarded.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        return group.command(name)(with_appcontext(guarded))

    return declare


@_command("worker")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 256), help="So many, kept alive.")
def worker(processes: int) -> None:
    """Run workflows until SIGTERM or Ctrl-C; then let activities finish and hand the rest over."""
    application = _application()
    import_modules(application.settings.workflows)
    if processes > 1 and not is_supervised():
        click.echo(f"edda {__version__}: {processes} workers for {application.settings.service_name!r}", err=True)
        if not Supervisor(processes, shutdown_seconds=application.settings.shutdown_seconds).run():
            sys.exit(_EXIT_PROBLEM)
        return
    click.echo(f"edda {__version__}: worker for service {application.settings.service_name!r}", err=True)
    click.echo(f"  database   {_shown_url(application)}", err=True)
    click.echo(f"  workflows  {', '.join(workflows.names()) or 'none: name their modules in WORKFLOWS'}", err=True)
    click.echo("  stop with Ctrl-C or SIGTERM", err=True)
    if lifecycle.run_until_signalled(application, ends_process=True):
        click.echo("stopped; nothing is left behind", err=True)


@_command("upgrade")
@_as_json
def upgrade(as_json: bool) -> None:
    """Create or upgrade the edda_ tables; safe to run at any time, in any number of processes."""
    if not as_json:
        click.echo("Upgrading the edda_ tables ...", err=True)
    changed = migrate.upgrade(_application().database)
    if as_json:
        _print_json({"changed": changed, "revision": migrate.HEAD})
    else:
        click.echo(f"{'Upgraded to' if changed else 'Already at'} revision {migrate.HEAD}.")


@_command("list")
@click.option("--status", "statuses", multiple=True, help="Only this status; give it several times for several.")
@click.option("--workflow", "workflow_name", help="Only this workflow.")
@click.option("--limit", default=50, show_default=True, help="How many, at most 1000.")
@click.option("--page-token", help="Continue where the page before ended.")
@_as_json
def list_(
    statuses: Sequence[str], workflow_name: str | None, limit: int, page_token: str | None, as_json: bool
) -> None:
    """List instances, newest first."""
    page = _with_tables().client.find_instances(
        status=list(statuses) or None, workflow_name=workflow_name, limit=limit, page_token=page_token
    )
    if as_json:
        _print_json({"instances": [_plain(found) for found in page.instances], "next_page_token": page.next_page_token})
        return
    if not page.instances:
        click.echo("No instances match.")
        return
    rows = [
        (
            terminal.visible(found.instance_id),
            terminal.visible(found.workflow_name),
            click.style(found.status, fg=_COLOURS.get(found.status)),
            _ago(found.created_at),
            _remark(found),
        )
        for found in page.instances
    ]
    _print_table(("INSTANCE", "WORKFLOW", "STATUS", "STARTED", ""), rows)
    if page.next_page_token:
        click.echo(f"More: --page-token {page.next_page_token}", err=True)


@_command("show")
@click.argument("instance_id")
@_as_json
def show(instance_id: str, as_json: bool) -> None:
    """Show an instance and its history as a timeline."""
    client = _with_tables().client
    found, events = client.get(instance_id), client.history(instance_id)
    if as_json:
        _print_json({"instance": _plain(found), "history": [_plain(event) for event in events]})
        return
    click.echo(
        f"{click.style(terminal.visible(found.workflow_name), bold=True)}  {terminal.visible(found.instance_id)}"
    )
    facts = [
        (
            "status",
            click.style(found.status, fg=_COLOURS.get(found.status))
            + (f"  {_remark(found)}" if _remark(found) else ""),
        ),
        ("input", cli_talking.short(found.input)),
        ("output", cli_talking.short(found.output) if found.status is Status.COMPLETED else None),
        ("started", f"{found.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("ended", f"{found.completed_at:%Y-%m-%d %H:%M:%S} UTC" if found.completed_at else None),
        ("due", f"{found.wake_at:%Y-%m-%d %H:%M:%S} UTC" if found.wake_at and not found.locked_by else None),
        ("worker", f"{found.locked_by}, lease until {found.lock_expires_at:%H:%M:%S} UTC" if found.locked_by else None),
        ("reason", None if found.cancel_reason is None else terminal.visible(found.cancel_reason)),
    ]
    for name, value in facts:
        if value is not None:
            click.echo(f"  {name:<8} {value}")
    click.echo()
    for event in events:
        click.echo(_timeline_line(event, found.created_at))
    if not events:
        click.echo("  (no step is recorded yet)")
    if found.error is not None:
        click.echo()
        click.secho(f"  {terminal.visible_lines(found.error_summary or '')}", fg="red")
        if found.error.get("traceback"):
            click.echo(_indented(found.error["traceback"]))


@_command("start")
@click.argument("name")
@click.option("--input", "input_json", default="{}", show_default=True, help="The arguments, as a JSON object.")
@click.option("--instance-id", help="An id of your own; the same one starts nothing twice.")
@click.option("--delay", type=float, help="Seconds until it is due.")
@_as_json
def start(name: str, input_json: str, instance_id: str | None, delay: float | None, as_json: bool) -> None:
    """Start a workflow by name."""
    application = _application()
    import_modules(application.settings.workflows)
    try:
        arguments = json.loads(input_json)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(
            f"not JSON ({cli_talking.why_not_json(error)}); for example --input '{{\"order_id\": 7}}'",
            param_hint="--input",
        ) from None
    if not isinstance(arguments, dict):
        raise click.BadParameter(
            "a JSON object of arguments is needed, such as '{\"order_id\": 7}'", param_hint="--input"
        )
    options = StartOptions(instance_id=instance_id, delay=delay, session=None)
    started = application.start(workflows.find(name), options, (), arguments)
    if as_json:
        _print_json({"instance_id": started})
    else:
        click.echo(started)


@_command("cancel")
@click.argument("instance_id")
@click.option("--reason", help="Shown with the instance.")
@_as_json
def cancel(instance_id: str, reason: str | None, as_json: bool) -> None:
    """Cancel an instance: a waiting one at once, a running one at its next step."""
    application = _with_tables()
    done = application.cancel(instance_id, reason, None)
    _print_act(
        instance_id, done, as_json, yes="Cancelled, or asked to stop at its next step.", no="It has ended already."
    )


@_command("retry")
@click.argument("instance_id")
@_as_json
def retry(instance_id: str, as_json: bool) -> None:
    """Take up a failed or blocked instance again; a final failed step is tried anew."""
    application = _with_tables()
    done = application.client.retry(instance_id)
    application.wake()
    no = "Nothing to take up: it is under way, or it has completed or was cancelled."
    _print_act(instance_id, done, as_json, yes="It is due again; a worker takes it up.", no=no)


_command("send-event")(cli_talking.send_event)
_command("prune")(cli_prune.prune)

_outbox_commands = AppGroup("outbox", help="Events for other services: look at them, try again, delete.")
edda_commands.add_command(_outbox_commands)
for _name, _function in cli_outbox.COMMANDS.items():
    _command(_name, _outbox_commands)(_function)


@_command("health")
def health_command() -> None:
    """Fail unless the database answers and a worker of this service lives on this host; for containers."""
    checks = health.report_host(_application())
    for check in checks:
        click.secho(f"{check.name:10} {check.problem or 'ok'}", fg="red" if check.problem else "green")
    if any(check.problem for check in checks):
        sys.exit(_EXIT_PROBLEM)


@_command("check")
@_as_json
def check(as_json: bool) -> None:
    """Print every effective setting with its source, and what is wrong. Exit status 1 if anything is."""
    application = _application()
    problems = _problems(application)
    rows = [(name, _shown(application, name), application.sources[name]) for name in names()]
    if as_json:
        values = {name: {"value": value, "source": source} for name, value, source in rows}
        _print_json(
            {"settings": values, "workflows": workflows.names(), "notes": application.notes, "problems": problems}
        )
    else:
        _print_table(("SETTING", "VALUE", "FROM"), rows)
        click.echo(f"\nworkflows: {', '.join(workflows.names()) or 'none known in this process'}")
        for note in application.notes:
            click.secho(f"NOTE  {note}", fg="yellow")
        for problem in problems:
            click.secho(f"PROBLEM  {problem}", fg="red")
        if not problems:
            click.secho("Everything is in order.", fg="green")
    if problems:
        sys.exit(_EXIT_PROBLEM)


def _application() -> Application:
    found: Application = current_app.extensions["edda"]
    return found


def _with_tables() -> Application:
    """The application, its tables made if need be: asking a new database is no error."""
    found = _application()
    found.tables.ensure()
    return found


def _problems(application: Application) -> list[str]:
    found = []
    for attempt in (
        lambda: import_modules(application.settings.workflows),
        lambda: load_hooks(application.settings.hooks),
        lambda: application.settings.outbox is None or load_publisher(application.settings.outbox),
        lambda: application.settings.events.auth is None or load_check(application.settings.events.auth),
    ):
        try:
            attempt()
        except Exception as error:  # importing the user's modules may raise anything
            found.append(f"{type(error).__name__}: {error}")
    try:
        problem = migrate.check(application.database)
        if problem is not None and not application.settings.auto_migrate:
            found.append(problem)
    except Exception as error:
        found.append(f"The database does not answer: {str(error).splitlines()[0]}")
    return found


def _shown(application: Application, name: str) -> str:
    value = getattr(application.settings, name.lower())
    if name == "DATABASE_URL":
        return _shown_url(application)
    return str(value)


def _shown_url(application: Application) -> str:
    """The URL, without the password."""
    return shown_url(application.database.engine.url)


def _remark(found: Instance) -> str:
    if found.is_blocked:
        return f"blocked: {terminal.short(found.error_summary or 'nobody takes it up')}; see `flask edda retry`"
    if not found.is_runnable:
        return "no live worker knows this workflow"
    if found.status is Status.FAILED:
        return terminal.short(found.error_summary or "")
    if found.status is Status.RUNNING and found.locked_by is None:
        return "waits for a worker"
    if found.cancel_requested_at and not found.status.is_finished:
        return "asked to stop"
    if found.status in WAITING and found.wake_at:
        return f"until {found.wake_at:%Y-%m-%d %H:%M:%S} UTC"
    return ""


def _timeline_line(event: HistoryEvent, since: datetime) -> str:
    seconds = (event.created_at - since).total_seconds()
    failed = event.event_type.endswith("Failed")
    mark = click.style("x" if failed else "+", fg="red" if failed else "green")
    line = f"  {seconds:>9.3f} s  {mark}  {terminal.visible(event.activity_id):<28} {cli_talking.told(event)}"
    metadata = event.event_data.get("retry_metadata")
    if metadata:
        line += click.style(f"  ({metadata['total_attempts']} attempts, {metadata['total_duration_ms']} ms)", dim=True)
    return line


def _print_act(instance_id: str, done: bool, as_json: bool, *, yes: str, no: str) -> None:
    if as_json:
        _print_json({"instance_id": instance_id, "done": done})
    else:
        click.echo(yes if done else no)
    if not done:
        sys.exit(_EXIT_PROBLEM)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(click.unstyle(row[column])) for row in (header, *rows)) for column in range(len(header))]
    for number, row in enumerate((header, *rows)):
        cells = [text + " " * (width - len(click.unstyle(text))) for text, width in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, default=str, indent=2))


def _plain(found: Any) -> dict[str, Any]:
    values = dataclasses.asdict(found)
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}


def _ago(moment: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in terminal.visible_lines(text).split("\n"))


def _fail(message: str) -> NoReturn:
    click.secho(f"Error: {terminal.visible_lines(message)}", fg="red", err=True)
    sys.exit(_EXIT_PROBLEM)
