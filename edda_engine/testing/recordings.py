"""A recorded run: what is needed to replay it, from the database or from a file kept beside the tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edda_engine.core.codec import parse
from edda_engine.core.events import Recorded
from edda_engine.core.status import Status
from edda_engine.errors import InstanceNotFoundError, UsageError
from edda_engine.storage import history, instances
from edda_engine.storage.database import Database

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Recording:
    """One instance with its history; payloads are parsed JSON."""

    instance_id: str
    workflow_name: str
    status: Status
    input: Any
    output: Any
    error: dict[str, Any] | None
    steps: tuple[Recorded, ...]

    def save(self, path: Path) -> None:
        """Write it to a file, in a form that a person can read."""
        plain = {
            "format": _FORMAT,
            "instance_id": self.instance_id,
            "workflow_name": self.workflow_name,
            "status": str(self.status),
            "input": self.input,
            "output": self.output,
            "error": self.error,
            "steps": [{name: getattr(step, name) for name in Recorded.__slots__} for step in self.steps],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def recording_of(database: Database, instance_id: str) -> Recording:
    """What the database has of an instance.

    :raises InstanceNotFoundError: there is none of that id.
    """
    with database.read() as conn:
        row = instances.find(conn, instance_id)
        if row is None:
            raise InstanceNotFoundError(instance_id)
        steps, _ = history.load(conn, [instance_id]).get(instance_id, ([], 0))
    return Recording(
        instance_id=instance_id,
        workflow_name=row["workflow_name"],
        status=Status(row["status"]),
        input=parse(row["input"]),
        output=None if row["output"] is None else parse(row["output"]),
        error=None if row["error"] is None else parse(row["error"]),
        steps=tuple(steps),
    )


def load_recording(path: Path) -> Recording:
    """What :meth:`Recording.save` has written.

    :raises UsageError: the file holds no recording.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != _FORMAT:
            raise ValueError(f"its format is {plain['format']!r}, and this version reads {_FORMAT}")
        return Recording(
            instance_id=plain["instance_id"],
            workflow_name=plain["workflow_name"],
            status=Status(plain["status"]),
            input=plain["input"],
            output=plain["output"],
            error=plain["error"],
            steps=tuple(Recorded(**step) for step in plain["steps"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no recording of a run ({error!r}). Make one with save_recording(path).") from error
