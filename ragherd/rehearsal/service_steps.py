"""Steps that look at what is deployed: objects, probes, rights, metrics, keys, cache, breaker, network policies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

import ragherd
from ragherd.rehearsal.added import STRANGER, client, forbidden_pod, namespace, secrets, stand_in
from ragherd.rehearsal.kubectl import KubectlError, until
from ragherd.rehearsal.manifests import REDIS, SENTINEL, SERVICE, Object
from ragherd.rehearsal.rehearsal import ADMIN, Rehearsal, StepFailed, container_port, is_ready, names
from ragherd.rehearsal.steps import Seen

BREAKER_MS: Final = 100.0
BREAKER_TRIES: Final = 3
QUESTION: Final = "How do I reset my password?"
PARAPHRASE: Final = "My password, how do I reset?"
WRITTEN: Final = ("cache", "cb", "stats", "worker")
"""Kinds of keys that a question leaves."""
WRITE_SECONDS: Final = 10.0
FORBIDDEN: Final = "violates PodSecurity"


# -- Apply and ready ---------------------------------------------------------------------------------------------------


def apply(rehearsal: Rehearsal) -> Seen:
    """Creates everything. The API server warns about what Pod Security would not admit."""
    kubectl = rehearsal.kubectl
    kubectl.outside().apply([namespace(kubectl.namespace, dict(rehearsal.labels))])
    kubectl.apply([*secrets(rehearsal.keys), stand_in()])
    kubectl.apply(rehearsal.manifests.objects)
    kubectl.apply(client(rehearsal.options.image, rehearsal.node))
    if warned := [one for one in kubectl.warnings if "PodSecurity" in one]:
        raise StepFailed("; ".join(warned))
    left_out = rehearsal.manifests.left_out
    missing = f", without {', '.join(left_out)}, which the cluster does not serve" if left_out else ""
    return Seen(f"{len(rehearsal.manifests.objects)} objects{missing}", {"left_out": list(left_out)})


def become_ready(rehearsal: Rehearsal) -> Seen:
    """Waits for every workload, and compares the service's start with its startup probe."""
    least = rehearsal.least_replicas
    until(lambda: rehearsal.replicas() >= least, 60, f"the autoscaler does not ask for {least} pods")
    rehearsal.settled()
    rehearsal.kubectl.run("wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s", seconds=150)
    times = {str(each["metadata"]["name"]): seconds_to_ready(each) for each in rehearsal.pods()}
    limit = probe_seconds(rehearsal.manifests.service)
    late = [f"{name} took {seconds:g} s" for name, seconds in times.items() if seconds > limit]
    if late:
        raise StepFailed(f"the startup probe allows {limit:g} s: {', '.join(late)}")
    slowest = max(times.values())
    return Seen(f"{len(times)} pods of the service, the slowest after {slowest:g} s", {"seconds_to_ready": times})


def probe_seconds(workload: Object) -> float:
    """Returns the seconds that a start may take until a pod is ready."""
    container = workload["spec"]["template"]["spec"]["containers"][0]
    startup, ready = container["startupProbe"], container["readinessProbe"]
    return float(startup["periodSeconds"] * startup["failureThreshold"] + ready["periodSeconds"])


def seconds_to_ready(pod: Object) -> float:
    """Returns the seconds from the start of a pod's container until the pod was ready."""
    [state] = [one["state"]["running"] for one in pod["status"]["containerStatuses"]]
    [ready] = [one["lastTransitionTime"] for one in pod["status"]["conditions"] if one["type"] == "Ready"]
    return (datetime.fromisoformat(ready) - datetime.fromisoformat(state["startedAt"])).total_seconds()


# -- Rights ------------------------------------------------------------------------------------------------------------


def admitted(rehearsal: Rehearsal) -> Seen:
    """Checks the pods as they run, and that the namespace admits no pod with more rights."""
    pods = [each for each in rehearsal.kubectl.items("pods") if is_ready(each)]
    wrong = [f"{name}: {fault}" for each in pods for name in names([each]) for fault in faults_of(each["spec"])]
    if wrong:
        raise StepFailed("; ".join(wrong))
    try:
        rehearsal.kubectl.apply([forbidden_pod(rehearsal.options.image)], "--dry-run=server")
    except KubectlError as error:
        if FORBIDDEN not in str(error):
            raise
        return Seen(f"{len(pods)} pods are restricted, and a privileged pod was refused", {"pods": len(pods)})
    raise StepFailed("the namespace admits a privileged pod")


