"""Durable workflows on the application's own database: the async engine, without a web framework."""

from edda_engine.activity import Activity, activity
from edda_engine.app import EddaApp
from edda_engine.client import Instance, Page
from edda_engine.context import SyncWorkflowContext, WorkflowContext
from edda_engine.core.events import HistoryEvent
from edda_engine.core.retrying import RetryPolicy
from edda_engine.core.status import Status
from edda_engine.errors import (
    ActivityTimeoutError,
    ConfigurationError,
    DatabaseUnavailableError,
    DuplicateNameError,
    EddaError,
    InstanceConflictError,
    InstanceNotFoundError,
    InvalidInputError,
    NewerVersionError,
    NonDeterminismError,
    PayloadError,
    ResultTimeoutError,
    RetryExhaustedError,
    StartNotCommittedError,
    TerminalError,
    UnknownWorkflowError,
    UsageError,
    WorkflowCancelledError,
    WorkflowFailedError,
)
from edda_engine.hooks import HooksBase, WorkflowHooks
from edda_engine.outbox.transactional import send_event_transactional
from edda_engine.version import __version__
from edda_engine.workflow import Workflow, workflow

__all__ = [
    "Activity",
    "ActivityTimeoutError",
    "ConfigurationError",
    "DatabaseUnavailableError",
    "DuplicateNameError",
    "EddaApp",
    "EddaError",
    "HistoryEvent",
    "HooksBase",
    "Instance",
    "InstanceConflictError",
    "InstanceNotFoundError",
    "InvalidInputError",
    "NewerVersionError",
    "NonDeterminismError",
    "Page",
    "PayloadError",
    "ResultTimeoutError",
    "RetryExhaustedError",
    "RetryPolicy",
    "StartNotCommittedError",
    "Status",
    "SyncWorkflowContext",
    "TerminalError",
    "UnknownWorkflowError",
    "UsageError",
    "Workflow",
    "WorkflowCancelledError",
    "WorkflowContext",
    "WorkflowFailedError",
    "WorkflowHooks",
    "__version__",
    "activity",
    "send_event_transactional",
    "workflow",
]
