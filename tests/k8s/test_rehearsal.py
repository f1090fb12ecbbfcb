"""`ragherd rehearse` against a cluster that answers as a real one did, and against one with a fault in its answers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from ragherd.rehearsal.kubectl import ClusterUnreachable, Kubectl
from ragherd.rehearsal.load import document
from ragherd.rehearsal.rehearsal import is_ready
from tests.k8s.recorded_cluster import FORWARD, NAMESPACE, RecordedCluster
from tests.k8s.rendered import K8S
from tests.support.needed_tools import need_tool

pytestmark = pytest.mark.once(reason="replays what kubectl answered")

RECORDED = Path(__file__).parent / "recorded"
IMAGE = "docker.io/library/ragherd:0.1.0"
SECOND = "docker.io/library/ragherd:0.0.9"
PROMISES = {"restart", "drain", "autoscale", "redis", "rotate", "upgrade", "bad image"}
"""The steps of the record in which no request may fail."""


@pytest.fixture
def cluster() -> Iterator[RecordedCluster]:
    """The staging overlay on two nodes."""
    with replayed("staging") as recorded:
        yield recorded


@pytest.fixture
def sentinels() -> Iterator[RecordedCluster]:
    """The production overlay on two nodes, whose primary is lost."""
    with replayed("primary") as recorded:
        yield recorded


@contextmanager
def replayed(name: str) -> Iterator[RecordedCluster]:
    recorded = RecordedCluster(RECORDED / f"{name}.jsonl.gz")

    def run(self: Kubectl, *arguments: str, text: str | None = None, seconds: float = 60.0) -> str:
        return recorded.run(self, *arguments, text=text, seconds=seconds)

    with (
        patch.object(Kubectl, "run", run),
        patch.object(Kubectl, "forwarded", lambda self, what, port: recorded.forwarded(self, what, port)),
        patch("ragherd.rehearsal.kubectl.POLL_SECONDS", 0.0),
        patch("ragherd.rehearsal.disruption_steps.BAD_SECONDS", 0.0),
        patch("ragherd.rehearsal.disruption_steps.SCHEDULE_SECONDS", 0.0),
    ):
        yield recorded


def rehearse(*arguments: str, only: tuple[str, ...] = (), overlay: str = "staging") -> Result:
    need_tool("kubectl")
    chosen = [option for one in only for option in ("--only", one)]
    command = ["rehearse", str(K8S / "overlays" / overlay), "--image", IMAGE, "--second-image", SECOND, "--small"]
    return CliRunner().invoke(
        commands, [*command, "--namespace", NAMESPACE, *chosen, *arguments], catch_exceptions=False
    )


def steps_of(result: Result) -> dict[str, Any]:
    return {one["name"]: one for one in json.loads(result.stdout)["steps"]}


def test_a_good_cluster_passes_every_step(cluster: RecordedCluster, tmp_path: Path) -> None:
    result = rehearse("--json", "--out", str(tmp_path))
    steps = steps_of(result)
    others = {name: one["result"] for name, one in steps.items() if one["result"] != "passed"}
    assert others == {"primary": "skipped"}
    assert result.exit_code == 0
    for name in PROMISES:
        load = steps[name]["figures"]["load"]
        assert load["requests"] > 0, name
        assert load["failed"] == 0, name
    assert f"delete namespace {NAMESPACE} --ignore-not-found --timeout=240s" in cluster.calls
    assert json.loads((tmp_path / "rehearsal.json").read_text()) == json.loads(result.stdout)
    assert "## Passed" in (tmp_path / "rehearsal.md").read_text()
    assert "Rehearsal on Kubernetes" in (tmp_path / "rehearsal.html").read_text()


def test_nothing_is_applied_outside_its_namespace(cluster: RecordedCluster) -> None:
    rehearse(only=("rights",))
    applied = [each for one in cluster.applied for each in one["items"]]
    assert {each["metadata"].get("namespace", NAMESPACE) for each in applied} == {NAMESPACE}
    assert [each["metadata"]["name"] for each in applied if each["kind"] == "Namespace"] == [NAMESPACE]


def failing_load(log: str) -> str:
    found = document(log)
    return json.dumps({**found, "failed": 1, "errors": {"HTTP 502": 1}, "error_examples": {"HTTP 502": "no answer"}})


def slow(found: Any) -> Any:
    return {**found, "ms": [5.0, 140.0]}


def privileged(found: Any) -> Any:
    for each in found["items"]:
        each["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    return found


def unscheduled(found: Any) -> Any:
    message = "0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints."
    for each in found["items"][:1]:
        each["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": message}]
    return found


def unready(found: Any) -> Any:
    return {"items": [each for each in found["items"] if not is_ready(each)] or found["items"][:1]}


def accepted(found: Any) -> Any:
    return [{**one, "status": 200} for one in found]


def opened(found: Any) -> Any:
    return ["open" for _ in found]


def missed(found: Any) -> Any:
    found[1]["body"]["cache"]["status"] = "miss"
    return found


FAULTS: dict[str, tuple[str, str, Callable[[Any], Any], str]] = {
    "a request fails": ("restart", "logs load-", failing_load, "requests failed (1 x HTTP 502)"),
    "the breaker is slow": ("breaker", "PROBE spread", slow, "140 ms"),
    "a pod has more rights": ("rights", "get pods --output json", privileged, "may gain privileges"),
    "a stranger gets in": (
        "policies",
        "exec --stdin rehearsal-stranger",
        opened,
        "can connect, and must not: a stranger",
    ),
    "a pod finds no other node": (
        "drain",
        "get pods --selector app.kubernetes.io/part-of",
        unscheduled,
        "didn't match pod topology spread",
    ),
    "a bad release takes a pod": (
        "bad image",
        "get pods --selector app.kubernetes.io/name=ragherd",
        unready,
        "only 0 of 2",
    ),
    "an old key works": ("rotate", "PROBE send query", accepted, "the old key still works: 200"),
    "the paraphrase is a miss": ("paraphrase", "PROBE send query query", missed, "a miss on another replica"),
    "an unknown key is in Redis": ("keys", "--scan", lambda text: f"{text}\nrag:unknown:1", "rag:unknown:1"),
    "the metrics are foreign": ("metrics", FORWARD, lambda _: "up 1\n", "no metric begins with ragherd_"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_cluster_fails_its_step(cluster: RecordedCluster, name: str) -> None:
    step, call, change, seen = FAULTS[name]
    cluster.alter(call, change)
    result = rehearse("--json", only=(step,))
    found = steps_of(result)[step]
    assert (found["result"], result.exit_code) == ("failed", 1), found
    assert seen in found["seen"]


def test_the_step_of_the_primary_waits_for_the_sentinels_and_for_the_former_primary(
    sentinels: RecordedCluster,
) -> None:
    result = rehearse("--json", only=("primary",), overlay="production")
    step = steps_of(result)["primary"]
    assert (step["result"], result.exit_code) == ("passed", 0), step
    [killed] = [call.split()[2] for call in sentinels.calls if call.startswith("delete pod redis-")]
    assert step["seen"].startswith(f"{killed} killed, redis-")
    assert step["figures"]["load"]["failed"] == 0
    named = [number for number, call in enumerate(sentinels.calls) if "GET-MASTER-ADDR-BY-NAME" in call]
    roles = [number for number, call in enumerate(sentinels.calls) if call.endswith("redis-cli ROLE")]
    assert named[-1] < roles[-1]


def test_sentinels_that_choose_no_other_primary_fail_the_step(sentinels: RecordedCluster) -> None:
    with patch("ragherd.rehearsal.disruption_steps.FAILOVER_SECONDS", 0.0):
        sentinels.alter("GET-MASTER-ADDR-BY-NAME", lambda _: "")
        result = rehearse("--json", only=("primary",), overlay="production")
    assert result.exit_code == 1
    assert "no other primary was chosen" in steps_of(result)["primary"]["seen"]


def test_an_interrupted_rehearsal_removes_its_namespace(cluster: RecordedCluster) -> None:
    def interrupt(_: Any) -> Any:
        raise KeyboardInterrupt

    cluster.alter("PROBE spread", interrupt)
    result = rehearse("--json", only=("breaker",))
    assert result.exit_code == 130
    assert json.loads(result.stdout)["interrupted"] == "by the user"
    assert cluster.calls[-2].startswith(f"delete namespace {NAMESPACE}")


def test_sigterm_while_a_node_is_drained_uncordons_it_and_removes_the_namespace(cluster: RecordedCluster) -> None:
    def stop(printed: str) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return printed

    cluster.alter("--pod-selector", stop)
    result = rehearse("--json", only=("drain",))
    found = json.loads(result.stdout)
    assert (result.exit_code, found["interrupted"], found["remains"]) == (143, "by SIGTERM", [])
    [node] = [call.split()[1] for call in cluster.calls if call.startswith("cordon ")]
    after = cluster.calls[cluster.calls.index(f"cordon {node}") :]
    assert f"uncordon {node}" in after
    assert cluster.calls[-2].startswith(f"delete namespace {NAMESPACE}")


def test_what_cannot_be_restored_is_named_with_its_command(cluster: RecordedCluster) -> None:
    def lost(_: Any) -> Any:
        raise ClusterUnreachable("kubectl drain: connection refused")

    for call in ("--pod-selector", "uncordon"):
        cluster.alter(call, lost)
    result = rehearse("--json", "--context", "lab", only=("drain",))
    [node] = [call.split()[1] for call in cluster.calls if call.startswith("cordon ")]
    assert result.exit_code == 3
    assert json.loads(result.stdout)["remains"] == [
        f"kubectl --context lab uncordon {node}",
        f"kubectl --context lab delete namespace {NAMESPACE}",
    ]


def test_a_kept_namespace_stays(cluster: RecordedCluster) -> None:
    result = rehearse("--keep", only=("rights",))
    assert f"Kept: kubectl delete namespace {NAMESPACE}" in result.stderr
    assert not [call for call in cluster.calls if call.startswith("delete namespace")]


def test_a_namespace_that_exists_is_left_alone(cluster: RecordedCluster) -> None:
    cluster.alter("get namespace", lambda _: f"namespace/{NAMESPACE}")
    result = rehearse()
    assert (result.exit_code, cluster.applied) == (2, [])
    assert "it exists" in result.stderr


def test_an_unreachable_cluster_has_its_exit_code(cluster: RecordedCluster) -> None:
    def lost(_: Any) -> Any:
        raise ClusterUnreachable("kubectl get: connection refused")

    cluster.alter("get nodes", lost)
    result = rehearse()
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "ragherd: kubectl get: connection refused\n"


def test_a_step_with_another_name_is_refused() -> None:
    result = rehearse(only=("upgarde",))
    assert result.exit_code == 2
    assert "--only upgarde: the steps are apply, ready, rights" in result.stderr