def faults_of(spec: Object) -> list[str]:
    """Returns what a pod has beyond the level `restricted`, and roots that it could write to."""
    outer, found = spec.get("securityContext", {}), []
    for each in [*spec.get("initContainers", []), *spec["containers"]]:
        inner = each.get("securityContext", {})
        both = {**outer, **inner}
        checks = {
            "runs as root": bool(both.get("runAsNonRoot")),
            "may gain privileges": inner.get("allowPrivilegeEscalation") is False,
            "keeps capabilities": inner.get("capabilities", {}).get("drop") == ["ALL"],
            "has no seccomp profile": both.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
            "can write to its root": inner.get("readOnlyRootFilesystem") is True,
        }
        found += [f"{each['name']} {fault}" for fault, good in checks.items() if not good]
    return found


# -- Cache, breaker, metrics, keys -------------------------------------------------------------------------------------


def paraphrase(rehearsal: Rehearsal) -> Seen:
    """Asks a question on one replica, and its paraphrase on another."""
    first, *_, last = _two(rehearsal.pods())
    asked, again = rehearsal.send(*(rehearsal.request(pod, "POST", "/query", _body(text)) for pod, text in (
        (first, QUESTION), (last, PARAPHRASE))))  # fmt: skip
    for one in (asked, again):
        if one["status"] != 200:
            raise StepFailed(f"POST /query: {one['status']}: {one['body']}")
    cache = again["body"]["cache"]
    where = "another replica" if first is not last else "the same replica, the only one"
    if cache["status"] != "hit":
        raise StepFailed(f"the paraphrase was a {cache['status']} on {where}")
    similarity = cache["similarity"]
    return Seen(
        f"a hit on {where}, similarity {similarity:.3f}, {again['ms']:.0f} ms instead of {asked['ms']:.0f} ms",
        {"miss_ms": asked["ms"], "hit_ms": again["ms"], "similarity": similarity},
    )


def breaker(rehearsal: Rehearsal) -> Seen:
    """Opens the breaker on one replica three times, and watches every replica from inside the cluster.

    The median counts: one try may meet a busy client, whose questions are late.
    """
    tries = []
    for number in range(BREAKER_TRIES):
        if number:
            close_breaker(rehearsal)
        tries.append(_opened(rehearsal))
    slowest = median(max(one.values()) for one in tries)
    seen = f"open on {len(tries[0])} replicas, on the last one {slowest:.0f} ms after the request was sent"
    if slowest > BREAKER_MS:
        raise StepFailed(seen)
    return Seen(seen, {"open_after_ms": tries})


def _opened(rehearsal: Rehearsal) -> dict[str, float]:
    """Opens the breaker. Returns the milliseconds until each replica showed it. Raises `StepFailed`."""
    pods = rehearsal.pods()
    found = rehearsal.probe(
        {
            "do": "spread",
            "first": rehearsal.request(pods[0], "POST", "/api/circuit-breaker/force-open", role=ADMIN),
            "watched": [rehearsal.request(pod, "GET", "/api/circuit-breaker/metrics", role=ADMIN) for pod in pods],
            "field": "state",
            "value": "OPEN",
        }
    )
    if found["first"]["status"] != 200:
        raise StepFailed(f"force-open: {found['first']['status']}: {found['first']['body']}")
    times = dict(zip(names(pods), found["ms"], strict=True))
    if never := [name for name, ms in times.items() if ms is None]:
        raise StepFailed(f"never open on {', '.join(never)}")
    return times


def close_breaker(rehearsal: Rehearsal) -> None:
    """Closes the breaker that `breaker` opened."""
    [closed] = rehearsal.send(rehearsal.request(rehearsal.pods()[0], "POST", "/api/circuit-breaker/reset", role=ADMIN))
    if closed["status"] != 200:
        raise StepFailed(f"reset of the breaker: {closed['status']}: {closed['body']}")


def metrics(rehearsal: Rehearsal) -> Seen:
    """Reads the metrics of a replica through a forwarded port, as a person would."""
    name, port = rehearsal.manifests.ports["metrics"]
    with rehearsal.kubectl.forwarded(f"service/{name}", port) as url:
        try:
            text = httpx.get(f"{url}/metrics", timeout=10, trust_env=False).raise_for_status().text
        except httpx.HTTPError as error:
            raise StepFailed(f"GET /metrics: {error}") from None
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    ours = {sample.name for sample in samples if sample.name.startswith("ragherd_")}
    queries = sum(sample.value for sample in samples if sample.name == "ragherd_queries_total")
    if not ours:
        raise StepFailed("no metric begins with ragherd_")
    return Seen(f"{len(ours)} names, {queries:.0f} queries on this replica", {"names": len(ours), "queries": queries})


