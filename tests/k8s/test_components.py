"""The components that no overlay has: what they add fits the service."""

from __future__ import annotations

import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from api.observability.metric_names import ALL_METRICS
from api.settings import variable_names
from tests.k8s.rendered import K8S, Rendered, rendered
from tests.k8s.test_manifests import KUBERNETES
from tests.support.needed_tools import need_tool

pytestmark = pytest.mark.once(reason="checks files that kubectl and helm render")


def with_component(folder: Path, *components: str) -> Rendered:
    """The base with components."""
    need_tool("kubectl")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "ragherd",
        "resources": [relative(folder, K8S / "base")],
        "components": [relative(folder, K8S / "components" / one) for one in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Rendered(list(yaml.safe_load_all(done.stdout)))


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
    kubernetes_validate.validate(ingress, KUBERNETES, strict=True)
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
    kubernetes_validate.validate(autoscaler, KUBERNETES, strict=True)
    first, second = autoscaler["spec"]["metrics"]
    assert [first] == rendered("base").named("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert second["pods"]["target"]["averageValue"] == "50"
    [rule] = yaml.safe_load((K8S / "components/monitoring/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] == second["pods"]["metric"]["name"]
    assert second["pods"]["metric"]["name"] in {spec.name for spec in ALL_METRICS if spec.type == "gauge"}


def test_a_redis_of_one_s_own_is_named_by_a_secret_and_can_be_reached(tmp_path: Path) -> None:
    manifests = with_component(tmp_path, "redis-external")
    kubernetes_validate.validate(manifests.named("NetworkPolicy"), KUBERNETES, strict=True)
    [url] = [one for one in manifests.container()["env"] if one["name"] == "REDIS_URL"]
    assert url["valueFrom"]["secretKeyRef"] == {"name": "redis", "key": "url"}
    rule = manifests.named("NetworkPolicy")["spec"]["egress"][-1]
    assert {one["port"] for one in rule["ports"]} == {6379, 6380, 26379}
    assert {one["ipBlock"]["cidr"] for one in rule["to"]} == {"0.0.0.0/0", "::/0"}


def test_the_ca_of_a_redis_is_a_file_that_is_mounted(tmp_path: Path) -> None:
    manifests = with_component(tmp_path, "redis-external", "redis-tls")
    kubernetes_validate.validate(manifests.named("Deployment"), KUBERNETES, strict=True)
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
