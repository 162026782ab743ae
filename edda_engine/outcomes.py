"""How an instance has ended, read from its row or heard from the worker that ended it: a value, or an error raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import RowMapping

from edda_engine.core.codec import parse
from edda_engine.core.failures import decode_error
from edda_engine.core.status import Status
from edda_engine.errors import WorkflowCancelledError, WorkflowFailedError
from edda_engine.runtime.completions import Ending
from edda_engine.storage import instances
from edda_engine.workflow import workflows


@dataclass(frozen=True, slots=True)
class Ended:
    """An instance has completed, with this result."""

    value: Any


def last_run(conn: Connection, instance_id: str) -> RowMapping | None:
    """The row of an instance, or of its last successor."""
    row = instances.outcome(conn, instance_id)
    if row is None or row["status"] != Status.RECURRED:
        return row
    return instances.outcome(conn, instances.current_run(conn, instance_id))


def outcome_of_row(instance_id: str, row: RowMapping) -> Ended | str:
    """The result if the instance has completed, else a word about where it stands.

    :raises WorkflowFailedError: it failed.
    :raises WorkflowCancelledError: it was cancelled.
    """
    match Status(row["status"]):
        case Status.COMPLETED:
            return Ended(_typed_result(row["workflow_name"], row["output"]))
        case Status.FAILED:
            raise _failure(instance_id, row["workflow_name"], row["error"])
        case Status.CANCELLED:
            raise WorkflowCancelledError(instance_id, row["workflow_name"], row["cancel_reason"])
        case status:
            if row["error"] is not None:
                return f"{status}, and blocked: {parse(row['error']).get('message')}"
            return str(status)


def outcome_of_ending(ending: Ending) -> Ended:
    """The result of an instance that has completed in this process."""
    return Ended(_typed_result(ending.workflow_name, ending.output_json))


def _failure(instance_id: str, workflow_name: str, error_json: str | None) -> WorkflowFailedError:
    recorded = parse(error_json or "{}")
    summary = f"{recorded.get('error_type')}: {recorded.get('message')}"
    failure = WorkflowFailedError(instance_id, workflow_name, summary)
    failure.__cause__ = decode_error(recorded)
    return failure


def _typed_result(workflow_name: str, output: str | None) -> Any:
    workflow = workflows.get(workflow_name)
    if output is None:
        return None
    if workflow is None:
        return parse(output)
    return workflow.parameters.result.decode(output, owner=f"result of workflow {workflow_name!r}")