def redis_keys(rehearsal: Rehearsal) -> Seen:
    """Compares the keys in Redis with the documentation, after a question."""
    rehearsal.send(rehearsal.request(rehearsal.pods()[0], "POST", "/query", _body(QUESTION)))
    prefix = rehearsal.manifests.settings.get("REDIS_PREFIX", "rag:")
    pod = rehearsal.primary() if rehearsal.has_sentinels else None
    found: list[str] = []

    def missing() -> list[str]:
        found[:] = sorted(filter(None, rehearsal.redis("--scan", "--pattern", f"{prefix}*", pod=pod).splitlines()))
        return [kind for kind in WRITTEN if not any(key.startswith(f"{prefix}{kind}:") for key in found)]

    until(lambda: not missing(), WRITE_SECONDS, f"no keys of {', '.join(WRITTEN)}")
    documented = documented_keys(prefix)
    unknown = [key for key in found if not any(pattern.fullmatch(key) for pattern in documented)]
    if unknown:
        raise StepFailed(f"not on the page of keys: {', '.join(unknown[:5])}")
    return Seen(f"{len(found)} keys, all documented", {"keys": len(found)})


def documented_keys(prefix: str = "rag:") -> list[re.Pattern[str]]:
    """Returns a pattern for each key on the page of keys, which is in a checkout and in the wheel."""
    package = Path(ragherd.__file__).parent
    pages = [package / "pages", package.parent / "docs"]
    page = next((one / "redis-keys.md" for one in pages if (one / "redis-keys.md").is_file()), None)
    if page is None:
        raise StepFailed("this installation has no page of keys")
    keys = re.findall(r"^\| `rag:([^`]+)`", page.read_text("utf-8"), re.MULTILINE)
    return [re.compile(re.escape(prefix) + _pattern(key)) for key in keys]


def _pattern(key: str) -> str:
    return "".join(".+" if part.startswith("<") else re.escape(part) for part in re.split(r"(<[^>]+>)", key) if part)


# -- Network policies --------------------------------------------------------------------------------------------------


def policies(rehearsal: Rehearsal) -> Seen:
    """Opens connections that must work, and connections that must not."""
    pod = rehearsal.pods()[0]
    host, port = str(pod["status"]["podIP"]), container_port(pod)
    allowed = [("a client", "the service", rehearsal.probe(_targets([(host, port)])))]
    inner = _inner(rehearsal)
    denied = [
        ("a stranger", "the service", rehearsal.probe(_targets([(host, port)]), STRANGER)),
        *[("a client", part, rehearsal.probe(_targets([target]))) for part, target in inner.items()],
    ]
    shut = [f"{who} to {what}: {found[0]}" for who, what, found in allowed if found != ["open"]]
    open_ = [f"{who} to {what}" for who, what, found in denied if found == ["open"]]
    if shut or open_:
        told = [f"cannot connect: {'; '.join(shut)}"] if shut else []
        told += [f"can connect, and must not: {'; '.join(open_)}"] if open_ else []
        raise StepFailed(". ".join(told))
    return Seen(
        f"{len(allowed)} connection works, {len(denied)} do not: {', '.join(f'{a} to {b}' for a, b, _ in denied)}"
    )


def _inner(rehearsal: Rehearsal) -> dict[str, tuple[str, int]]:
    """Returns the address of what only the service may reach."""
    found = {}
    for part, port in ((REDIS, 6379), (SENTINEL, 26379), ("ollama", 11434)):
        if pods := rehearsal.pods(part):
            found[part] = (str(pods[0]["status"]["podIP"]), port)
    return found


def _targets(targets: Iterable[tuple[str, int]]) -> dict[str, Any]:
    return {"do": "connect", "targets": [{"host": host, "port": port} for host, port in targets]}


def _body(question: str) -> dict[str, Any]:
    return {"question": question, "top_k": 0}


def _two(pods: list[Object]) -> list[Object]:
    if not pods:
        raise StepFailed(f"no pod of {SERVICE} is ready")
    return pods if len(pods) > 1 else [pods[0], pods[0]]
