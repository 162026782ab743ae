"""What ``run()`` and its kin are given: a workflow, or one with options."""

from __future__ import annotations

from typing import Any, ParamSpec, Protocol

from edda_engine.errors import UsageError
from edda_engine.workflow import DeclaredWorkflow, StartOptions

P_co = ParamSpec("P_co")


class Chosen(Protocol[P_co]):
    """A workflow with options: ``fulfil.options(delay=60)``."""

    @property
    def workflow(self) -> DeclaredWorkflow[P_co, Any]:
        """What is started."""
        ...

    @property
    def chosen(self) -> StartOptions:
        """How."""
        ...


def is_workflow(given: object) -> bool:
    """Whether it is one or the other."""
    return isinstance(getattr(given, "workflow", given), DeclaredWorkflow)


def declared_of(given: Any) -> tuple[DeclaredWorkflow[..., Any], StartOptions]:
    """The workflow and its options.

    :raises UsageError: it is neither.
    """
    if not is_workflow(given):
        raise UsageError(f"A function declared with @workflow is needed here, or its options(...), not {given!r}.")
    return (given, StartOptions()) if isinstance(given, DeclaredWorkflow) else (given.workflow, given.chosen)
