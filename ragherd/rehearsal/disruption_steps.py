"""Steps that take something away under load: pods, nodes, Redis, keys, releases. And the end of the rehearsal."""

from __future__ import annotations

import secrets as random_secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ragherd.rehearsal.added import secrets
from ragherd.rehearsal.kubectl import Kubectl, KubectlError, TooLate, until
from ragherd.rehearsal.manifests import NAME_LABEL, REDIS, SENTINEL, SERVICE, WORKLOADS, Object
from ragherd.rehearsal.rehearsal import Rehearsal, StepFailed, names
from ragherd.rehearsal.steps import Seen, counted, without_failures

BAD_TAG: Final = "rehearsal-does-not-exist"
BAD_SECONDS: Final = 30.0
"""How long users are watched while a release cannot start."""
SCHEDULE_SECONDS: Final = 30.0
SCALE_UP_SECONDS: Final = 300.0
SCALE_DOWN_SECONDS: Final = 300.0
FAILOVER_SECONDS: Final = 120.0
AUTOSCALER: Final = "horizontalpodautoscaler"
PULL_ERRORS: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


# -- Pods and nodes ----------------------------------------------------------------------------------------------------


def restart(rehearsal: Rehearsal) -> Seen:
    """Replaces every pod, one after another."""
    with rehearsal.load("restart") as load:
        seconds = rehearsal.restarted()
    return without_failures(load, f"{rehearsal.replicas()} pods replaced in {seconds:.0f} s", rollout_seconds=seconds)


def kill(rehearsal: Rehearsal) -> Seen:
    """Kills a pod with what it works on, and waits for the next one."""
    victim = rehearsal.pods()[0]["metadata"]["name"]
    with rehearsal.load("kill") as load:
        began = time.monotonic()
        rehearsal.kubectl.run("delete", "pod", victim, "--grace-period=0", "--force")
        rehearsal.rolled_out()
        seconds = time.monotonic() - began
    return counted(load, f"{victim} killed, replaced after {seconds:.0f} s", replaced_seconds=seconds)


def drain(rehearsal: Rehearsal) -> Seen:
    """Drains a node that has a pod of the service, and lets it serve again."""
    node = _drained(rehearsal)
    assert node is not None
    with rehearsal.load("drain") as load:
        began = time.monotonic()
        # Only this rehearsal's pods leave: others on the node are no concern of it.
        rehearsal.cordon(node)
        moved = _evict(rehearsal, node)
        rehearsal.rolled_out()
        seconds = time.monotonic() - began
        stuck = _without_node(rehearsal)
    if stuck:
        raise StepFailed(f"not scheduled while {node} is drained: {'; '.join(stuck)}")
    return without_failures(load, f"{moved} pods left {node} in {seconds:.0f} s", drain_seconds=seconds, pods=moved)


def _without_node(rehearsal: Rehearsal) -> list[str]:
    """Returns the pods that no other node takes, although their volume would follow them."""

    def found() -> list[str]:
        return [
            f"{each['metadata']['name']}: {condition['message']}"
            for each in rehearsal.kubectl.items("pods", f"app.kubernetes.io/part-of={SERVICE}")
            for condition in each["status"].get("conditions", [])
            if condition["type"] == "PodScheduled" and condition["status"] == "False"
            if "volume node affinity" not in condition.get("message", "")
        ]

    try:
        until(lambda: not found(), SCHEDULE_SECONDS, "pods are not scheduled")
    except TooLate:
        return found()
    return []


def _evict(rehearsal: Rehearsal, node: str) -> int:
    kubectl = rehearsal.kubectl
    before = len(_on(rehearsal, node))
    selector = f"app.kubernetes.io/part-of={SERVICE}"
    limit = rehearsal.options.ready_seconds
    options = ["--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={limit:g}s", "--pod-selector", selector]
    kubectl.run("drain", node, *options, seconds=limit + 60)
    return before - len(_on(rehearsal, node))


def _on(rehearsal: Rehearsal, node: str) -> list[Object]:
    pods = rehearsal.kubectl.items("pods", f"app.kubernetes.io/part-of={SERVICE}")
    return [each for each in pods if each["spec"].get("nodeName") == node]


