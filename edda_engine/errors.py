"""Every error a user can meet, as one tree.

Each message says what happened, with the values, and what to do; the values are attributes too. ::

    EddaError
    ├── ConfigurationError            a setting, a declaration or the wiring is wrong
    │   └── DuplicateNameError        two different functions under one name
    ├── UsageError                    a call in a place where it has no meaning
    ├── InvalidInputError             the arguments of start() do not fit (also a TypeError)
    ├── InstanceConflictError         an instance id used again for something else
    ├── InstanceNotFoundError         no instance has that id (also a LookupError)
    ├── UnknownWorkflowError          no workflow of that name is known here (also a LookupError)
    ├── PayloadError                  a value cannot be stored as JSON, or does not fit its annotation
    ├── EventTimeoutError             no event came in time (also a TimeoutError)
    ├── MessageTimeoutError           no message came in time (also a TimeoutError)
    ├── ChannelModeConflictError      a channel used in two modes
    ├── NonDeterminismError           the code asks for something else than history recorded
    ├── RepeatedCrashError            worker after worker died while it ran an instance
    ├── NewerVersionError             history or schema written by a newer version of this library
    ├── DatabaseUnavailableError      the database did not answer
    ├── TerminalError                 raise it in an activity: no retry may follow
    ├── RetryExhaustedError           an activity failed on its last attempt
    ├── PublishRefusedError           raise it in a publisher: the event will never be taken
    ├── PublishLaterError             raise it in a publisher: the event is to be tried again
    ├── ActivityTimeoutError          an attempt took longer than timeout_seconds (also a TimeoutError)
    ├── WorkflowFailedError           result() of a failed workflow
    ├── WorkflowCancelledError        result() of a cancelled workflow
    └── ResultTimeoutError            result() gave up waiting (also a TimeoutError)
        └── StartNotCommittedError    ... because the start is uncommitted in this very session

    ControlFlow (BaseException)       passes through user code; ``except Exception`` never sees it
    ├── Suspended                     the body stops here and is replayed later
    ├── Cancelled                     the instance was cancelled
    ├── Recurred                      the body has asked for a successor
    └── LeaseLostError                another worker owns the instance now
"""

from __future__ import annotations

from collections.abc import Sequence


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


class EddaError(Exception):
    """The root of all errors of this library."""


class ConfigurationError(EddaError):
    """A setting, a declaration or the wiring of the application is wrong."""


class DuplicateNameError(ConfigurationError):
    """Two different functions were declared under one name."""

    def __init__(self, kind: str, name: str, *, first: str, second: str, closes_over: Sequence[str] = ()) -> None:
        if closes_over:
            names = ", ".join(closes_over)
            super().__init__(
                f"The {kind} {name!r} at {second} is declared a second time with other values of {names}, from the function"
                " around it: a factory was called twice. Both applications would run the one declared last."
                f" Declare each {kind} at the level of its module, where it finds the application by flask.current_app and"
                " the database by an extension object such as db = SQLAlchemy(); a factory may then be called as often as"
                " you like."
            )
        else:
            super().__init__(
                f"Two different functions are declared as {kind} {name!r}: {first} and {second}."
                f" History is recorded by name, so each needs its own: use @{kind}(name=...) on one of them."
            )
        self.kind, self.name, self.first, self.second = kind, name, first, second
        self.closes_over = tuple(closes_over)


class UsageError(EddaError):
    """Something was called in a place where it has no meaning; the message says what to use."""


class InvalidInputError(EddaError, TypeError):
    """The arguments given to ``start()`` do not fit the workflow's signature."""

    def __init__(self, workflow_name: str, problem: str, *, signature: str) -> None:
        super().__init__(
            f"Workflow {workflow_name!r} cannot be started: {problem}. Its signature is {workflow_name}{signature};"
            " nothing was started."
        )
        self.workflow_name, self.problem, self.signature = workflow_name, problem, signature


class InstanceConflictError(EddaError):
    """An instance id was used again for a different workflow or input.

    The message names the workflows only: the input of the other one may be somebody else's secret.
    """

    def __init__(self, instance_id: str, *, recorded: str, requested: str) -> None:
        running, asked = (call.partition("({")[0] for call in (recorded, requested))
        super().__init__(
            f"Instance {instance_id!r} already runs {running}; it cannot be started again as {asked}"
            f"{' with another input' if running == asked else ''}."
            " Use another instance_id, or start it with the same workflow and input to get the same instance."
        )
        self.instance_id, self.recorded, self.requested = instance_id, recorded, requested


