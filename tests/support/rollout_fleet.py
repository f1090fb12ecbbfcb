"""A fleet on this machine that is rolled from one release to another: copies of the source with other version numbers,
replicas behind a load balancer, and the commands of an operator.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from api import __version__
from tests.support.balancer import Balancer, running_balancer
from tests.support.gunicorn_process import MODULE, Gunicorn, all_are_gone, children, free_port
from tests.support.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("api", "ragherd", "worker_config")
LARGE: Final = 1 << 20
Patch = tuple[str, str, str]
"""A file, the text to replace, and its replacement."""


@dataclass(frozen=True, slots=True)
class Release:
    """A copy of the source in a folder."""

    version: str
    folder: Path


def copied(source: str, target: str) -> None:
    """Copies a file. Links to the weights of models, which are large and stay the same."""
    if Path(source).stat().st_size > LARGE:
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)


def release(folder: Path, version: str, patches: Sequence[Patch] = ()) -> Release:
    """Makes a release from the working tree, with changes that a release should not have."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored, copy_function=copied)
    stated = ("api/__init__.py", f'__version__ = "{__version__}"', f'__version__ = "{version}"')
    for name, old, new in (stated, *patches):
        file = folder / name
        text = file.read_text()
        assert text.count(old) == 1, f"{name} has {text.count(old)} times: {old}"
        file.write_text(text.replace(old, new))
    return Release(version, folder)


@dataclass
class RolloutFleet:
    """Replicas of one gunicorn each. `folder` is where they run; its `.env` has the settings that change."""

    folder: Path
    balancer: Balancer
    settings: Mapping[str, str]
    current: Release | None = None
    replicas: list[Gunicorn] = field(default_factory=list)
    started: list[Gunicorn] = field(default_factory=list)

    def roll(self, release: Release, count: int = 2, surge: int = 2) -> None:
        """Replaces the replicas, `surge` at a time: the new ones are ready before the old ones leave."""
        old, self.current = self.replicas, release
        for start in range(0, count, surge):
            new = [self._start(release) for _ in range(start, min(count, start + surge))]
            for replica in new:
                wait_until(replica.is_complete, timeout=60)
            self.replicas = [*self.replicas, *new]
            self._balance()
            for replica in old[start : start + surge]:
                self._stop(replica)

    def reload(self) -> None:
        """Makes each replica read `.env` again and replace its workers one by one."""
        for replica in self.replicas:
            before = replica.workers()
            replica.process.send_signal(signal.SIGHUP)
            wait_until(partial(_is_renewed, replica, before), timeout=60)

    def run(self, *arguments: str, code: int = 0) -> str:
        """Runs a command of the current release as its operator does. Returns its standard output."""
        assert self.current is not None
        url = ("--url", self.balancer.url) if arguments[0] not in {"preflight", "backup", "restore"} else ()
        ports = {"PORT": free_port(), "METRICS_PORT": free_port()}  # which preflight checks
        done = subprocess.run(
            [sys.executable, "-m", "ragherd", *arguments, *url],
            cwd=self.folder,
            env={**os.environ, **self.settings, **ports, "PYTHONPATH": str(self.current.folder), "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"{arguments} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def document(self, *arguments: str, code: int = 0) -> Any:
        """Returns what a command prints with --json."""
        return json.loads(self.run(*arguments, "--json", code=code))

    def versions(self) -> list[str]:
        """Returns the release of each live worker."""
        return sorted(one["version"] for one in self.document("workers")["workers"])

    def _start(self, release: Release) -> Gunicorn:
        log = self.folder / f"replica-{len(self.started)}.log"
        settings = {**self.settings, "PYTHONPATH": str(release.folder)}
        replica = Gunicorn("api.asgi:app", log, settings, self.folder, configuration=MODULE)
        self.started.append(replica)
        return replica

    def _stop(self, replica: Gunicorn) -> None:
        """Takes it out of the balancer first, as Kubernetes does while `preStop` waits."""
        self.replicas = [one for one in self.replicas if one is not replica]
        self._balance()
        replica.process.terminate()
        assert replica.process.wait(30) == 0, replica.lines()[-20:]

    def _balance(self) -> None:
        self.balancer.send_to([one.url() for one in self.replicas])


def _is_renewed(replica: Gunicorn, before: set[int]) -> bool:
    return replica.is_complete() and not replica.workers() & before


@contextmanager
def rollout_fleet(folder: Path, settings: Mapping[str, str], port: int = 0) -> Iterator[RolloutFleet]:
    """Yields a fleet without replicas. Ends all of them afterwards."""
    with ExitStack() as stack:
        fleet = RolloutFleet(folder, stack.enter_context(running_balancer(port)), settings)
        try:
            yield fleet
        finally:
            for replica in fleet.started:
                family = children(replica.pid)
                replica.client.close()
                replica.process.kill()
                replica.process.wait(5)
                wait_until(partial(all_are_gone, family))
