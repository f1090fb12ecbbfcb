"""The manifests of an overlay or of the chart, changed for a rehearsal: namespace, image, stand-in, small requests.

Every function is pure: objects in, objects out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

Object = dict[str, Any]

NAME_LABEL: Final = "app.kubernetes.io/name"
SERVICE: Final = "ragherd"
OLLAMA: Final = "ollama"
REDIS: Final = "redis"
SENTINEL: Final = "redis-sentinel"
WORKLOADS: Final = frozenset({"Deployment", "StatefulSet"})
CLUSTER_WIDE: Final = frozenset({"Namespace", "ClusterRole", "ClusterRoleBinding", "PersistentVolume", "StorageClass"})
SMALL_REQUESTS: Final = {"cpu": "50m", "memory": "32Mi"}
"""At most the limits of every container."""
STAND_IN: Final = "stand-in"
"""The ConfigMap with the stand-in's program."""


class Unusable(Exception):
    """The manifests cannot be rehearsed. The message is one line with the reason."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is changed. `images` maps names without a tag to images, `ollama` is the URL of a real one."""

    namespace: str
    image: str = ""
    images: Mapping[str, str] = field(default_factory=dict)
    ollama: str = ""
    small: bool = False
    node: str = ""
    """Where the stand-in runs, so that the drain of another node does not stop it."""
    served: frozenset[str] = frozenset()
    """API versions that the cluster serves, such as `apps/v1`. Objects of others are left out."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The objects to apply, and those that were left out, such as `PodMonitor ragherd`."""

    objects: tuple[Object, ...]
    left_out: tuple[str, ...] = ()

    def named(self, kind: str, name: str = SERVICE) -> Object | None:
        """Returns an object by its kind and its label of the name."""
        found = [each for each in self.objects if each["kind"] == kind and label_of(each) == name]
        return found[0] if found else None

    def workloads(self) -> list[Object]:
        return [each for each in self.objects if each["kind"] in WORKLOADS]

    @property
    def ports(self) -> dict[str, tuple[str, int]]:
        """The Service and its port of `http` and of `metrics`."""
        return {
            port["name"]: (each["metadata"]["name"], port["port"])
            for each in self.objects
            if each["kind"] == "Service" and label_of(each) == SERVICE
            for port in each["spec"]["ports"]
        }

    @property
    def service(self) -> Object:
        """The Deployment of the service."""
        found = self.named("Deployment")
        assert found is not None
        return found

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the service from its ConfigMap."""
        container = self.service["spec"]["template"]["spec"]["containers"][0]
        names = [one["configMapRef"]["name"] for one in container.get("envFrom", []) if "configMapRef" in one]
        maps = {each["metadata"]["name"]: each.get("data", {}) for each in self.objects if each["kind"] == "ConfigMap"}
        return {key: value for name in names for key, value in maps.get(name, {}).items()}


def parsed(text: str) -> list[Object]:
    """Returns the objects of a YAML stream. Raises `Unusable`."""
    try:
        found = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        raise Unusable(f"the manifests are not YAML: {' '.join(str(error).split())}") from None
    if not all(isinstance(each, dict) and {"apiVersion", "kind", "metadata"} <= each.keys() for each in found):
        raise Unusable("the manifests have a document that is not a Kubernetes object")
    return found


def rehearsed(given: Sequence[Object], changes: Changes) -> Rehearsed:
    """Returns the objects to apply. Raises `Unusable`."""
    kept, left_out = [], []
    for each in map(deepcopy, given):
        title = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "Namespace":
            continue
        if each["kind"] in CLUSTER_WIDE:
            raise Unusable(f"{title} belongs to no namespace, so a rehearsal cannot remove it")
        if changes.served and each["apiVersion"] not in changes.served:
            left_out.append(title)
        elif not (changes.ollama and label_of(each) == OLLAMA):
            each["metadata"]["namespace"] = changes.namespace
            kept.append(each)
    if not any(each["kind"] == "Deployment" and label_of(each) == SERVICE for each in kept):
        raise Unusable(f"the manifests have no Deployment with the label {NAME_LABEL}: {SERVICE}")
    if changes.small:
        _keep_cpu_target(kept)
    kept = [_changed(each, changes) for each in kept]
    return Rehearsed(tuple(kept), tuple(left_out))


def label_of(found: Object) -> str:
    """Returns the name of the part that an object belongs to."""
    return str(found["metadata"].get("labels", {}).get(NAME_LABEL, ""))


def namespace_labels(given: Iterable[Object]) -> dict[str, str]:
    """Returns the labels of the manifests' namespace. Without one, Pod Security is `restricted`."""
    for each in given:
        if each["kind"] == "Namespace":
            return dict(each["metadata"].get("labels", {}))
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {"app.kubernetes.io/part-of": SERVICE, **levels}


