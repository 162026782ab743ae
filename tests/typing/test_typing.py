"""Type checkers see what users may write: ``accepted.py`` and the README's application as they stand, and each marked line of
``rejected.py``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MARK = re.compile(r"# rejects: ([a-z-]+)$")
ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: (?P<text>.*?)(?:  \[(?P<code>[a-z-]+)\])?$")

Found = dict[int, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Found]:
    """What one strict run of mypy says about both files: code and text by line."""
    nothing_configured = tmp_path_factory.mktemp("mypy") / "mypy.ini"
    nothing_configured.write_text("[mypy]\n")
    cache = getattr(request.config, "cache", None)  # not there with -p no:cacheprovider
    cache_folder = cache.mkdir("mypy_of_typing_tests") if cache is not None else tmp_path_factory.mktemp("cache")
    run = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", "--no-pretty",
            "--hide-error-context", f"--config-file={nothing_configured}", f"--cache-dir={cache_folder}",
            "tests/typing/accepted.py", "tests/typing/rejected.py", "docs/examples/readme_app.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found: dict[str, Found] = {"accepted.py": {}, "rejected.py": {}, "readme_app.py": {}}
    for line in run.stdout.splitlines():
        match = ERROR.match(line)
        if match:
            said = found[Path(match["file"]).name].setdefault(int(match["line"]), [])
            said.append((match["code"] or "", match["text"]))
    return found


def test_mypy_accepts_the_application_of_the_readme_but_for_what_flask_sqlalchemy_does_not_tell(
    complaints: dict[str, Found],
) -> None:
    lines = (ROOT / "docs" / "examples" / "readme_app.py").read_text().splitlines()
    assert {lines[number - 1] for number in complaints["readme_app.py"]} <= {"class Order(db.Model):"}


def marked() -> dict[int, str]:
    lines = (HERE / "rejected.py").read_text().splitlines()
    return {number: mark[1] for number, line in enumerate(lines, 1) if (mark := MARK.search(line))}


def test_mypy_accepts_what_users_write(complaints: dict[str, Found]) -> None:
    assert complaints["accepted.py"] == {}


@pytest.mark.parametrize("line", marked(), ids=lambda line: f"line_{line}")
def test_mypy_rejects_a_mistake(line: int, complaints: dict[str, Found]) -> None:
    assert marked()[line] in [code for code, _text in complaints["rejected.py"].get(line, [])]


def test_mypy_rejects_nothing_but_the_mistakes(complaints: dict[str, Found]) -> None:
    unmarked = {line: found for line, found in complaints["rejected.py"].items() if line not in marked()}
    assert unmarked == {}
