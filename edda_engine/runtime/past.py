"""What is recorded of an instance when a worker takes it up."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from edda_engine.core.events import Recorded
from edda_engine.storage import history, retries
from edda_engine.storage.claiming import Lease
from edda_engine.storage.retries import RetryState


@dataclass(frozen=True, slots=True)
class Past:
    """The steps of one instance, and the retries under way."""

    steps: tuple[Recorded, ...] = ()
    last_seq: int = 0
    retry_states: dict[str, RetryState] | None = None

    @property
    def last_step(self) -> str | None:
        """The id of what was recorded last."""
        return self.steps[-1].activity_id if self.steps else None


def load_pasts(conn: Connection, leases: list[Lease]) -> dict[str, Past]:
    """What is recorded of the instances of these leases."""
    ids = [lease.instance_id for lease in leases]
    steps, states = history.load(conn, ids), retries.load(conn, ids)
    found = {}
    for instance_id in ids:
        recorded, last = steps.get(instance_id, ([], 0))
        found[instance_id] = Past(tuple(recorded), last, states.get(instance_id))
    return found