class InstanceNotFoundError(EddaError, LookupError):
    """No instance has that id in this database."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(
            f"There is no workflow instance {instance_id!r} in this database. Check the id, and that the"
            " transaction that started it was committed; `flask edda list` shows what there is."
        )
        self.instance_id = instance_id


class UnknownWorkflowError(EddaError, LookupError):
    """No workflow of that name is declared in this process."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"No workflow named {name!r} is known in this process (known: {listed})."
            " Import its module, or name the module in the WORKFLOWS setting."
        )
        self.name, self.known = name, tuple(known)


class PayloadError(EddaError):
    """A value cannot be stored, or does not come back as its annotation says."""

    def __init__(self, owner: str, path: str, problem: str) -> None:
        path, problem = _cut(path, 200), _cut(problem, 500)  # keys of the value are in both, and may be giants
        super().__init__(
            f"{owner}: the value at {path} {problem}. Return and pass plain data: JSON values, pydantic models,"
            " dataclasses, datetime, Decimal, UUID, bytes, sets and tuples, with an annotation that names the type."
        )
        self.owner, self.path, self.problem = owner, path, problem


class EventTimeoutError(EddaError, TimeoutError):
    """No event of the type came before the deadline of ``wait_event()``."""

    def __init__(self, event_type: str, timeout_seconds: float) -> None:
        super().__init__(event_type, timeout_seconds)  # its args make it anew on replay
        self.event_type, self.timeout_seconds = event_type, timeout_seconds

    def __str__(self) -> str:
        return (
            f"No event {self.event_type!r} came within {self.timeout_seconds:g} s."
            " Catch EventTimeoutError to go on without it."
        )


class MessageTimeoutError(EddaError, TimeoutError):
    """No message came on the channel before the deadline of ``receive()``."""

    def __init__(self, channel: str, timeout_seconds: float) -> None:
        super().__init__(channel, timeout_seconds)  # its args make it anew on replay
        self.channel, self.timeout_seconds = channel, timeout_seconds

    def __str__(self) -> str:
        return (
            f"No message came on channel {self.channel!r} within {self.timeout_seconds:g} s."
            " Catch MessageTimeoutError to go on without it."
        )


class ChannelModeConflictError(EddaError):
    """A channel has one mode for all its subscribers."""

    def __init__(self, channel: str, recorded: str, requested: str) -> None:
        super().__init__(channel, recorded, requested)  # its args make it anew on replay
        self.channel, self.recorded, self.requested = channel, recorded, requested

    def __str__(self) -> str:
        return (
            f"Channel {self.channel!r} is used in mode {self.recorded!r}; it cannot be subscribed to in mode"
            f" {self.requested!r}. Subscribe in mode {self.recorded!r}, or use another channel."
        )


class NonDeterminismError(EddaError):
    """The workflow's code no longer asks for what its history recorded."""

    def __init__(self, workflow_name: str, instance_id: str, *, step: int, recorded: str, asked: str) -> None:
        super().__init__(
            f"Workflow {workflow_name!r}, instance {instance_id!r}, step {step}: history recorded {recorded},"
            f" but the code now asks for {asked}. The two usual causes: the workflow's code was changed while this"
            " instance was under way (bring the old order back, or give the new code a new workflow name), or the"
            " body decides by something that differs between runs (use ctx.now(), ctx.uuid4(), ctx.random(), or an"
            f" activity). Nothing was lost: after the fix, `flask edda retry {instance_id}` takes it up again."
        )
        self.workflow_name, self.instance_id, self.step = workflow_name, instance_id, step
        self.recorded, self.asked = recorded, asked


class RepeatedCrashError(EddaError):
    """Worker after worker died while it ran an instance, and nothing was recorded in between."""

    def __init__(self, workflow_name: str, instance_id: str, *, crashes: int, last_step: str | None) -> None:
        after = f"after step {last_step!r}" if last_step else "before its first step was recorded"
        super().__init__(
            f"Workflow {workflow_name!r}, instance {instance_id!r}: {crashes} workers died in a row while they ran it,"
            f" {after}. An activity there probably ends its process, by a crash in C code or for want of memory; the"
            f" workers' exit statuses tell. After the fix, `flask edda retry {instance_id}` takes it up again."
        )
        self.workflow_name, self.instance_id = workflow_name, instance_id
        self.crashes, self.last_step = crashes, last_step


class NewerVersionError(EddaError):
    """The database holds something that a newer version of this library wrote."""


class DatabaseUnavailableError(EddaError):
    """The database did not answer."""


