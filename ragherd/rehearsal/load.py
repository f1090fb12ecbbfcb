"""A load from inside the cluster, and what it says about a step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from ragherd.rehearsal.added import LoadPlan, load_job
from ragherd.rehearsal.kubectl import Kubectl, KubectlError, until

START_SECONDS: Final = 90.0
END_SECONDS: Final = 60.0
SHOWN: Final = ("p50", "p95", "p99", "max")


@dataclass(slots=True)
class Load:
    """A load that runs or has ended. `found` is the document of `ragherd load-test --json`."""

    plan: LoadPlan
    found: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Returns the figures that a report shows."""
        latency = self.found["latency_ms"]
        return {
            "requests": self.found["requests"],
            "failed": self.found["failed"],
            "unfinished": self.found["unfinished"],
            "hit_rate": self.found["hit_rate"],
            "by_status": self.found["by_status"],
            "errors": self.found["errors"],
            "error_examples": self.found["error_examples"],
            "latency_ms": {name: latency[name] for name in SHOWN},
            "hits_away_seconds": hits_away(self.found["series"]),
        }


@contextmanager
def running(
    kubectl: Kubectl, plan: LoadPlan, image: str, node: str, url: str, least_seconds: float = 0.0
) -> Iterator[Load]:
    """Runs a load during the body, and for the timeout of a request longer: every request of the body counts then.

    It lasts at least `least_seconds`.
    """
    load = Load(plan)
    kubectl.apply([load_job(plan, image, node, url)])
    pod = ""
    try:
        pod = until(lambda: _running_pod(kubectl, plan.name), START_SECONDS, f"{plan.name} did not start")
        until(lambda: _has_connected(kubectl, pod), START_SECONDS, f"{plan.name} sent no request")
        began = time.monotonic()
        yield load
        rest = max(plan.timeout, least_seconds - (time.monotonic() - began))
        kubectl.execute(pod, "sleep", f"{rest:.0f}", seconds=rest + END_SECONDS)
        kubectl.execute(pod, "sh", "-c", "kill -INT 1")
        until(lambda: _has_ended(kubectl, pod), END_SECONDS, f"{plan.name} did not end")
        load.found = document(kubectl.run("logs", pod))
    finally:
        kubectl.run("delete", "job", plan.name, "--ignore-not-found", "--cascade=foreground", "--wait=false")


def document(log: str) -> dict[str, Any]:
    """Returns the JSON document in the log of a load. Raises `KubectlError`."""
    for line in reversed(log.splitlines()):
        if line.startswith("{"):
            try:
                found: dict[str, Any] = json.loads(line)
            except ValueError:
                break
            return found
    raise KubectlError(f"the load left no figures: {' '.join(log.split())[-300:] or 'its log is empty'}")


def hits_away(series: Sequence[Mapping[str, Any]]) -> float:
    """Returns the longest time, in seconds, without a hit between two hits."""
    width = series[1]["second"] - series[0]["second"] if len(series) > 1 else 1.0
    longest = since = 0
    seen = False
    for row in series:
        if row["hits"]:
            longest, since, seen = max(longest, since), 0, True
        elif seen and row["requests"]:
            since += 1
    return float(longest * width)


def _running_pod(kubectl: Kubectl, job: str) -> str:
    for each in kubectl.items("pods", f"job-name={job}"):
        if each["status"].get("phase") == "Failed":
            raise KubectlError(
                f"the load failed: {' '.join(kubectl.run('logs', each['metadata']['name']).split())[-300:]}"
            )
        if each["status"].get("phase") == "Running":
            return str(each["metadata"]["name"])
    return ""


def _has_connected(kubectl: Kubectl, pod: str) -> bool:
    """Returns whether the load has an established connection: it has read its questions and has begun."""
    connections = kubectl.execute(pod, "cat", "/proc/net/tcp", "/proc/net/tcp6")
    return any(line.split()[3] == "01" for line in connections.splitlines() if line.split()[3:4] != ["st"])


def _has_ended(kubectl: Kubectl, pod: str) -> bool:
    return bool(kubectl.get("pod", pod)["status"].get("phase") in {"Succeeded", "Failed"})
