"""Which process this is, in words that stay true after it has died and its pid is used again."""

from __future__ import annotations

import os
import socket
import subprocess
import uuid
from pathlib import Path


def host_name() -> str:
    """The host, and on Linux the pid namespace: two containers must not judge each other's pids."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def new_worker_id() -> str:
    """An id no other process has ever had. Made after the fork, when the worker starts."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def start_time(pid: int) -> str | None:
    """When process *pid* of this host started, as a word to compare; ``None`` if there is none (a zombie is none)."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        if fields[0] in ("Z", "X"):
            return None
        return f"{_boot_id()}:{fields[19]}"
    found = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()  # fmt: skip
    state, _, started = found.partition(" ")
    return started.strip() or None if not state.startswith("Z") else None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""
