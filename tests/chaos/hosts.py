"""Creates hosts as network namespaces, joined by a bridge in another namespace. Linux only, as root.

The machine's own network is not touched. Names begin with `rhchaos<pid>-`, so that the next run can remove the
leftovers of a killed run.
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


def missing_requirement() -> str | None:
    """Returns what this machine lacks to create hosts, or None."""
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
        """Returns the command prefix that runs a command on this host. The process id stays the same."""
        return ["ip", "netns", "exec", self.namespace]

    def cut_off_from(self, *others: Host) -> None:
        """Drops all packets to and from the other host, so that connections hang instead of being refused."""
        for other in others:
            self._iptables("--append", "OUTPUT", "--destination", other.address, "--jump", "DROP")
            self._iptables("--append", "INPUT", "--source", other.address, "--jump", "DROP")

    def heal(self) -> None:
        """Stops dropping packets."""
        self._iptables("--flush")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Moves this thread, and the threads and processes that it starts, to this host."""
        with Path("/proc/thread-self/ns/net").open() as home, Path("/run/netns", self.namespace).open() as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def _iptables(self, *arguments: str) -> None:
        run(*self.enter, "iptables", "--wait", *arguments)


class Network:
    """The bridge and its hosts. Created by `network`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._switch = f"{prefix}-switch"
        self._hosts = 0
        run("ip", "netns", "add", self._switch)
        run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", "bridge", "up")

    def host(self, name: str) -> Host:
        """Adds a host. Every host reaches every other."""
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
    """Creates an empty network. Removes it at the end, with every process on its hosts."""
    sweep(lambda pid: not Path(f"/proc/{pid}").exists())
    try:
        yield Network(f"{PREFIX}{os.getpid()}")
    finally:
        sweep(lambda pid: pid == os.getpid())


def sweep(matches: Callable[[int], bool]) -> None:
    """Removes the namespaces of runs whose process id satisfies `matches`, with their processes."""
    for namespace in _namespaces():
        owner = re.match(rf"{PREFIX}(\d+)-", namespace)
        if owner and matches(int(owner[1])):
            for pid in run("ip", "netns", "pids", namespace).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "delete", namespace)


def run(*command: str) -> str:
    """Returns the output of a command. Fails if the command fails."""
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
