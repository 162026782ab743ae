"""Durable workflows on the application's own database: the async engine, without a web framework."""

from edda_engine.activity import Activity, activity
from edda_engine.app import EddaApp
from edda_engine.channels import ChannelMessage, publish, receive, send_to, subscribe, unsubscribe
from edda_engine.client import Instance, Page
from edda_engine.context import SyncWorkflowContext, WorkflowContext
from edda_engine.core.events import HistoryEvent
from edda_engine.core.retrying import RetryPolicy
from edda_engine.core.status import Status
from edda_engine.errors import (
    ActivityTimeoutError,
    ChannelModeConflictError,
    ConfigurationError,
    DatabaseUnavailableError,
    DuplicateNameError,
    EddaError,
    EventTimeoutError,
    InstanceConflictError,
    InstanceNotFoundError,
    InvalidInputError,
    MessageTimeoutError,
    NewerVersionError,
    NonDeterminismError,
    PayloadError,
    PublishLaterError,
    PublishRefusedError,
    RepeatedCrashError,
    ResultTimeoutError,
    RetryExhaustedError,
    StartNotCommittedError,
    TerminalError,
    UnknownWorkflowError,
    UsageError,
    WorkflowCancelledError,
    WorkflowFailedError,
)
from edda_engine.events import EventMetadata, ReceivedEvent, send_event, wait_event
from edda_engine.hooks import HooksBase, WorkflowHooks
from edda_engine.outbox.transactional import send_event_transactional
from edda_engine.relayer import OutboxRelayer
from edda_engine.timers import sleep, sleep_until, wait_timer, wait_until
from edda_engine.version import __version__
from edda_engine.workflow import Workflow, workflow

__all__ = [
    "Activity",
    "ActivityTimeoutError",
    "ChannelMessage",
    "ChannelModeConflictError",
    "ConfigurationError",
    "DatabaseUnavailableError",
    "DuplicateNameError",
    "EddaApp",
    "EddaError",
    "EventMetadata",
    "EventTimeoutError",
    "HistoryEvent",
    "HooksBase",
    "Instance",
    "InstanceConflictError",
    "InstanceNotFoundError",
    "InvalidInputError",
    "MessageTimeoutError",
    "NewerVersionError",
    "NonDeterminismError",
    "OutboxRelayer",
    "Page",
    "PayloadError",
    "PublishLaterError",
    "PublishRefusedError",
    "ReceivedEvent",
    "RepeatedCrashError",
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
    "publish",
    "receive",
    "send_event",
    "send_event_transactional",
    "send_to",
    "sleep",
    "sleep_until",
    "subscribe",
    "unsubscribe",
    "wait_event",
    "wait_timer",
    "wait_until",
    "workflow",
]
