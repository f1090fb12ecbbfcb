"""Calls of `kubectl` in one namespace. Every call has a deadline, and a failed one is one line."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any, Final, TypeVar

T = TypeVar("T")
Object = Mapping[str, Any]
"""A Kubernetes object."""

CALL_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.5
FORWARD_SECONDS: Final = 20.0
UNREACHABLE: Final = (
    "connection refused",
    "no such host",
    "i/o timeout",
    "context deadline",
    "was refused",
    "no route",
)


class KubectlError(Exception):
    """A call failed. The message is one line with the reason."""


class ClusterUnreachable(KubectlError):
    """The API server did not answer."""


class TooLate(KubectlError):
    """Something did not happen before its deadline."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Runs kubectl with a context, or the current one if it is empty."""

    context: str = ""
    namespace: str = ""
    program: str = "kubectl"
    warnings: list[str] = field(default_factory=list)
    """Warnings of the API server, such as those of Pod Security."""

    def command(self, *arguments: str) -> list[str]:
        """Returns the command line."""
        context = ["--context", self.context] if self.context else []
        namespace = ["--namespace", self.namespace] if self.namespace else []
        return [self.program, *context, *namespace, *arguments]

    def outside(self) -> Kubectl:
        """Returns the same without a namespace."""
        return Kubectl(self.context, "", self.program)

    def run(self, *arguments: str, text: str | None = None, seconds: float = CALL_SECONDS) -> str:
        """Returns what a call printed. `text` is its standard input. Raises `KubectlError`."""
        try:
            done = subprocess.run(  # noqa: S603 - the operator's kubectl, without a shell
                self.command(*arguments),
                input=text,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except FileNotFoundError:
            raise KubectlError(f"{self.program} is not on the path") from None
        except subprocess.TimeoutExpired:
            raise TooLate(f"kubectl {arguments[0]} took over {seconds:g} s") from None
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        self.warnings.extend(line for line in lines if line.startswith("Warning:"))
        if done.returncode:
            raise failure(arguments[0], [line for line in lines if not line.startswith("Warning:")])
        return done.stdout

    def get(self, *what: str) -> Any:
        """Returns an object, or a list of them with `items`."""
        return json.loads(self.run("get", *what, "--output", "json"))

    def items(self, kind: str, selector: str = "") -> list[Any]:
        """Returns the objects of a kind, those with the labels of a selector."""
        found: list[Any] = self.get(kind, *(["--selector", selector] if selector else []))["items"]
        return found

    def apply(self, objects: Sequence[Object], *options: str) -> None:
        """Creates or changes objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.run("apply", "--server-side", "--force-conflicts", *options, "--filename", "-", text=json.dumps(listed))

    def patch(self, what: str, change: Object, kind: str = "strategic") -> None:
        """Changes an object, such as `deployment/ragherd`."""
        self.run("patch", what, "--type", kind, "--patch", json.dumps(change))

    def execute(self, pod: str, *command: str, text: str | None = None, seconds: float = CALL_SECONDS) -> str:
        """Runs a command in the first container of a pod, and returns what it printed."""
        stdin = ["--stdin"] if text is not None else []
        return self.run("exec", *stdin, pod, "--", *command, text=text, seconds=seconds)

    def rolled_out(self, what: str, seconds: float) -> None:
        """Waits until every pod of a workload is updated and ready."""
        try:
            self.run("rollout", "status", what, f"--timeout={seconds:g}s", seconds=seconds + CALL_SECONDS)
        except KubectlError as error:
            raise TooLate(f"{what} is not rolled out after {seconds:g} s: {error}") from None

    @contextmanager
    def forwarded(self, what: str, port: int) -> Iterator[str]:
        """Forwards a free port of this machine, and yields its URL."""
        command = self.command("port-forward", what, f":{port}")
        with TemporaryFile("w+") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603 - as in `run`
            try:
                yield _forwarded_url(process, output)
            finally:
                process.terminate()
                process.wait()


def _forwarded_url(process: subprocess.Popen[bytes], output: IO[str]) -> str:
    def url() -> str:
        output.seek(0)
        printed = output.read()
        if process.poll() is not None:
            raise failure("port-forward", printed.splitlines())
        _, found, rest = printed.partition("Forwarding from 127.0.0.1:")
        return f"http://127.0.0.1:{rest.partition(' ')[0]}" if found and " " in rest else ""

    return until(url, FORWARD_SECONDS, "port-forward did not start")


def failure(verb: str, lines: Sequence[str]) -> KubectlError:
    """Returns the error of a failed call with these lines on standard error."""
    said = " ".join(" ".join(lines[-3:]).split())[:400] or "failed without a message"
    kind = ClusterUnreachable if any(one in said.lower() for one in UNREACHABLE) else KubectlError
    return kind(f"kubectl {verb}: {said}")


def until(found: Callable[[], T], seconds: float, otherwise: str) -> T:
    """Calls a function until it returns something true, and returns that. Raises `TooLate`."""
    end = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() >= end:
            raise TooLate(f"{otherwise} within {seconds:g} s")
        time.sleep(POLL_SECONDS)
    return value
