"""Renders k8s/chart with `helm template`, and lists its allowed differences from an overlay."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache
from typing import Any

import yaml

from tests.k8s.rendered import K8S, LOADER, Rendered
from tests.support.needed_tools import need_tool

CHART = K8S / "chart"
OPERATOR = "monitoring.coreos.com/v1"
VALUES = {"overlays/dev": "values-dev.yaml", "overlays/staging": "values-staging.yaml", "overlays/production": None}

# -- The allowed differences between the chart and an overlay ---------------------------------------------------------

KINDS_ONLY_IN_OVERLAYS = {"Namespace"}
"""`helm install --create-namespace` makes it."""
LABELS = {
    "app.kubernetes.io/component",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "helm.sh/chart",
}
"""Helm's convention. `instance` is in the selectors too, so two releases may share a namespace."""
CHECKSUMS = "checksum/"
"""Annotations of pods: a changed ConfigMap restarts them. Kustomize has a hash in the ConfigMap's name instead."""
SETTINGS_ONLY_IN_OVERLAYS = {"REDIS_URL"}
"""The base's default in the ConfigMap, which the container's own `env` overrides in every overlay."""
SKIPPED_POLICIES = "checkov.io/"
"""Their reasons name kustomize or Helm."""


def helm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs helm. Skips the test without it, and fails it in CI."""
    need_tool("helm")
    done = subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def template(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs `helm template` on the chart, for the release `ragherd`."""
    return helm("template", "ragherd", str(CHART), "--kube-version", "1.33", *arguments, check=check)


def objects(printed: str) -> list[Any]:
    """The documents of a stream, without the empty ones."""
    return [each for each in yaml.load_all(printed, LOADER) if each is not None]


@lru_cache
def chart(*arguments: str, operator: bool = True) -> Rendered:
    """The chart's manifests with these arguments, on a cluster with or without the Prometheus operator."""
    versions = ("--api-versions", OPERATOR) if operator else ()
    return Rendered(objects(template(*versions, *arguments).stdout))


def chart_of(overlay: str) -> Rendered:
    """The chart with the values that match this overlay."""
    values = VALUES[overlay]
    return chart(*(() if values is None else ("-f", str(CHART / values))))


def comparable(manifests: Rendered) -> dict[tuple[str, str], Any]:
    """Every object by kind and name, without the allowed differences."""
    names = {each["metadata"]["name"]: unhashed(each["metadata"]["name"]) for each in manifests.kind("ConfigMap")}
    found = {}
    for each in manifests.all:
        if each["kind"] in KINDS_ONLY_IN_OVERLAYS:
            continue
        reduced = without_differences(each, names)
        if each["kind"] == "ConfigMap":
            reduced["data"] = {key: reduced["data"][key] for key in reduced["data"].keys() - SETTINGS_ONLY_IN_OVERLAYS}
        found[each["kind"], names.get(each["metadata"]["name"], each["metadata"]["name"])] = reduced
    return found


def unhashed(name: str) -> str:
    """A ConfigMap's name without the hash that kustomize appends: ten of the characters that it chose."""
    return re.sub(r"-[2456789bcdfghkmt]{10}$", "", name)


def without_differences(value: Any, names: dict[str, str]) -> Any:
    """The same value with the allowed differences removed, at every depth."""
    if isinstance(value, list):
        return [without_differences(each, names) for each in value]
    if not isinstance(value, dict):
        return names.get(value, value) if isinstance(value, str) else value
    kept = {
        key: without_differences(each, names)
        for key, each in value.items()
        if key not in LABELS and not key.startswith((CHECKSUMS, SKIPPED_POLICIES))
    }
    if "metadata" in kept:
        kept["metadata"].pop("namespace", None)
        for empty in ("labels", "annotations"):
            if not kept["metadata"].get(empty):
                kept["metadata"].pop(empty, None)
    return kept
