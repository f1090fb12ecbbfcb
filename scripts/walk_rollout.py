"""Walks docs/rollout.md on this machine, and writes the transcript to a file:

    python -m scripts.walk_rollout docs/rollout-transcript.md

Everything is real: an embedded Redis that keeps its data, the small model of docs/model-server.md, and two releases,
which are copies of this source with other version numbers. The model is stopped for a while in the middle. Takes about
five minutes. Needs Chromium, for the pictures of the live page and of the report.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from playwright.sync_api import Browser, sync_playwright

from api.embedded.redis_server import embedded_redis
from api.redis_store.acl import acl_line
from scripts.picture_dashboard import opened, shoot
from tests.support.gunicorn_process import free_port
from tests.support.rollout_fleet import ROOT, release
from tests.support.waiting import wait_until

OLD, NEW = "0.1.0", "0.2.0"
SHOWN_PORTS: Final = ("8001", "9090", "8002", "9091", "6379", "11434")
LOAD: Final = "--shared-cache --answer-tokens 16"
REFRESH, MINUTES = 15, 3
OUTAGE_AFTER, OUTAGE_SECONDS = 45, 40
WIDTH: Final = 120
INTRODUCTION: Final = """# A rollout, walked through

`python -m scripts.walk_rollout` made this page: it ran the commands of [Rollout](rollout.md) on one machine, with a
real Redis, the [small model](model-server.md) and two releases of two workers each. Figures depend on the machine. The
small model answers differently each time, so answers are not compared: `SEMANTIC_CACHE_SHADOW_RATE=0`.
"""


@dataclass
class Walk:
    """Runs commands in one folder, and notes them with their output. `real`: port by the port that is shown."""

    folder: Path
    environment: dict[str, str]
    real: Mapping[str, str]
    releases: Mapping[str, Path]
    lines: list[str] = field(default_factory=list)
    in_block: bool = False
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def say(self, title: str, text: str = "") -> None:
        """Begins a section."""
        self._close()
        self.lines += [f"## {title}", "", *([textwrap.fill(text, WIDTH), ""] if text else []), "```console"]
        self.in_block = True

    def show(self, name: str, alt: str) -> None:
        """Shows a picture after the commands of the section."""
        self._close()
        self.lines += [f"![{alt}](images/{name}.png)", ""]

    def run(self, command: str, version: str = OLD, code: int = 0) -> str:
        """Runs a command of a release, and notes it with its output."""
        done = subprocess.run(
            ["bash", "-c", self._actual(command)],
            cwd=self.folder,
            env=self._environment(version),
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode != code:
            sys.exit(f"$ {command}\nexit status {done.returncode}\n{done.stdout}{done.stderr}")
        self.note(command, self.shown(done.stdout + done.stderr))
        return done.stdout

    def start(self, command: str, version: str) -> None:
        """Starts a command in the background, and notes it."""
        self.launch(command, version)
        self.note(command)

    def launch(self, command: str, version: str) -> None:
        """Starts a command in the background, and waits until it answers."""
        log = self.folder / f"{time.monotonic_ns()}.log"
        words = ["env", *self._actual(command.removesuffix(" &")).split()]
        with log.open("wb") as output:
            process = subprocess.Popen(
                words, cwd=self.folder, env=self._environment(version), stdout=output, stderr=output
            )
        self.running[command] = process
        ready = self._actual(READY[command])
        wait_until(lambda: process.poll() is not None or _answers(ready), timeout=60)
        assert process.poll() is None, log.read_text()

    def stop(self, command: str) -> None:
        """Stops what was started, as Ctrl-C and `kill` do."""
        process = self.running.pop(command)
        process.terminate()
        process.wait(60)

    def asking(self, command: str, version: str) -> subprocess.Popen[bytes]:
        """Starts a command that ends by itself."""
        shell = ["bash", "-c", self._actual(command).removesuffix(" &")]
        return subprocess.Popen(shell, cwd=self.folder, env=self._environment(version), stderr=subprocess.DEVNULL)

    def note(self, command: str, output: str = "") -> None:
        """Notes a command and its output."""
        self.lines += [f"$ {command}", *(line.rstrip() for line in output.rstrip().splitlines())]

    def text(self) -> str:
        """Returns the page."""
        self._close()
        return "\n".join([INTRODUCTION, *self.lines]).rstrip() + "\n"

    def _close(self) -> None:
        if self.in_block:
            self.lines += ["```", ""]
        self.in_block = False

    def _environment(self, version: str) -> dict[str, str]:
        folder = self.releases[version]
        path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**self.environment, "PATH": path, "PYTHONPATH": str(folder), "COLUMNS": str(WIDTH)}

    def _actual(self, command: str) -> str:
        for shown, port in self.real.items():
            command = command.replace(f":{shown}", f":{port}").replace(f"={shown}", f"={port}")
        return command

    def shown(self, output: str) -> str:
        """Returns an output with the ports and the folder that the page shows."""
        for shown, port in self.real.items():
            output = output.replace(f":{port}", f":{shown}").replace(f"={port}", f"={shown}")
        return output.replace(str(self.folder), ".")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.HTTPError:
        return False


# -- The walk ----------------------------------------------------------------------------------------------------------

SERVE: Final = "ragherd serve --workers 2 &"
SERVE_NEW: Final = "PORT=8002 METRICS_PORT=9091 ragherd serve --workers 2 &"
MODEL: Final = "python -m api.embedded.model_server --port=11434 &"
READY: Final = {
    SERVE: "http://127.0.0.1:8001/health/ready",
    SERVE_NEW: "http://127.0.0.1:8002/health/ready",
    MODEL: "http://127.0.0.1:11434/api/version",
}
AT_NEW: Final = "--url http://127.0.0.1:8002"


def before(walk: Walk) -> None:
    walk.say("Before", "The settings of the staging scenario. Keys and addresses are in the environment.")
    walk.run("cp k8s/overlays/staging/settings.env .env")
    walk.run("ragherd --version")
    walk.run("ragherd preflight --scenario staging")


def deployed(walk: Walk) -> None:
    walk.say("Start, and a smoke test")
    walk.start(SERVE, OLD)
    walk.run("ragherd smoke")
    walk.run("ragherd workers")
    walk.say("Load")
    walk.run(f"ragherd load-test --requests 300 --concurrency 4 --topics 60 {LOAD}")


def watched(walk: Walk) -> None:
    """Watches while questions arrive, and while the model is gone for a while."""
    walk.say(
        "Watch, with an outage",
        f"Questions arrive all the while. After {OUTAGE_AFTER} seconds the model is stopped for {OUTAGE_SECONDS} "
        "seconds: the breaker opens, and the cache still answers.",
    )
    load = f"ragherd load-test --rate 2 --seconds {60 * MINUTES} --topics 150 --seed 2 {LOAD} > load.txt &"
    asking = walk.asking(load, OLD)
    walk.note(load)
    with outage(walk):
        walk.run(f"ragherd monitor --interval {REFRESH} --count {60 * MINUTES // REFRESH}")
    asking.wait(120)
    walk.run("ragherd breaker history")
    live_page_pictured(walk)
    walk.say("Report", "The outage broke criteria, so the exit status is 1.")
    status = walk.run("ragherd report --last 10m --at-least 3m --html report.html > report.md; echo $?")
    if status != "1\n":
        sys.exit("The report missed no criterion, though there was an outage.")
    walk.run("sed '/^## Issues/,$d' report.md")
    report_pictured(walk)


def rolled(walk: Walk) -> None:
    walk.say("Roll", f"Release {NEW} starts beside {OLD}, on the same Redis. Then {OLD} stops.")
    walk.run("ragherd backup before.backup")
    walk.start(SERVE_NEW, NEW)
    walk.run("ragherd workers")
    walk.run(f"ragherd smoke {AT_NEW}", NEW)
    walk.stop(SERVE)
    walk.note("kill %1")
    walk.run(f"ragherd load-test --requests 60 --concurrency 4 --topics 30 --seed 3 {LOAD} {AT_NEW}", NEW)
    walk.run(f"ragherd status {AT_NEW}", NEW)


def back(walk: Walk) -> None:
    walk.say("Roll back", "The deployment, then the answers that the new release stored.")
    walk.start(SERVE, OLD)
    walk.stop(SERVE_NEW)
    walk.note("kill %2")
    walk.run(f"ragherd invalidate --release {NEW} --dry-run")
    walk.run("ragherd restore before.backup --cache --rewind")
    walk.run(f"ragherd load-test --requests 200 --concurrency 4 --topics 60 {LOAD}")
    walk.run("ragherd report --last 1m --at-least 1m > report.md; echo $?")
    walk.run("sed '/^## Issues/,$d' report.md")
    walk.run("ragherd status")


STEPS: Final = (before, deployed, watched, rolled, back)


@contextmanager
def outage(walk: Walk) -> Iterator[None]:
    """Stops the model for a while, beside the commands."""

    def away() -> None:
        time.sleep(OUTAGE_AFTER)
        walk.stop(MODEL)
        time.sleep(OUTAGE_SECONDS)
        walk.launch(MODEL, OLD)

    thread = threading.Thread(target=away)
    thread.start()
    yield
    thread.join()


# -- The machine -------------------------------------------------------------------------------------------------------


@contextmanager
def laptop() -> Iterator[Walk]:
    """A Redis, a model, two releases and a folder to work in."""
    user = acl_line("main", user="ragherd", prefix="rag:", password="secret").split()
    arguments = ("--maxmemory", "256mb", "--maxmemory-policy", "volatile-lfu", "--user", *user[1:])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(embedded_redis(arguments=arguments))
        admin = secrets.token_hex(24)
        ports = dict(zip(SHOWN_PORTS, (free_port() for _ in SHOWN_PORTS), strict=True))
        ports["6379"] = redis.url.rpartition(":")[2].partition("/")[0]
        environment = {
            "HOME": os.environ["HOME"],
            "PORT": ports["8001"],
            "METRICS_PORT": ports["9090"],
            "REDIS_URL": f"redis://ragherd:secret@127.0.0.1:{ports['6379']}",
            "OLLAMA_BASE_URL": f"http://127.0.0.1:{ports['11434']}",
            "OLLAMA_NUM_PARALLEL": "4",
            "LLM_MODEL": "smollm2:135m",
            "OLLAMA_NUM_CTX": "2048",
            "EMBEDDER": "onnx",
            "SEMANTIC_CACHE_SHADOW_RATE": "0",
            "API_KEYS": f"app={secrets.token_hex(24)}",
            "ADMIN_KEYS": admin,
            "RAGHERD_API_KEY": admin,
        }
        (folder / "k8s").symlink_to(ROOT / "k8s")
        releases = {version: release(folder / version, version).folder for version in (OLD, NEW)}
        for version in releases:
            command = folder / version / "bin" / "ragherd"
            command.parent.mkdir()
            command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ragherd "$@"\n')
            command.chmod(0o755)
        walk = Walk(folder, environment, ports, releases)
        walk.launch(MODEL, OLD)
        try:
            yield walk
        finally:
            for started in list(walk.running):
                walk.stop(started)


def live_page_pictured(walk: Walk) -> None:
    """Takes the picture of the live page after the outage."""
    with browser() as chromium:
        page = opened(chromium, f"http://127.0.0.1:{walk.real['8001']}", "light", 1280, 780)
        shoot(page, "rollout-live-page", full=False)
    walk.show("rollout-live-page", "The live page after the outage")


def report_pictured(walk: Walk) -> None:
    """Takes the picture of the report's page."""
    file = walk.folder / "report.html"
    file.write_text(walk.shown(file.read_text()))
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1000, "height": 1680})
        page.goto(file.as_uri())
        shoot(page, "rollout-report", full=False)
    walk.show("rollout-report", "The report as a page")


@contextmanager
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is not installed (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


def main(file: str) -> None:
    """Walks all steps and writes the page."""
    with laptop() as walk:
        try:
            for step in STEPS:
                step(walk)
        finally:  # also what there is of a walk that failed
            Path(file).write_text(walk.text())


if __name__ == "__main__":
    main(sys.argv[1])
