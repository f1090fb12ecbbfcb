"""Hosts of a network of their own: a network namespace each, joined by a bridge in one more. Root, and Linux.

Nothing of it reaches the machine's own network. Names begin with `rhchaos<pid>-`, so that what a killed run left
behind is known and swept away when the next one begins.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "rhchaos"
SUBNET = "10.231.77"
CLONE_NEWNET = 0x40000000


def why_not() -> str | None:
    """What is missing on this machine for hosts of one's own; None where nothing is."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "iptables", "haproxy") if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None if _can_make_namespaces() else "this machine allows no network namespaces"


class Host:
    """One namespace with one address."""

    def __init__(self, namespace: str, name: str, address: str) -> None:
        self.namespace = namespace
        self.name = name
        self.address = address

    @property
    def enter(self) -> list[str]:
        """What a command begins with to run on this host; its process id stays that of the command."""
        return ["ip", "netns", "exec", self.namespace]

    def cut_off_from(self, *others: Host) -> None:
        """Drops every packet between: connections hang, none is refused."""
        for other in others:
            self._iptables("--append", "OUTPUT", "--destination", other.address, "--jump", "DROP")
            self._iptables("--append", "INPUT", "--source", other.address, "--jump", "DROP")

    def heal(self) -> None:
        """Drops nothing any more."""
        self._iptables("--flush")

    @contextmanager
    def inhabited(self) -> Iterator[None]:
        """This thread, and the threads and processes it starts, are on this host meanwhile."""
        with Path("/proc/thread-self/ns/net").open() as home, Path("/run/netns", self.namespace).open() as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def _iptables(self, *arguments: str) -> None:
        run(*self.enter, "iptables", "--wait", *arguments)


class Network:
    """The bridge and its hosts. Made by `network`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._switch = f"{prefix}-switch"
        self._hosts = 0
        run("ip", "netns", "add", self._switch)
        run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", "bridge", "up")

    def host(self, name: str) -> Host:
        """One more host, connected. Every host reaches every other."""
        self._hosts += 1
        host = Host(f"{self._prefix}-{name}", name, f"{SUBNET}.{self._hosts}")
        run("ip", "netns", "add", host.namespace)
        plug = ("type", "veth", "peer", "name", name, "netns", self._switch)
        run("ip", "link", "add", "eth0", "netns", host.namespace, *plug)
        run("ip", "-n", self._switch, "link", "set", name, "master", "bridge", "up")
        run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run("ip", "-n", host.namespace, "link", "set", device, "up")
        return host


@contextmanager
def network() -> Iterator[Network]:
    """An empty network; at the end it is gone, and so is every process on its hosts."""
    sweep(lambda pid: not Path(f"/proc/{pid}").exists())
    try:
        yield Network(f"{PREFIX}{os.getpid()}")
    finally:
        sweep(lambda pid: pid == os.getpid())


def sweep(is_meant: Callable[[int], bool]) -> None:
    """Takes away the namespaces of the runs whose process id `is_meant`, with the processes in them."""
    for namespace in _namespaces():
        owner = re.match(rf"{PREFIX}(\d+)-", namespace)
        if owner and is_meant(int(owner[1])):
            for pid in run("ip", "netns", "pids", namespace).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "delete", namespace)


def run(*command: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _namespaces() -> list[str]:
    listed = run("ip", "-json", "netns", "list")
    return [entry["name"] for entry in json.loads(listed or "[]")]


def _can_make_namespaces() -> bool:
    name = f"{PREFIX}{os.getpid()}-probe"
    with suppress(AssertionError):
        run("ip", "netns", "add", name)
        run("ip", "netns", "exec", name, "iptables", "--append", "INPUT", "--jump", "DROP")
        run("ip", "netns", "delete", name)
        return True
    return False


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