class TerminalError(EddaError):
    """Raise it in an activity to fail at once: no retry may follow."""


class RetryExhaustedError(EddaError):
    """An activity failed on its last attempt; ``__cause__`` is the last error.

    ``attempts`` counts tries from 1, ``duration_seconds`` runs from the first try to the last failure, ``errors`` holds one
    ``"Type: message"`` an attempt; of very many attempts the first ones and the latest ones.
    """

    def __init__(
        self,
        activity_name: str,
        *,
        attempts: int,
        duration_seconds: float,
        errors: Sequence[str],
        numbers: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            f"Activity {activity_name!r} failed {attempts} times in {duration_seconds:.1f} s:"
            f" {_listed(errors, numbers or range(1, len(errors) + 1))}."
            " Handle this error in the workflow, or give the activity another retry_policy."
        )
        self.activity_name, self.attempts = activity_name, attempts
        self.duration_seconds, self.errors = duration_seconds, list(errors)


def _listed(errors: Sequence[str], numbers: Sequence[int]) -> str:
    """Errors with the numbers of their attempts, and how many lie between them that were not kept."""
    parts: list[str] = []
    before = 0
    for number, error in zip(numbers, errors, strict=True):
        if number > before + 1:
            parts.append(f"{number - before - 1} left out")
        parts.append(f"{number}. {error}")
        before = number
    return "; ".join(parts)


class PublishRefusedError(EddaError):
    """Raise it in a publisher when trying again is pointless: the event becomes a dead one, with this message."""


class PublishLaterError(EddaError):
    """Raise it in a publisher when the event is to be tried again, at the earliest after *retry_after_seconds*.

    Without a number the relay waits longer after each try. Any other exception means the same.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ActivityTimeoutError(EddaError, TimeoutError):
    """An attempt took longer than the activity's ``timeout_seconds``; it can no longer commit."""

    def __init__(self, activity_name: str, timeout_seconds: float) -> None:
        super().__init__(
            f"Activity {activity_name!r} did not end within {timeout_seconds:g} s; what it wrote is rolled back."
            " Raise timeout_seconds if it needs longer."
        )
        self.activity_name, self.timeout_seconds = activity_name, timeout_seconds


class WorkflowFailedError(EddaError):
    """The workflow failed; ``__cause__`` is the original exception if its class can be imported."""

    def __init__(self, instance_id: str, workflow_name: str, error: str) -> None:
        super().__init__(
            f"Workflow {workflow_name!r}, instance {instance_id!r}, failed: {error.rstrip('.')}."
            f" `flask edda show {instance_id}` tells its history; `flask edda retry {instance_id}` takes it up again."
        )
        self.instance_id, self.workflow_name, self.error = instance_id, workflow_name, error


class WorkflowCancelledError(EddaError):
    """The workflow was cancelled and has no result."""

    def __init__(self, instance_id: str, workflow_name: str, reason: str | None) -> None:
        because = f" ({reason})" if reason else ""
        super().__init__(
            f"Workflow {workflow_name!r}, instance {instance_id!r}, was cancelled{because}; it has no result."
            " Start a new instance if the work is still wanted."
        )
        self.instance_id, self.workflow_name, self.reason = instance_id, workflow_name, reason


class ResultTimeoutError(EddaError, TimeoutError):
    """The workflow has not ended in time; it goes on running."""

    def __init__(self, instance_id: str, timeout: float, state: str) -> None:
        super().__init__(
            f"Instance {instance_id!r} did not end within {timeout:g} s (it is {state}); it goes on."
            " Ask again later, or wait longer."
        )
        self.instance_id, self.timeout, self.state = instance_id, timeout, state


class StartNotCommittedError(ResultTimeoutError):
    """The instance is started in this session's open transaction, so it cannot run before the commit."""

    def __init__(self, instance_id: str) -> None:
        EddaError.__init__(
            self,
            f"Instance {instance_id!r} was started in this session, which is not committed: it cannot run yet."
            " Commit the session first, or start it with .options(session=None).",
        )
        self.instance_id, self.timeout, self.state = instance_id, 0.0, "uncommitted"


class ControlFlow(BaseException):
    """Passes through user code without being an error; never catch it."""


class Suspended(ControlFlow):
    """The body is taken out of memory and will be replayed; context calls refuse with this."""


class Cancelled(ControlFlow):
    """The instance was cancelled; context calls refuse with this."""


class Recurred(ControlFlow):
    """The body has asked for a successor; context calls refuse with this."""


class LeaseLostError(ControlFlow):
    """Another worker owns the instance now; nothing of this run may be written."""
