"""The components that no overlay has: what they add fits the service."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml

from api.observability.metric_names import ALL_METRICS
from api.settings import variable_names
from tests.k8s.chart import chart, comparable
from tests.k8s.custom_resources import validate
from tests.k8s.rendered import K8S, LOADER, Rendered, containers, rendered
from tests.k8s.test_manifests import KUBERNETES
from tests.support.needed_tools import need_tool

pytestmark = pytest.mark.once(reason="checks files that kubectl and helm render")


def with_component(folder: Path, *components: str, on: str = "base", version: str = KUBERNETES) -> Rendered:
    """The base or an overlay with components. Every object is valid."""
    need_tool("kubectl")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "ragherd",
        "resources": [relative(folder, K8S / on)],
        "components": [relative(folder, K8S / "components" / one) for one in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifests = Rendered(list(yaml.load_all(done.stdout, LOADER)))
    for each in manifests.all:
        validate(each, version)
    return manifests


def relative(folder: Path, target: Path) -> str:
    """Kustomize takes relative paths only."""
    return "/".join([".."] * len(folder.resolve().parts[1:]) + list(target.resolve().parts[1:]))


def admitted(manifests: Rendered) -> set[str]:
    """The namespaces that may send requests."""
    peers = manifests.named("NetworkPolicy")["spec"]["ingress"][0]["from"]
    return {
        one["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for one in peers
        if "namespaceSelector" in one
    }


def test_the_ingress_leads_to_the_service(tmp_path: Path) -> None:
    manifests = with_component(tmp_path, "ingress")
    ingress = manifests.named("Ingress")
    [rule] = ingress["spec"]["rules"]
    ports = {port["name"] for port in manifests.named("Service")["spec"]["ports"]}
    for path in rule["http"]["paths"]:
        service = path["backend"]["service"]
        assert (service["name"], {service["port"]["name"]} <= ports) == ("ragherd", True)
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]
    assert "ingress-nginx" in admitted(manifests)
    assert {path["path"] for path in rule["http"]["paths"]} == {"/query", "/documents"}


def test_the_route_of_the_gateway_leads_to_the_service(tmp_path: Path) -> None:
    manifests = with_component(tmp_path, "gateway")
    route = manifests.named("HTTPRoute")["spec"]
    [rule] = route["rules"]
    [backend] = rule["backendRefs"]
    assert backend["port"] in {
        port["port"] for port in manifests.named(kind="Service", name=backend["name"])["spec"]["ports"]
    }
    assert {match["path"]["value"] for match in rule["matches"]} == {"/query", "/documents"}
    [parent] = route["parentRefs"]
    assert admitted(manifests) == admitted(rendered("base")) | {parent["namespace"]}


def test_the_autoscaler_s_second_metric_is_the_one_that_the_adapter_gives(tmp_path: Path) -> None:
    autoscaler = with_component(tmp_path, "requests-in-flight").named("HorizontalPodAutoscaler")
    first, second = autoscaler["spec"]["metrics"]
    assert [first] == rendered("base").named("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert second["pods"]["target"]["averageValue"] == "50"
    [rule] = yaml.safe_load((K8S / "components/monitoring/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] == second["pods"]["metric"]["name"]
    assert second["pods"]["metric"]["name"] in {spec.name for spec in ALL_METRICS if spec.type == "gauge"}


def test_a_redis_of_one_s_own_is_named_by_a_secret_and_can_be_reached(tmp_path: Path) -> None:
    manifests = with_component(tmp_path, "redis-external")
    [url] = [one for one in manifests.container()["env"] if one["name"] == "REDIS_URL"]
    assert url["valueFrom"]["secretKeyRef"] == {"name": "redis", "key": "url"}
    rule = manifests.named("NetworkPolicy")["spec"]["egress"][-1]
    assert {one["port"] for one in rule["ports"]} == {6379, 6380, 26379}
    assert {one["ipBlock"]["cidr"] for one in rule["to"]} == {"0.0.0.0/0", "::/0"}


def test_the_ca_of_a_redis_is_a_file_that_is_mounted(tmp_path: Path) -> None:
    manifests = with_component(tmp_path, "redis-external", "redis-tls")
    values = {one["name"]: one.get("value", "") for one in manifests.container()["env"]}
    folder, _, file = values["REDIS_CA_FILE"].rpartition("/")
    [mount] = [one for one in manifests.container()["volumeMounts"] if one["mountPath"] == folder]
    [volume] = [one for one in manifests.pods()["ragherd"]["spec"]["volumes"] if one["name"] == mount["name"]]
    assert (volume["secret"]["secretName"], file) == ("redis-ca", "ca.crt")
    assert {"REDIS_URL", "REDIS_CA_FILE"} <= values.keys()
    assert "REDIS_CA_FILE" in variable_names()


def test_ollama_is_kept_to_nodes_with_a_gpu(tmp_path: Path) -> None:
    pod = with_component(tmp_path, "ollama", "gpu-nodes").pods()["ollama"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert {one["key"] for one in pod["tolerations"]} == {"nvidia.com/gpu"}


# -- What the chart has as a value -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "values"),
    [
        ("service-monitor", ("monitoring.scrape=serviceMonitor",)),
        ("dual-stack", ("ipFamilyPolicy=PreferDualStack",)),
        ("keda", ("ollama.autoscaling.enabled=true",)),
        ("ollama-model-image", ("ollama.modelImage=registry.example/models:llama3.2",)),
    ],
)
def test_a_value_of_the_chart_does_what_the_component_does(
    tmp_path: Path, component: str, values: tuple[str, ...]
) -> None:
    expected = comparable(with_component(tmp_path, component, on="overlays/production"))
    assert expected != comparable(rendered("overlays/production"))
    found = comparable(chart("--namespace", "ragherd", *(word for one in values for word in ("--set", one))))
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert found[name] == each, name


def test_every_backend_that_keda_adds_is_a_pod_with_a_service(tmp_path: Path) -> None:
    manifests = with_component(tmp_path, "keda", on="overlays/production")
    scaled = manifests.named("ScaledObject", "ollama")["spec"]
    set_ = manifests.named("StatefulSet", "ollama")
    assert (scaled["scaleTargetRef"]["kind"], "replicas" in set_["spec"]) == ("StatefulSet", False)
    names = [f"ollama-{number}" for number in range(scaled["maxReplicaCount"])]
    assert manifests.settings()["OLLAMA_BASE_URL"] == ",".join(f"http://{name}:11434" for name in names)
    for name in names:
        service = manifests.named(kind="Service", name=name)["spec"]
        assert service["selector"]["statefulset.kubernetes.io/pod-name"] == name
    [ollama] = set_["spec"]["template"]["spec"]["containers"]
    slots = {one["name"]: one["value"] for one in ollama["env"]}["OLLAMA_NUM_PARALLEL"]
    [trigger] = scaled["triggers"]
    assert trigger["metadata"]["threshold"] == slots == manifests.settings().get("BULKHEAD_MAX_CONCURRENT", "4")


def test_keda_asks_for_metrics_that_exist(tmp_path: Path) -> None:
    [trigger] = with_component(tmp_path, "ollama", "keda").named("ScaledObject", "ollama")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    promql_parser.parse(query)
    asked = set(re.findall(r"ragherd_\w+", query))
    gauges = {spec.name for spec in ALL_METRICS if spec.type == "gauge" and "name" in spec.labels}
    assert asked <= gauges
    assert "ragherd_bulkhead_waiting" in asked


def test_models_in_an_image_are_mounted_read_only_and_never_downloaded(tmp_path: Path) -> None:
    manifests = with_component(tmp_path, "ollama-model-image", on="overlays/production", version="1.35")
    pod = manifests.pods()["ollama"]
    [models] = [one for one in pod["spec"]["volumes"] if one["name"] == "models"]
    assert models["image"]["reference"]
    for container in containers(pod):
        environment = {one["name"]: one.get("value") for one in container["env"]}
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert mounts[environment["OLLAMA_MODELS"]] == "models"
        assert environment["OLLAMA_NOPRUNE"] == "1"
    egress = manifests.named("NetworkPolicy", "ollama")["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule["ports"]} == {53}
    assert "volumeClaimTemplates" not in manifests.named("StatefulSet", "ollama")["spec"]


def test_every_service_has_an_address_of_each_family(tmp_path: Path) -> None:
    manifests = with_component(tmp_path, "dual-stack", on="overlays/production")
    assert {each["spec"]["ipFamilyPolicy"] for each in manifests.kind("Service")} == {"PreferDualStack"}
    assert manifests.settings()["HOST"] == "::"
