"""Every overlay renders to valid manifests, its references resolve, and pods shut down in order."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.k8s.custom_resources import validate
from tests.k8s.rendered import OVERLAYS, ROOT, Rendered, containers, rendered
from worker_config.gunicorn_conf import CLOSING_SECONDS

pytestmark = pytest.mark.once(reason="checks files that kubectl and helm render")

OPERATORS = {"PodMonitor", "PrometheusRule", "ServiceMonitor"}
"""Not Kubernetes's own."""
KUBERNETES = "1.33"


def test_kubernetes_knows_every_field(manifests: Rendered) -> None:
    for each in manifests.all:
        validate(each, KUBERNETES)


def test_the_base_is_what_a_deployment_needs() -> None:
    assert sorted(each["kind"] for each in rendered("base").all) == [
        *("ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget"),
        *("Service", "Service", "ServiceAccount"),
    ]


@pytest.mark.parametrize(
    ("folder", "workloads"),
    [
        ("overlays/dev", {"ragherd", "redis", "ollama"}),
        ("overlays/staging", {"ragherd", "redis", "ollama"}),
        ("overlays/production", {"ragherd", "redis", "redis-sentinel", "ollama"}),
    ],
)
def test_an_overlay_runs_what_it_says_in_a_namespace_of_its_own(folder: str, workloads: set[str]) -> None:
    manifests = rendered(folder)
    namespace = manifests.kind("Namespace")[0]["metadata"]["name"]
    assert set(manifests.pods()) == workloads
    assert {each["metadata"].get("namespace", namespace) for each in manifests.all} == {namespace}


def test_replicas_are_the_autoscalers_but_on_a_laptop() -> None:
    for folder in ("base", *OVERLAYS):
        manifests = rendered(folder)
        deployment = manifests.named("Deployment")["spec"]
        if folder == "overlays/dev":
            assert (deployment["replicas"], manifests.kind("HorizontalPodAutoscaler")) == (1, [])
        else:
            [scaler] = manifests.kind("HorizontalPodAutoscaler")
            assert "replicas" not in deployment
            assert scaler["spec"]["scaleTargetRef"]["name"] == "ragherd"
    [scaler] = rendered("overlays/production").kind("HorizontalPodAutoscaler")
    assert scaler["spec"]["minReplicas"] >= 3


def test_every_selector_finds_pods(manifests: Rendered) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in manifests.pods().items()}
    for each in manifests.kind("Deployment", "StatefulSet"):
        assert each["spec"]["selector"]["matchLabels"].items() <= labels[each["metadata"]["name"]].items()
    selectors = [service["spec"]["selector"] for service in manifests.kind("Service")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in manifests.kind("PodDisruptionBudget")]
    selectors += [monitor["spec"]["selector"]["matchLabels"] for monitor in manifests.kind("PodMonitor")]
    for selector in selectors:
        assert [name for name, found in labels.items() if selector.items() <= found.items()], selector


def test_a_selector_of_one_workload_finds_no_other(manifests: Rendered) -> None:
    names = [pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in manifests.pods().values()]
    assert sorted(names) == sorted(manifests.pods())


def test_every_service_leads_to_a_port(manifests: Rendered) -> None:
    for service in manifests.kind("Service"):
        for name, pod in manifests.pods().items():
            if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items():
                named = {port["name"] for each in containers(pod) for port in each.get("ports", [])}
                assert {port["targetPort"] for port in service["spec"]["ports"]} <= named, (service, name)


def test_every_name_that_a_pod_refers_to_is_there_or_is_a_secret(manifests: Rendered) -> None:
    maps = {each["metadata"]["name"] for each in manifests.kind("ConfigMap")}
    accounts = {each["metadata"]["name"] for each in manifests.kind("ServiceAccount")} | {"default"}
    for pod in manifests.pods().values():
        assert pod["spec"].get("serviceAccountName", "default") in accounts
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume} <= maps
        for container in containers(pod):
            assert {
                one["configMapRef"]["name"] for one in container.get("envFrom", []) if "configMapRef" in one
            } <= maps


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/health/ready"), ("readinessProbe", "/health/ready"), ("livenessProbe", "/health/live")],
)
def test_the_probes_ask_the_right_question(manifests: Rendered, probe: str, path: str) -> None:
    assert manifests.container()[probe]["httpGet"] == {"path": path, "port": "http"}


