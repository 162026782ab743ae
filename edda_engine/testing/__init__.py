"""For the tests of applications: run workflows in the test's process, skip time, kill the worker.

Here for an :class:`~edda_engine.app.EddaApp`; a Flask application is tested with ``edda_wsgi.testing``. No test
framework is needed, and nothing of this is imported by an application.
"""

from edda_engine.testing.asynchronous import WorkflowRunner
from edda_engine.testing.crashes import CrashReport
from edda_engine.testing.errors import CrashError, ReplayError, StuckError

__all__ = ["CrashError", "CrashReport", "ReplayError", "StuckError", "WorkflowRunner"]