def uncordon(rehearsal: Rehearsal) -> None:
    """Lets pods return to the nodes, and waits until all are ready."""
    rehearsal.uncordon()
    rehearsal.settled()


def cannot_drain(rehearsal: Rehearsal) -> str:
    """Returns why no node can be drained, or ''."""
    if len(rehearsal.nodes) < 2:
        return "the cluster has one node"
    if rehearsal.least_replicas < 2:
        return "the service has one pod"
    return "" if _drained(rehearsal) else "the load's node has every pod of the service"


def _drained(rehearsal: Rehearsal) -> str | None:
    used = [each["spec"].get("nodeName") for each in rehearsal.pods()]
    return next((node for node in used if node and node != rehearsal.node), None)


# -- Autoscaler --------------------------------------------------------------------------------------------------------


def autoscale(rehearsal: Rehearsal) -> Seen:
    """Lowers the CPU target under load, so that the autoscaler adds pods, and restores it, so that it removes them."""
    least = _autoscaler(rehearsal)["spec"]["minReplicas"]
    with rehearsal.load("autoscale") as load:
        _tune(rehearsal, target=1)
        began = time.monotonic()
        most = until(lambda: _more_than(rehearsal, least), SCALE_UP_SECONDS, "no pod was added")
        up = time.monotonic() - began
        rehearsal.rolled_out()
        _tune(rehearsal, target=1000)
        began = time.monotonic()
        until(lambda: rehearsal.replicas() == least, SCALE_DOWN_SECONDS, "the added pods were not removed")
        rehearsal.gone()
        down = time.monotonic() - began
    text = f"{least} to {most} pods after {up:.0f} s, and back after {down:.0f} s"
    return without_failures(load, text, up_seconds=up, down_seconds=down, most=most)


def _more_than(rehearsal: Rehearsal, least: int) -> int:
    wanted = rehearsal.replicas()
    return wanted if wanted > least else 0


