"""Runs an image's command like a container runtime: as process 1, as its user, with only /tmp writable.

It has namespaces for mounts and processes, a read-only root, a tmpfs on /tmp, no capabilities and no new privileges. It
shares this machine's network, so tests reach it on a loopback address. There is no seccomp filter.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.request import urlopen

from scripts.image_root.build import Image

CONFINED: Final = """
set -eu
root=$1
shift
mount --bind "$root" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o size=64m,mode=1777,nosuid,nodev,noexec tmpfs "$root/tmp"
mount -o remount,bind,ro,nosuid "$root"
exec chroot "$root" "$@"
"""
NO_RIGHTS: Final = ("--clear-groups", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs")


class Container:
    """A running container. `pid` is the host's id of its process 1."""

    def __init__(self, image: Image, process: subprocess.Popen[bytes], settings: Mapping[str, str], log: Path) -> None:
        self.process = process
        self._image = image
        self._settings = settings
        self._log = log

    @property
    def pid(self) -> int:
        return self._children()[0]

    @property
    def url(self) -> str:
        return f"http://{self._settings['HOST']}:{self._settings['PORT']}"

    def is_ready(self) -> bool:
        """Returns whether the container is ready for requests. Raises `RuntimeError` if it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"it ended with {self.process.returncode}:\n{self.output()}")
        try:
            with urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _children(self) -> list[int]:
        """Returns the children of unshare: process 1 of the container, or nothing before and after its life."""
        try:
            listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in listed.split()]

    def output(self) -> str:
        return self._log.read_text()

    def processes(self) -> dict[int, dict[str, str]]:
        """Returns the lines of /proc/<pid>/status for every process inside, by host process id."""
        namespace = (Path("/proc") / str(self.pid) / "ns/pid").readlink()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "ns/pid").readlink() == namespace:
                    lines = (entry / "status").read_text().splitlines()
                    found[int(entry.name)] = {
                        name: value.strip() for name, _, value in (li.partition(":") for li in lines)
                    }
            except OSError:
                continue  # it has ended
        return found

    def inside(self, command: list[str], *, as_root: bool = False) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container's namespaces as its user."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--root", "--wd"]
        user = [] if as_root else _as_user(self._image)
        return subprocess.run(
            [*enter, *_with_environment(self._image, self._settings), *user, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def kill(self) -> None:
        """Kills the container. Killing process 1 ends its namespace; unshare's --kill-child fails after a change of
        user.
        """
        for child in self._children():
            os.kill(child, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 60) -> int:
        """Stops the container like a runtime, with SIGTERM to process 1. Returns the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(timeout)


@contextmanager
def running(image: Image, settings: Mapping[str, str], log: Path) -> Iterator[Container]:
    """Starts the image's command. Always removes everything at the end."""
    command = [
        *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
        *("/bin/sh", "-c", CONFINED, "sh", str(image.root)),
        *_with_environment(image, settings),
        *_as_user(image),
        *image.entrypoint,
        *image.command,
    ]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        container = Container(image, process, settings, log)
        try:
            yield container
        finally:
            container.kill()


def _with_environment(image: Image, settings: Mapping[str, str]) -> list[str]:
    variables = {**image.environment, **settings}
    return ["env", "--ignore-environment", f"--chdir={image.folder}", *(f"{n}={v}" for n, v in variables.items())]


def _as_user(image: Image) -> list[str]:
    user, _, group = image.user.partition(":")
    return ["setpriv", f"--reuid={user}", f"--regid={group}", *NO_RIGHTS]