def test_every_container_is_probed_and_bounded(manifests: Rendered) -> None:
    for pod in manifests.pods().values():
        for container in pod["spec"]["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), container["name"]
        for container in containers(pod):
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def test_no_pod_is_without_its_name_while_it_starts(manifests: Rendered) -> None:
    """Until a postStart hook ends nobody is told the pod's address: its Service does not lead to it."""
    for name, pod in manifests.pods().items():
        assert [each["name"] for each in containers(pod) if "postStart" in each.get("lifecycle", {})] == [], name


def test_a_pod_is_not_killed_before_it_has_drained(manifests: Rendered) -> None:
    container, pod = manifests.container(), manifests.pods()["ragherd"]
    before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(manifests.settings()["DRAIN_DELAY"])
    graceful = float(manifests.settings()["GRACEFUL_TIMEOUT"])

    assert pod["spec"]["terminationGracePeriodSeconds"] >= before + drain + graceful + CLOSING_SECONDS


def test_one_slow_answer_takes_no_pod_out_of_service(manifests: Rendered) -> None:
    assert manifests.container()["readinessProbe"]["failureThreshold"] > 1


def test_a_rollout_takes_no_pod_away_before_another_is_ready(manifests: Rendered) -> None:
    update = manifests.named("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert (update["maxUnavailable"], update["maxSurge"]) == (0, 1)


def test_an_upgrade_of_redis_waits_until_the_sentinels_have_found_the_last_pod_again() -> None:
    """A pod comes back with another address, and names are cached for 30 s."""
    assert rendered("overlays/production").named("StatefulSet", "redis")["spec"]["minReadySeconds"] > 30


def test_replicas_are_spread_over_hosts_and_zones() -> None:
    for name, pod in rendered("overlays/production").pods().items():
        keys = {one["topologyKey"] for one in pod["spec"].get("topologySpreadConstraints", [])}
        assert name == "ollama" or keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}, name


@pytest.mark.parametrize("workload", ["ragherd", "redis", "redis-sentinel"])
def test_hosts_that_take_no_pod_do_not_hold_the_others_to_one(workload: str) -> None:
    """Otherwise a pod that leaves a drained node waits until the node is back."""
    constraints = rendered("overlays/production").pods()[workload]["spec"]["topologySpreadConstraints"]
    [strict] = [one for one in constraints if one["whenUnsatisfiable"] == "DoNotSchedule"]
    assert strict["nodeTaintsPolicy"] == "Honor"


def test_a_disruption_takes_one_pod_at_a_time() -> None:
    budgets = {
        each["metadata"]["name"]: each["spec"] for each in rendered("overlays/production").kind("PodDisruptionBudget")
    }
    assert set(budgets) == {"ragherd", "redis", "redis-sentinel"}
    assert {budget["maxUnavailable"] for budget in budgets.values()} == {1}


def test_ollama_computes_as_many_at_once_as_the_bulkhead_lets_through(manifests: Rendered) -> None:
    if "ollama" in manifests.pods():
        [ollama] = manifests.pods()["ollama"]["spec"]["containers"]
        environment: dict[str, Any] = {one["name"]: one["value"] for one in ollama["env"]}
        assert environment["OLLAMA_NUM_PARALLEL"] == manifests.settings().get("BULKHEAD_MAX_CONCURRENT", "4")


@pytest.mark.parametrize("folder", OVERLAYS)
def test_ollama_has_the_services_model_and_starts_anew_for_no_other_setting(folder: str) -> None:
    """It is one pod, with a model in memory: it does not name the ConfigMap, whose name changes with any setting."""
    manifests = rendered(folder)
    pod = manifests.pods()["ollama"]
    [models] = pod["spec"]["initContainers"]
    environment = {one["name"]: one.get("value") for one in models["env"]}
    assert environment["LLM_MODEL"] == manifests.settings()["LLM_MODEL"]
    assert manifests.named("ConfigMap")["metadata"]["name"] not in str(pod)


def test_compose_and_manifests_run_the_same_ollama() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    [image] = re.findall(r"OLLAMA_IMAGE:-([^}]+)}", compose)
    for container in containers(rendered("overlays/production").pods()["ollama"]):
        assert container["image"] == image
