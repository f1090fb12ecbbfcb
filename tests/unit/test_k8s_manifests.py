"""k8s/base renders, and what it says agrees with the service."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.settings import load_settings, variable_names

BASE = Path(__file__).parents[2] / "k8s" / "base"
CLOSING = 5.0
"""Seconds that gunicorn_conf.py adds for closing what a worker opened."""


@pytest.fixture(scope="module")
def manifests() -> dict[tuple[str, str], Any]:
    """Everything that `kubectl kustomize` renders, by kind and name (a generated name without its hash)."""
    if shutil.which("kubectl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("kubectl is not on the path, and CI must render the manifests")
        pytest.skip("kubectl is not on the path")
    done = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = list(yaml.safe_load_all(done.stdout))
    return {
        (each["kind"], "ragherd" if each["kind"] == "ConfigMap" else each["metadata"]["name"]): each for each in found
    }


@pytest.fixture
def pod(manifests: dict[tuple[str, str], Any]) -> Any:
    return manifests["Deployment", "ragherd"]["spec"]["template"]


@pytest.fixture
def container(pod: Any) -> Any:
    [only] = pod["spec"]["containers"]
    return only


@pytest.fixture
def settings(manifests: dict[tuple[str, str], Any]) -> dict[str, str]:
    values: dict[str, str] = manifests["ConfigMap", "ragherd"]["data"]
    return values


def test_it_is_what_a_deployment_needs(manifests: dict[tuple[str, str], Any]) -> None:
    assert set(manifests) == {
        ("ConfigMap", "ragherd"),
        ("Deployment", "ragherd"),
        ("PodDisruptionBudget", "ragherd"),
        ("Service", "ragherd"),
        ("Service", "ragherd-metrics"),
        ("ServiceAccount", "ragherd"),
    }


def test_every_setting_is_one_that_the_service_reads(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(settings) <= set(variable_names())
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert load_settings(env_file=None).server.host == "0.0.0.0"


def test_the_settings_reach_the_pod(manifests: dict[tuple[str, str], Any], container: Any) -> None:
    [settings, secret] = container["envFrom"]
    assert settings == {"configMapRef": {"name": manifests["ConfigMap", "ragherd"]["metadata"]["name"]}}
    assert secret == {"secretRef": {"name": "ragherd", "optional": True}}


def test_ports_services_and_settings_agree(
    manifests: dict[tuple[str, str], Any], pod: Any, container: Any, settings: dict[str, str]
) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": int(settings["PORT"]), "metrics": int(settings["METRICS_PORT"])}
    for service, port in (("ragherd", "http"), ("ragherd-metrics", "metrics")):
        spec = manifests["Service", service]["spec"]
        assert [entry["targetPort"] for entry in spec["ports"]] == [port]
        assert spec["selector"].items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/health/ready"), ("readinessProbe", "/health/ready"), ("livenessProbe", "/health/live")],
)
def test_the_probes_ask_the_right_question(container: Any, probe: str, path: str) -> None:
    assert container[probe]["httpGet"] == {"path": path, "port": "http"}


def test_a_pod_is_not_killed_before_it_has_drained(pod: Any, container: Any, settings: dict[str, str]) -> None:
    drain, graceful = float(settings["DRAIN_DELAY"]), float(settings["GRACEFUL_TIMEOUT"])

    assert pod["spec"]["terminationGracePeriodSeconds"] >= drain + graceful + CLOSING
    readiness = container["readinessProbe"]
    assert drain > readiness["periodSeconds"] * readiness["failureThreshold"]


def test_nothing_runs_as_root_or_writes_beside_tmp(pod: Any, container: Any) -> None:
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["runAsUser"] > 0
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]


def test_the_image_has_a_version(container: Any) -> None:
    name, _, tag = container["image"].partition(":")
    assert name
    assert tag not in {"", "latest"}


def test_other_services_names_do_not_become_settings(pod: Any) -> None:
    assert pod["spec"]["enableServiceLinks"] is False


def test_the_secrets_template_holds_no_value_and_is_not_applied(manifests: dict[tuple[str, str], Any]) -> None:
    template = yaml.safe_load((BASE / "secret.example.yaml").read_text())

    assert template["stringData"] == {}
    assert "Secret" not in {kind for kind, _ in manifests}
