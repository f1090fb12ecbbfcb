"""Pods have minimal privileges and pinned images; every exception to a policy has a reason."""

from __future__ import annotations

import re

import pytest

from tests.k8s.rendered import OVERLAYS, ROOT, Rendered, containers, rendered

pytestmark = pytest.mark.once(reason="checks files that kubectl and helm render")


def test_every_pod_keeps_to_the_restricted_standard(manifests: Rendered) -> None:
    for name, pod in manifests.pods().items():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }, name


def test_only_memory_can_be_written_by_the_service(manifests: Rendered) -> None:
    pod = manifests.pods()["ragherd"]
    assert [mount["mountPath"] for mount in manifests.container()["volumeMounts"]] == ["/tmp", "/tmp/ragherd-metrics"]
    assert {volume["emptyDir"]["medium"] for volume in pod["spec"]["volumes"]} == {"Memory"}


def test_uploads_leave_room_for_the_counters(manifests: Rendered) -> None:
    """These are mapped: a worker that finds no page for one is killed by the kernel (SIGBUS)."""
    [folder] = re.findall(r"PROMETHEUS_MULTIPROC_DIR=(\S+)", (ROOT / "Dockerfile").read_text())
    mounts = {mount["mountPath"]: mount["name"] for mount in manifests.container()["volumeMounts"]}
    assert mounts[folder] != mounts["/tmp"]


def test_every_image_has_a_version(manifests: Rendered) -> None:
    for pod in manifests.pods().values():
        for container in containers(pod):
            name, _, tag = container["image"].partition(":")
            assert name
            assert tag not in {"", "latest"}


def test_other_services_names_do_not_become_settings(manifests: Rendered) -> None:
    for pod in manifests.pods().values():
        assert pod["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_namespace_refuses_pods_that_ask_for_more(folder: str) -> None:
    [namespace] = rendered(folder).kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_policy_that_is_not_kept_has_a_reason(manifests: Rendered) -> None:
    for each in manifests.all:
        for name, value in each["metadata"].get("annotations", {}).items():
            if name.startswith("checkov.io/skip"):
                check, _, reason = value.partition("=")
                assert check.startswith("CKV_K8S_")
                assert len(reason.split()) > 5, value
