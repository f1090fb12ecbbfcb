"""k8s/overlays/canary: one more Deployment behind production's Service, which can be deleted without a trace."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest

from tests.k8s.rendered import Rendered, rendered

pytestmark = pytest.mark.once(reason="checks files that kubectl and helm render")

CANARY, PRODUCTION = "overlays/canary", "overlays/production"


def names(manifests: Rendered) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in manifests.all}


def test_only_the_deployment_and_its_settings_are_of_the_canary() -> None:
    canary = rendered(CANARY)
    assert sorted(kind for kind, _ in names(canary)) == ["ConfigMap", "Deployment"]
    assert not names(canary) & names(rendered(PRODUCTION)), "kubectl delete -k would delete production's"
    assert {each["metadata"]["namespace"] for each in canary.all} == {"ragherd"}
    for each in canary.all:
        kubernetes_validate.validate(each, "1.33", strict=True)


def test_production_s_service_and_policies_reach_its_pods_and_its_deployment_owns_only_them() -> None:
    production, deployment = rendered(PRODUCTION), rendered(CANARY).named("Deployment", "ragherd-canary")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [production.named("Service", name)["spec"]["selector"] for name in ("ragherd", "ragherd-metrics")]
    selectors.append(production.named("NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    assert all(selector.items() <= labels.items() for selector in selectors)
    own = deployment["spec"]["selector"]["matchLabels"]
    assert own.items() <= labels.items()
    stable = production.named("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert not own.items() <= stable.items()


def test_its_pods_and_settings_are_production_s() -> None:
    canary, production = rendered(CANARY), rendered(PRODUCTION)
    assert canary.named("ConfigMap", "ragherd-canary")["data"] == production.settings()
    assert pod(canary, "ragherd-canary") == pod(production, "ragherd")
    assert canary.named("Deployment", "ragherd-canary")["spec"]["replicas"] == 1


def pod(manifests: Rendered, name: str) -> Any:
    """Returns the specification of the pods, without what tells the two Deployments apart."""
    spec = copy.deepcopy(manifests.pods()[name]["spec"])
    [container] = spec["containers"]
    container["envFrom"] = [source for source in container["envFrom"] if "configMapRef" not in source]
    for constraint in spec["topologySpreadConstraints"]:
        constraint["labelSelector"]["matchLabels"].pop("ragherd.io/track", None)
    return spec
