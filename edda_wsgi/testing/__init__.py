"""For the tests of Flask applications: run workflows in the test's process, skip time, kill the worker.

With pytest there is the fixture ``edda_runner`` (see :mod:`edda_wsgi.testing.plugin`); elsewhere use
:class:`WorkflowRunner` as a context manager. Nothing of this is imported by an application.
"""

from edda_engine.testing import CrashError, CrashReport, ReplayError, StuckError
from edda_wsgi.testing.runner import WorkflowRunner

__all__ = ["CrashError", "CrashReport", "ReplayError", "StuckError", "WorkflowRunner"]
