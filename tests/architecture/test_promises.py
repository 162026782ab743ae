"""The page of promises names the tests that hold them: every name is that of a test, and every promise has one."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs/concepts/promises.md").read_text()


def test_every_test_that_a_promise_names_exists() -> None:
    texts = [path.read_text() for path in (_ROOT / "tests").rglob("test_*.py")]
    # A stateful machine's test is assigned, not defined.
    found = {
        name
        for text in texts
        for name in re.findall(r"^\s*(?:async )?(?:def )?(test_\w+)(?:\(| =)", text, re.MULTILINE)
    }
    assert set(re.findall(r"`(test_\w+)`", _PAGE)) - found == set()


def test_every_promise_is_held_by_a_test() -> None:
    rows = [line for line in _PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise ")]
    assert len(rows) > 25
    assert [row for row in rows if "`test_" not in row] == []
