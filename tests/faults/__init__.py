"""Processes that are killed, stopped and cut off, and what they leave behind."""

import pytest

pytest.register_assert_rewrite("tests.faults.trial", "tests.faults.stories")