def _changed(each: Object, changes: Changes) -> Object:
    if each["kind"] == "StatefulSet" and label_of(each) == OLLAMA:
        each = _stand_in(each, changes.node)
    if each["kind"] in WORKLOADS:
        for container in containers(each):
            container["image"] = _image(container["image"], changes)
            if changes.small:
                container.setdefault("resources", {})["requests"] = dict(SMALL_REQUESTS)
    if changes.ollama and label_of(each) == SERVICE:
        _use_ollama(each, changes.ollama)
    return each


def _keep_cpu_target(objects: Sequence[Object]) -> None:
    """Raises the autoscaler's target as the requests shrink: it is a share of them."""
    asked = {
        container["name"]: container.get("resources", {}).get("requests", {}).get("cpu")
        for each in objects
        if each["kind"] == "Deployment"
        for container in containers(each)
    }
    for each in objects:
        for metric in each["spec"].get("metrics", []) if each["kind"] == "HorizontalPodAutoscaler" else []:
            found = metric.get("containerResource", {})
            if found.get("name") == "cpu" and (request := asked.get(found["container"])):
                share = _cores(request) / _cores(SMALL_REQUESTS["cpu"])
                found["target"]["averageUtilization"] = round(found["target"]["averageUtilization"] * share)


def _cores(quantity: str | float) -> float:
    text = str(quantity)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def containers(workload: Object) -> list[Object]:
    """Returns the containers of a workload, init containers first."""
    spec = workload["spec"]["template"]["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def _image(given: str, changes: Changes) -> str:
    name, _, tag = given.partition("@")[0].rpartition(":")
    name = name if name and "/" not in tag else given
    if changes.image and name.rpartition("/")[2] == SERVICE:
        return changes.image
    return changes.images.get(name, given)


def on_node(node: str) -> Object:
    """Returns the affinity of a pod for a node, empty without one."""
    where = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    terms = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [where]}}
    return {"affinity": {"nodeAffinity": terms}} if node else {}


def _stand_in(ollama: Object, node: str) -> Object:
    """Returns a Deployment with the StatefulSet's name, labels and rights, which runs the stand-in without a GPU."""
    spec = ollama["spec"]["template"]["spec"]
    served = next(one for one in spec["containers"] if one["name"] == OLLAMA)
    port = served["ports"][0]["containerPort"]
    container = {
        "name": OLLAMA,
        "image": SERVICE,
        "imagePullPolicy": served.get("imagePullPolicy", "IfNotPresent"),
        "command": ["python", f"/{STAND_IN}/ollama.py"],
        "env": [
            one
            for each in spec.get("initContainers", [])
            for one in each.get("env", [])
            if one.get("name") == "LLM_MODEL"
        ],
        "ports": [{"name": served["ports"][0]["name"], "containerPort": port}],
        "readinessProbe": {"httpGet": {"path": "/api/version", "port": port}, "periodSeconds": 1},
        # Serves while the cluster takes the pod out of its Service.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
        "securityContext": served["securityContext"],
        "volumeMounts": [{"name": STAND_IN, "mountPath": f"/{STAND_IN}"}],
    }
    changed = {
        **spec,
        **on_node(node),
        "containers": [container],
        "volumes": [{"name": STAND_IN, "configMap": {"name": STAND_IN}}],
    }
    changed = {key: value for key, value in changed.items() if key not in {"initContainers", "nodeSelector"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": ollama["metadata"],
        "spec": {
            "replicas": 1,
            "selector": ollama["spec"]["selector"],
            "template": {"metadata": ollama["spec"]["template"]["metadata"], "spec": changed},
        },
    }


def _use_ollama(each: Object, url: str) -> None:
    """Sets the URL of Ollama, and lets the service reach its port."""
    if each["kind"] == "ConfigMap" and "OLLAMA_BASE_URL" in each.get("data", {}):
        each["data"]["OLLAMA_BASE_URL"] = url
    elif each["kind"] == "NetworkPolicy":
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        each["spec"].setdefault("egress", []).append({"ports": [{"port": port, "protocol": "TCP"}]})
