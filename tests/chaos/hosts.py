"""Two hosts and a switch, made of network namespaces: each has a name and an address of its own, and a cable to pull.

A pulled cable is silence: nothing that is sent arrives, and nobody is told. Connections stay as they were, and what was
sent meanwhile arrives when the cable is back. A host that is deaf is heard by the others, and hears no answer.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

_NUMBER = os.getpid()
# A range for tests of networks (RFC 2544), which nobody has at home.
_NETWORK = f"198.18.{_NUMBER % 250}"


class CannotMakeHostsError(Exception):
    """There are no namespaces here, or we may not make any."""


@dataclass(frozen=True, slots=True)
class Host:
    """A name and a cable."""

    name: str
    switch: str
    namespace: str
    cable: str
    address: str

    @property
    def command(self) -> list[str]:
        """What stands before a command that is to run there."""
        rename = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *rename]

    def pull_cable(self) -> None:
        """From now on it hears and says nothing."""
        _run("ip", "link", "set", self.cable, "nomaster")

    def plug_in(self) -> None:
        """As it was."""
        _run("ip", "link", "set", self.cable, "master", self.switch)

    def go_deaf(self) -> None:
        """From now on nothing that is sent to it arrives."""
        _run("ip", "route", "add", "blackhole", f"{self.address}/32")

    def hear_again(self) -> None:
        """As it was."""
        _run("ip", "route", "del", "blackhole", f"{self.address}/32")


class Network:
    """A switch at which this machine has the address :attr:`address`; use as a context manager."""

    def __init__(self) -> None:
        self.address = f"{_NETWORK}.1"
        self._switch = f"edda{_NUMBER}"
        self._hosts: list[Host] = []

    def __enter__(self) -> Network:
        # Else it took the address of one of its cables, and what comes from that one, pulled, would still be for it.
        _run("ip", "link", "add", self._switch, "address", "02:00:00:00:00:01", "type", "bridge")
        _run("ip", "address", "add", f"{self.address}/24", "dev", self._switch)
        _run("ip", "link", "set", self._switch, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            _run("ip", "netns", "delete", host.namespace)  # and its end of the cable, and so the other one
        _run("ip", "link", "delete", self._switch)

    def add_host(self, name: str) -> Host:
        """One more."""
        number = len(self._hosts) + 1
        address = f"{_NETWORK}.{number + 1}"
        host = Host(name, self._switch, f"edda-{_NUMBER}-{number}", f"ed{_NUMBER}a{number}", address)
        far_end = f"ed{_NUMBER}b{number}"
        _run("ip", "netns", "add", host.namespace)
        self._hosts.append(host)
        _run("ip", "link", "add", host.cable, "type", "veth", "peer", "name", far_end, "netns", host.namespace)
        inside = ["ip", "-netns", host.namespace]
        _run(*inside, "address", "add", f"{address}/24", "dev", far_end)
        for device in (far_end, "lo"):
            _run(*inside, "link", "set", device, "up")
        _run("ip", "link", "set", host.cable, "up")
        host.plug_in()
        return host


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotMakeHostsError(f"there is no {command[0]!r} here") from error
    if done.returncode != 0:
        raise CannotMakeHostsError(f"{' '.join(command)}: {done.stderr.strip()}")