def _tune(rehearsal: Rehearsal, target: int) -> None:
    """Sets the CPU target in percent, and allows one more pod. A metric that the cluster lacks would keep every pod."""
    found = _autoscaler(rehearsal)
    cpu = [one for one in found["spec"]["metrics"] if one["type"] == "ContainerResource"]
    cpu[0]["containerResource"]["target"]["averageUtilization"] = target
    behavior = {"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [_all_at_once()]}}
    spec = {
        "maxReplicas": found["spec"]["minReplicas"] + 1,
        "metrics": cpu,
        "behavior": {**found["spec"]["behavior"], **behavior},
    }
    rehearsal.kubectl.patch(f"{AUTOSCALER}/{found['metadata']['name']}", {"spec": spec}, "merge")


def _all_at_once() -> Mapping[str, Any]:
    return {"type": "Percent", "value": 100, "periodSeconds": 15}


def cannot_autoscale(rehearsal: Rehearsal) -> str:
    """Returns why pods cannot be added, or ''."""
    if rehearsal.manifests.named("HorizontalPodAutoscaler") is None:
        return "the manifests have no autoscaler"
    try:
        rehearsal.kubectl.run("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes")
    except KubectlError:
        return "the cluster has no metrics-server"
    return ""


def restore_autoscaler(rehearsal: Rehearsal) -> None:
    """Applies the autoscaler of the manifests again."""
    found = rehearsal.manifests.named("HorizontalPodAutoscaler")
    assert found is not None
    rehearsal.kubectl.apply([found])
    until(lambda: rehearsal.replicas() >= found["spec"]["minReplicas"], 60, "the autoscaler removed too many pods")
    rehearsal.rolled_out()


def _autoscaler(rehearsal: Rehearsal) -> Any:
    found = rehearsal.manifests.named("HorizontalPodAutoscaler")
    assert found is not None
    return rehearsal.kubectl.get(AUTOSCALER, found["metadata"]["name"])


# -- Redis -------------------------------------------------------------------------------------------------------------


def lose_primary(rehearsal: Rehearsal) -> Seen:
    """Kills the primary of Redis. The Sentinels choose another."""
    primary = rehearsal.primary()
    with rehearsal.load("primary") as load:
        began = time.monotonic()
        rehearsal.kubectl.run("delete", "pod", primary, "--grace-period=0", "--force")
        chosen = until(lambda: _chosen(rehearsal, primary), FAILOVER_SECONDS, "no other primary was chosen")
        seconds = time.monotonic() - began
        until(lambda: _is_only_primary(rehearsal, chosen), FAILOVER_SECONDS, f"{primary} does not follow {chosen}")
        follows = time.monotonic() - began
        rehearsal.settled()
    away = load.figures()["hits_away_seconds"]
    text = (
        f"{primary} killed, {chosen} leads after {seconds:.0f} s and alone after {follows:.0f} s, "
        f"hits were away for {away:g} s"
    )
    return without_failures(load, text, failover_seconds=seconds, follows_seconds=follows)


def _chosen(rehearsal: Rehearsal, former: str) -> str:
    """Returns the primary that the Sentinels name, once it is another."""
    try:
        found = rehearsal.named_primary()
    except (StepFailed, KubectlError):
        return ""
    return found if found != former else ""


def _is_only_primary(rehearsal: Rehearsal, chosen: str) -> bool:
    """Returns whether no other pod takes itself for the primary. The former one learns it from the Sentinels."""
    try:
        return rehearsal.primary() == chosen
    except (StepFailed, KubectlError):
        return False


def no_sentinels(rehearsal: Rehearsal) -> str:
    return "" if rehearsal.has_sentinels else "the manifests have no Sentinels"


def lose_redis(rehearsal: Rehearsal) -> Seen:
    """Kills every pod of Redis and every Sentinel at once."""
    doomed = [name for part in (REDIS, SENTINEL) for name in names(rehearsal.pods(part))]
    with rehearsal.load("redis") as load:
        rehearsal.kubectl.run("delete", "pod", *doomed, "--grace-period=0", "--force")
        began = time.monotonic()
        rehearsal.settled()
        seconds = time.monotonic() - began
    away = load.figures()["hits_away_seconds"]
    text = f"{len(doomed)} pods killed, ready after {seconds:.0f} s, hits were away for {away:g} s"
    return without_failures(load, text, ready_seconds=seconds)


def no_redis(rehearsal: Rehearsal) -> str:
    return "" if rehearsal.has_redis else "Redis is outside the manifests"


# -- Keys and releases -------------------------------------------------------------------------------------------------


def rotate_keys(rehearsal: Rehearsal) -> Seen:
    """Adds a key, moves the clients to it, and removes the old one."""
    keys, new = rehearsal.keys, random_secrets.token_hex(24)
    rehearsal.kubectl.apply(secrets(keys, (keys.user, new)))
    with rehearsal.load("old-key") as before:
        rehearsal.restarted()
    rehearsal.keys = replace(keys, user=new)
    rehearsal.kubectl.apply(secrets(rehearsal.keys))
    with rehearsal.load("new-key") as after:
        rehearsal.restarted()
    pod = rehearsal.pods()[0]
    old = rehearsal.request(pod, "POST", "/query", {"question": "Who are you?"})
    [refused] = rehearsal.send({**old, "headers": {"Authorization": f"Bearer {keys.user}"}})
    if refused["status"] != 401:
        raise StepFailed(f"the old key still works: {refused['status']}")
    first = without_failures(before, "both keys valid")
    second = without_failures(after, "the old key gone")
    return Seen(f"{first.text}. {second.text}", {"load": second.figures["load"], "load_before": first.figures["load"]})


def upgrade(rehearsal: Rehearsal) -> Seen:
    """Rolls out the second image, and goes back."""
    with rehearsal.load("upgrade") as load:
        up = _set_image(rehearsal, rehearsal.options.second_image)
        down = _set_image(rehearsal, rehearsal.options.image)
    text = f"to {rehearsal.options.second_image} in {up:.0f} s, back in {down:.0f} s"
    return without_failures(load, text, up_seconds=up, down_seconds=down)


def no_second_image(rehearsal: Rehearsal) -> str:
    return "" if rehearsal.options.second_image else "no --second-image was given"


def bad_image(rehearsal: Rehearsal) -> Seen:
    """Rolls out an image that does not exist. The old pods must stay."""
    wanted, bad = rehearsal.replicas(), f"{_repository(rehearsal.options.image)}:{BAD_TAG}"
    with rehearsal.load("bad-image") as load:
        rehearsal.kubectl.run("set", "image", rehearsal.deployment, f"{SERVICE}={bad}")
        until(lambda: _cannot_start(rehearsal), 120, "the bad image was not tried")
        began = time.monotonic()
        least = len(rehearsal.pods())
        while time.monotonic() - began < BAD_SECONDS:
            least = min(least, len(rehearsal.pods()))
    if least < wanted:
        raise StepFailed(f"only {least} of {wanted} pods were ready")
    return without_failures(load, f"{least} of {wanted} pods stayed ready for {BAD_SECONDS:.0f} s")


def undo_image(rehearsal: Rehearsal) -> None:
    """Goes back to the image."""
    _set_image(rehearsal, rehearsal.options.image)


def _set_image(rehearsal: Rehearsal, image: str) -> float:
    began = time.monotonic()
    rehearsal.kubectl.run("set", "image", rehearsal.deployment, f"{SERVICE}={image}")
    rehearsal.rolled_out()
    rehearsal.gone()
    return time.monotonic() - began


def _cannot_start(rehearsal: Rehearsal) -> bool:
    pods = rehearsal.kubectl.items("pods", f"{NAME_LABEL}={SERVICE}")
    states = [one.get("state", {}) for each in pods for one in each["status"].get("containerStatuses", [])]
    return any(state.get("waiting", {}).get("reason") in PULL_ERRORS for state in states)


def _repository(image: str) -> str:
    name = image.partition("@")[0]
    head, _, tag = name.rpartition(":")
    return head if head and "/" not in tag else name


# -- The end -----------------------------------------------------------------------------------------------------------


def delete(rehearsal: Rehearsal) -> Seen:
    """Deletes the manifests' objects, then the namespace, and looks for what is left."""
    kubectl = rehearsal.kubectl
    kinds = sorted({each["kind"] for each in rehearsal.manifests.objects if each["kind"] in WORKLOADS})
    began = time.monotonic()
    kubectl.run("delete", ",".join(kinds), "--all", "--timeout=180s", seconds=200)
    until(lambda: not _of_the_service(rehearsal), 120, "pods are left")
    remove_namespace(kubectl)
    if left := _volumes_of(kubectl):
        raise StepFailed(f"left: {', '.join(left)}")
    return Seen(f"nothing is left after {time.monotonic() - began:.0f} s")


def remove_namespace(kubectl: Kubectl) -> None:
    """Deletes the namespace with everything in it. Raises `TooLate`."""
    outside = kubectl.outside()
    outside.run("delete", "namespace", kubectl.namespace, "--ignore-not-found", "--timeout=240s", seconds=260)
    try:
        outside.get("namespace", kubectl.namespace)
    except KubectlError:
        return
    raise TooLate(f"the namespace {kubectl.namespace} is still there")


def _of_the_service(rehearsal: Rehearsal) -> list[Object]:
    return rehearsal.kubectl.items("pods", f"app.kubernetes.io/part-of={SERVICE}")


def _volumes_of(kubectl: Kubectl) -> list[str]:
    """Returns the volumes that still belong to claims of the namespace, once the provisioner has had its time."""

    def claimed() -> list[str]:
        volumes = kubectl.outside().items("persistentvolumes")
        return [
            f"PersistentVolume {each['metadata']['name']}"
            for each in volumes
            if (each["spec"].get("claimRef") or {}).get("namespace") == kubectl.namespace
            and each["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
        ]

    try:
        until(lambda: not claimed(), 60, "volumes are left")
    except TooLate:
        return claimed()
    return []
