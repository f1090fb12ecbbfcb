"""What a rehearsal applies is valid, restricted, and differs from the manifests only where it must."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import httpx
import kubernetes_validate
import pytest

from ragherd.rehearsal import added
from ragherd.rehearsal import manifests as module
from ragherd.rehearsal.added import Keys, LoadPlan
from ragherd.rehearsal.manifests import Changes, Rehearsed, Unusable, containers, namespace_labels, parsed, rehearsed
from ragherd.rehearsal.service_steps import faults_of
from tests.k8s.chart import chart
from tests.k8s.rendered import OVERLAYS, rendered
from tests.k8s.test_manifests import KUBERNETES
from tests.support.gunicorn_process import free_port
from tests.support.service import Service, ask
from tests.support.waiting import wait_until

pytestmark = pytest.mark.once(reason="checks files that kubectl and helm render")

IMAGE = "registry.example/team/ragherd:2.0.0"
SERVED = frozenset({"v1", "apps/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1"})
KEYS = Keys("admin-key", "user-key", "password")
PLAN = LoadPlan("load-restart", 10, 600, 10)


def given(source: str) -> list[Any]:
    return deepcopy((chart() if source == "chart" else rendered(source)).all)


def changed(source: str, **changes: Any) -> Rehearsed:
    return rehearsed(given(source), Changes("rehearsal", IMAGE, node="node-1", served=SERVED, **changes))


def everything(source: str) -> list[Any]:
    """All objects of a rehearsal."""
    return [
        added.namespace("rehearsal", namespace_labels(given(source))),
        *added.secrets(KEYS),
        added.stand_in(),
        *added.client(IMAGE, "node-1"),
        added.load_job(PLAN, IMAGE, "node-1", "http://ragherd:8001"),
        *changed(source).objects,
    ]


@pytest.mark.parametrize("source", [*OVERLAYS, "chart"])
def test_kubernetes_knows_every_field(source: str) -> None:
    for each in everything(source):
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


@pytest.mark.parametrize("source", [*OVERLAYS, "chart"])
def test_every_pod_is_restricted(source: str) -> None:
    for each in everything(source):
        spec = each["spec"] if each["kind"] == "Pod" else each.get("spec", {}).get("template", {}).get("spec")
        if spec is not None:
            assert faults_of(spec) == [], each["metadata"]["name"]


@pytest.mark.parametrize("source", [*OVERLAYS, "chart"])
def test_only_namespace_image_and_ollama_differ(source: str) -> None:
    before = {(each["kind"], each["metadata"]["name"]): each for each in given(source)}
    for each in changed(source).objects:
        assert each["metadata"].pop("namespace") == "rehearsal"
        origin = before.get((each["kind"], each["metadata"]["name"]))
        if origin is None:  # the stand-in
            assert (each["kind"], module.label_of(each)) == ("Deployment", "ollama")
            continue
        origin["metadata"].pop("namespace", None)
        if (each["kind"], module.label_of(each)) == ("Deployment", "ragherd"):
            for container in containers(origin):
                container["image"] = IMAGE
        assert each == origin


@pytest.mark.parametrize("source", [*OVERLAYS, "chart"])
def test_the_stand_in_has_the_place_of_ollama(source: str) -> None:
    after = changed(source)
    [ollama] = [each for each in after.workloads() if module.label_of(each) == "ollama"]
    template = ollama["spec"]["template"]
    [service] = [each for each in after.objects if each["kind"] == "Service" and module.label_of(each) == "ollama"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    [container] = containers(ollama)
    assert container["ports"] == [{"name": service["spec"]["ports"][0]["targetPort"], "containerPort": 11434}]
    assert container["env"] == [{"name": "LLM_MODEL", "value": after.settings["LLM_MODEL"]}]
    assert "nvidia.com/gpu" not in json.dumps(ollama["spec"]["template"]["spec"]["containers"])


def test_a_real_ollama_replaces_the_stand_in() -> None:
    after = changed("overlays/staging", ollama="http://gpu.example:8080")
    assert after.settings["OLLAMA_BASE_URL"] == "http://gpu.example:8080"
    assert "ollama" not in {module.label_of(each) for each in after.objects}
    [policy] = [
        each for each in after.objects if each["kind"] == "NetworkPolicy" and module.label_of(each) == "ragherd"
    ]
    assert {"ports": [{"port": 8080, "protocol": "TCP"}]} in policy["spec"]["egress"]


def test_what_the_cluster_does_not_serve_is_left_out() -> None:
    after = changed("overlays/production")
    assert after.left_out == ("PodMonitor ragherd", "PrometheusRule ragherd")


def test_a_small_cluster_gets_small_requests_and_the_same_limits() -> None:
    small, full = changed("overlays/production", small=True), changed("overlays/production")
    for one, other in zip(small.workloads(), full.workloads(), strict=True):
        for container, origin in zip(containers(one), containers(other), strict=True):
            assert container["resources"]["requests"] == module.SMALL_REQUESTS
            limit = container["resources"]["limits"]["memory"]
            assert mebibytes(module.SMALL_REQUESTS["memory"]) <= mebibytes(limit), container["name"]
            assert container["resources"]["limits"] == origin["resources"]["limits"]


def test_a_small_cluster_s_autoscaler_keeps_its_target() -> None:
    small, full = changed("overlays/production", small=True), changed("overlays/production")
    targets = []
    for one in (small, full):
        autoscaler = one.named("HorizontalPodAutoscaler")
        assert autoscaler is not None
        [metric] = autoscaler["spec"]["metrics"]
        targets.append(metric["containerResource"]["target"]["averageUtilization"])
    assert targets == [700, 70]  # percent of 50m, and of half a CPU


def mebibytes(size: str) -> int:
    return int(size[:-2]) * {"Mi": 1, "Gi": 1024}[size[-2:]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "not YAML"),
        ("- a list", "not a Kubernetes object"),
        ("{apiVersion: v1, kind: Secret, metadata: {name: other}}", "no Deployment with the label"),
        ("{apiVersion: v1, kind: PersistentVolume, metadata: {name: disk}}", "belongs to no namespace"),
    ],
)
def test_manifests_that_cannot_be_rehearsed_are_refused(text: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        rehearsed(parsed(text), Changes("rehearsal", IMAGE))


# -- The programs that run in its pods ---------------------------------------------------------------------------------


@pytest.fixture
def stand_in() -> Iterator[str]:
    """Runs the stand-in from its text, as its pod does, and yields its URL."""
    port = int(free_port())
    text = added.stand_in()["data"]["ollama.py"].replace("PORT = 11434", f"PORT = {port}")
    with subprocess.Popen([sys.executable, "-I", "-c", text], env={"ANSWER_SECONDS": "0"}) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}"))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            assert process.wait(10) == 0


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/version").is_success
    except httpx.TransportError:
        return False


def probed(job: dict[str, Any]) -> Any:
    """Runs the probe from its text, as its pod does."""
    command = [sys.executable, "-I", "-c", added.probe_program()]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=True, timeout=30)
    return json.loads(done.stdout)


async def test_the_service_takes_the_stand_in_for_ollama(serve: Service, stand_in: str) -> None:
    client = await serve(ollama={"ollama_base_url": stand_in}, embedder={"embedder": "onnx"})
    first = await ask(client, "How do I reset my password?")
    again = await ask(client, "My password, how do I reset?")
    assert first["answer"].startswith("The rehearsal's answer to:")
    assert (first["cache"]["status"], again["cache"]["status"]) == ("miss", "hit")
    assert (await client.get("/health")).json()["status"] == "healthy"


def test_the_probe_sends_requests_and_opens_connections(stand_in: str) -> None:
    port = int(stand_in.rpartition(":")[2])
    requests = [{"method": "GET", "url": f"{stand_in}/api/version"}, {"method": "GET", "url": "http://127.0.0.1:1/"}]
    good, bad = probed({"do": "send", "requests": requests})
    assert (good["status"], good["body"], bad["status"]) == (200, {"version": "0.0.0-rehearsal"}, 0)
    targets = [{"host": "127.0.0.1", "port": port}, {"host": "127.0.0.1", "port": 1}]
    opened, refused = probed({"do": "connect", "targets": targets})
    assert (opened, refused.partition(":")[0]) == ("open", "refused")


def test_the_probe_measures_when_a_change_is_everywhere(stand_in: str) -> None:
    version = {"method": "GET", "url": f"{stand_in}/api/version"}
    job = {"do": "spread", "first": version, "watched": [version, version], "field": "version", "timeout": 1}
    assert all(0 <= ms < 1000 for ms in probed({**job, "value": "0.0.0-rehearsal"})["ms"])
    assert probed({**job, "value": "never"})["ms"] == [None, None]
