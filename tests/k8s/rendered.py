"""Renders a folder below k8s/ with `kubectl kustomize`."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.needed_tools import need_tool

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("overlays/dev", "overlays/staging", "overlays/production")
WORKLOADS = {"Deployment", "StatefulSet"}
LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class Rendered:
    """The manifests of one folder."""

    def __init__(self, manifests: list[Any]) -> None:
        self.all = manifests

    def kind(self, *kinds: str) -> list[Any]:
        return [each for each in self.all if each["kind"] in kinds]

    def named(self, kind: str, name: str = "ragherd") -> Any:
        """Returns the object with that name. A generated name counts without its hash."""
        names = {each["metadata"]["name"]: each for each in self.kind(kind)}
        [found] = (
            [names[name]] if name in names else [each for n, each in names.items() if n.rpartition("-")[0] == name]
        )
        return found

    def pods(self) -> dict[str, Any]:
        """Returns the pod template of each workload by name."""
        return {each["metadata"]["name"]: each["spec"]["template"] for each in self.kind(*WORKLOADS)}

    def container(self) -> Any:
        """Returns the service's container."""
        [only] = self.pods()["ragherd"]["spec"]["containers"]
        return only

    def settings(self) -> dict[str, str]:
        """Returns the service's settings from the ConfigMap."""
        values: dict[str, str] = self.named("ConfigMap")["data"]
        return values


@lru_cache
def rendered(folder: str) -> Rendered:
    """`folder` as in `overlays/dev`. Skips the test without kubectl, and fails it in CI."""
    need_tool("kubectl")
    done = subprocess.run(["kubectl", "kustomize", str(K8S / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Rendered(list(yaml.load_all(done.stdout, LOADER)))


def containers(pod: Any) -> list[Any]:
    """Returns all containers of a pod template, including init containers."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
