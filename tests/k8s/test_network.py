"""The network policies allow the used connections, with the ports of the pods."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.k8s.rendered import OVERLAYS, Rendered, containers, rendered
from tests.k8s.test_settings import environment

pytestmark = pytest.mark.once(reason="checks files that kubectl and helm render")

DNS = {(53, "UDP"), (53, "TCP")}


def policy(manifests: Rendered, name: str) -> Any:
    return manifests.named("NetworkPolicy", name)["spec"]


def ports(rule: Any) -> set[int]:
    return {one["port"] for one in rule["ports"]}


def peers(rules: list[Any], port: int) -> set[str]:
    """The workloads that a port is open from, or to, by name; a namespace as `/name`."""
    found = set()
    for one in (peer for rule in rules if port in ports(rule) for peer in rule.get("from", rule.get("to", []))):
        labels = one.get("podSelector", one.get("namespaceSelector", {})).get("matchLabels", {})
        found.add(labels.get("app.kubernetes.io/name") or "/".join(("", *labels.values())))
    return found


def test_every_pod_has_a_policy_both_ways(manifests: Rendered) -> None:
    policies = [each["spec"] for each in manifests.kind("NetworkPolicy")]
    for name, pod in manifests.pods().items():
        labels = pod["metadata"]["labels"]
        [only] = [one for one in policies if one["podSelector"]["matchLabels"].items() <= labels.items()]
        assert set(only["policyTypes"]) == {"Ingress", "Egress"}, name


def test_what_is_let_in_has_a_container_that_listens(manifests: Rendered) -> None:
    for each in manifests.kind("NetworkPolicy"):
        pod = manifests.pods()[each["metadata"]["name"]]
        listened = {port["containerPort"] for one in containers(pod) for port in one.get("ports", [])}
        assert {port for rule in each["spec"]["ingress"] for port in ports(rule)} == listened


def test_requests_come_from_the_ingress_and_metrics_from_prometheus(manifests: Rendered) -> None:
    ingress = policy(manifests, "ragherd")["ingress"]
    settings = manifests.settings()
    assert peers(ingress, int(settings["PORT"])) == {"/ingress-nginx", "/true"}
    assert peers(ingress, int(settings["METRICS_PORT"])) == {"/monitoring"}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_service_reaches_what_its_settings_name_and_nothing_else(folder: str) -> None:
    manifests = rendered(folder)
    seen = environment(manifests)
    hosts = seen["REDIS_URL"].rpartition("@")[2].partition("/")[0].split(",")
    wanted = {int(host.rpartition(":")[2]) for host in hosts}
    wanted |= {port for url in seen["OLLAMA_BASE_URL"].split(",") if (port := urlsplit(url).port)} | {6379, 53}
    egress = policy(manifests, "ragherd")["egress"]
    assert {port for rule in egress for port in ports(rule)} == wanted
    for port in wanted - {53}:
        [peer] = peers(egress, port)
        pod = manifests.pods()[peer]
        assert port in {one["containerPort"] for each in containers(pod) for one in each.get("ports", [])}
        assert "ragherd" in peers(policy(manifests, peer)["ingress"], port)


def test_names_are_asked_of_the_clusters_own_server(manifests: Rendered) -> None:
    for each in manifests.kind("NetworkPolicy"):
        for rule in each["spec"].get("egress", []):
            if 53 in ports(rule):
                assert {(one["port"], one["protocol"]) for one in rule["ports"]} == DNS
                [peer] = rule["to"]
                assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kube-system"}


def test_redis_and_its_sentinels_reach_one_another() -> None:
    manifests = rendered("overlays/production")
    for name, port in (("redis", 6379), ("redis-sentinel", 26379)):
        assert peers(policy(manifests, name)["ingress"], port) == {"ragherd", "redis", "redis-sentinel"}
        for other in ("redis", "redis-sentinel"):
            assert name in peers(policy(manifests, other)["egress"], port)
