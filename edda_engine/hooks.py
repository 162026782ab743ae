"""Hooks: told what happens, for telemetry. They run after the fact and change nothing.

A hook that raises is logged and forgotten: the step it was told about is done already.
"""

from __future__ import annotations

import logging
from typing import Protocol

_log = logging.getLogger(__name__)


class WorkflowHooks(Protocol):
    """What a hooks object may implement; derive from :class:`HooksBase` and override what you need.

    Called on the engine's loop thread: return quickly, hand slow work to a queue of your own.
    """

    def on_workflow_start(self, instance_id: str, workflow_name: str) -> None:
        """A run begins on this worker for the first time (not on replays)."""

    def on_workflow_complete(self, instance_id: str, workflow_name: str) -> None:
        """The result is committed."""

    def on_workflow_failed(self, instance_id: str, workflow_name: str, error: BaseException) -> None:
        """The failure is committed."""

    def on_workflow_cancelled(self, instance_id: str, workflow_name: str) -> None:
        """The cancellation of a running instance is committed."""

    def on_activity_start(self, instance_id: str, activity_id: str, activity_name: str, attempt: int) -> None:
        """An attempt begins."""

    def on_activity_complete(self, instance_id: str, activity_id: str, activity_name: str) -> None:
        """The result is committed; never called for answers from history."""

    def on_activity_retry(
        self, instance_id: str, activity_id: str, activity_name: str, error: BaseException, delay_seconds: float
    ) -> None:
        """An attempt failed and another one follows after *delay_seconds*."""

    def on_activity_failed(self, instance_id: str, activity_id: str, activity_name: str, error: BaseException) -> None:
        """The final failure is committed."""

    def on_event_sent(self, event_id: str, event_type: str, event_source: str) -> None:
        """An event of the outbox was published, and that is recorded; a crash in between publishes it twice."""


class HooksBase:
    """Hooks that do nothing; override the ones you want."""

    def on_workflow_start(self, instance_id: str, workflow_name: str) -> None:
        """Do nothing."""

    def on_workflow_complete(self, instance_id: str, workflow_name: str) -> None:
        """Do nothing."""

    def on_workflow_failed(self, instance_id: str, workflow_name: str, error: BaseException) -> None:
        """Do nothing."""

    def on_workflow_cancelled(self, instance_id: str, workflow_name: str) -> None:
        """Do nothing."""

    def on_activity_start(self, instance_id: str, activity_id: str, activity_name: str, attempt: int) -> None:
        """Do nothing."""

    def on_activity_complete(self, instance_id: str, activity_id: str, activity_name: str) -> None:
        """Do nothing."""

    def on_activity_retry(
        self, instance_id: str, activity_id: str, activity_name: str, error: BaseException, delay_seconds: float
    ) -> None:
        """Do nothing."""

    def on_activity_failed(self, instance_id: str, activity_id: str, activity_name: str, error: BaseException) -> None:
        """Do nothing."""

    def on_event_sent(self, event_id: str, event_type: str, event_source: str) -> None:
        """Do nothing."""


def call_hook(hooks: WorkflowHooks, name: str, instance_id: str, *details: object) -> None:
    """Tell the hooks what happened to an instance; what they raise is logged and changes nothing."""
    try:
        getattr(hooks, name)(instance_id, *details)
    except Exception:  # the edge of user code
        _log.exception("The hook %s raised for instance %s; nothing is changed by that", name, instance_id)
