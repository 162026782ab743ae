"""The Python environments of a run, and what to say about the machine they ran on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from cluster import filesystem_of

_ROOT = Path(__file__).resolve().parent.parent

_OTHERS = {
    "dbos": ("dbos", "3.4.0", ("dbos=={}",)),
    "framework": ("edda-framework", "0.16.2", ("edda-framework[postgresql]=={}", "uvloop")),
}
"""Of each other library: its package, the version, and what is installed."""

_BESIDE = ("psycopg[binary]", "psutil")
_NAMED = (
    "edda-wsgi",
    "dbos",
    "edda-framework",
    "SQLAlchemy",
    "psycopg",
    "Flask",
    "Flask-SQLAlchemy",
    "pydantic",
    "greenlet",
)


def cache_folder() -> Path:
    """Where environments are kept between runs; EDDA_BENCH_CACHE says otherwise."""
    given = os.environ.get("EDDA_BENCH_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "edda-bench"


def python_of(system: str) -> str:
    """The interpreter of an environment with another library; made at the first call, which needs a package index."""
    package, version, wanted = _OTHERS[system]
    folder = cache_folder() / f"{package}-{version}-py{sys.version_info.major}.{sys.version_info.minor}"
    python, made = folder / "bin" / "python", folder / ".made"
    if made.exists():
        return str(python)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, stdout=sys.stderr)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = [each.format(version) for each in wanted]
    exact = subprocess.run([*install, *wanted, *_BESIDE], stdout=sys.stderr, check=False)
    if exact.returncode != 0:
        near = [each.replace("==", "~=") for each in wanted]
        subprocess.run([*install, *near, *_BESIDE], stdout=sys.stderr, check=True)
    made.touch()
    return str(python)


def versions(python: str) -> dict[str, str]:
    """Python and the packages that matter, in the environment of *python*."""
    code = (
        "import json, platform, sys\n"
        "from importlib.metadata import PackageNotFoundError, version\n"
        "found = {'Python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([python, "-c", code, *_NAMED], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def describe_machine() -> dict[str, Any]:
    """What decides how fast anything is here; no names and no paths."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file_system": filesystem_of("/var/tmp"),
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
    }


def revision() -> str | None:
    """The commit that is measured, with a plus if the engine differs from it; ``None`` outside a repository."""
    command = ["git", "-C", str(_ROOT)]
    try:
        head = subprocess.run([*command, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*command, "status", "--porcelain", "edda_engine", "edda_wsgi"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def source_digest() -> str:
    """Tells whether the code under test was edited while it was measured."""
    digest = hashlib.sha256()
    for package in ("edda_engine", "edda_wsgi"):
        for file in sorted((_ROOT / package).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def theirs() -> dict[str, str]:
    """Process environment of a measurement: Python keeps the bytecode of what it imports, as that of installed packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def ours() -> dict[str, str]:
    """The same, in which the packages beside this folder are measured, whatever is installed."""
    return {**theirs(), "PYTHONPATH": str(_ROOT)}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
