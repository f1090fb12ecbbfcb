"""The objects that a rehearsal adds: namespace, secrets, the stand-in's program, a client pod and the load's Job."""

from __future__ import annotations

import inspect
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ragherd.rehearsal import ollama, probe
from ragherd.rehearsal.manifests import REDIS, SERVICE, STAND_IN, Object, on_node

CLIENT_LABEL: Final = {"ragherd-client": "true"}
PART: Final = {"app.kubernetes.io/part-of": "ragherd-rehearsal"}
CLIENT: Final = "rehearsal-client"
STRANGER: Final = "rehearsal-stranger"
"""A pod that no network policy lets in."""
TENANT: Final = "rehearsal"
RESTRICTED_POD: Final = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


STARTED_LOAD: Final = """
until python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=2)' "$1/health/live" 2>/dev/null; do
  sleep 1
done
shift
exec ragherd "$@"
"""
"""A network plugin lets a new pod connect only after a moment."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The secrets of one rehearsal."""

    admin: str
    user: str
    redis: str


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A load on the service: requests per second for at most so many seconds. A request fails after `timeout`."""

    name: str
    rate: float
    seconds: float
    timeout: float
    topics: int = 20

    def arguments(self, url: str) -> list[str]:
        """Returns the arguments of `ragherd`."""
        return [
            *("load-test", "--url", url, "--rate", f"{self.rate:g}", "--seconds", f"{self.seconds:g}"),
            *("--timeout", f"{self.timeout:g}", "--topics", str(self.topics), "--top-k", "0"),
            *("--shared-cache", "--max-error-rate", "1", "--json"),
        ]


def namespace(name: str, labels: dict[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {**labels, **PART}}}


def secrets(keys: Keys, users: Sequence[str] = ()) -> list[Object]:
    """Returns the secrets of the service and of Redis. `users`: other valid keys."""
    valid = ",".join(f"{TENANT}={key}" for key in users or (keys.user,))
    return [
        _secret(SERVICE, {"ADMIN_KEYS": keys.admin, "API_KEYS": valid}),
        _secret(REDIS, {"password": keys.redis}),
        _secret(CLIENT, {"key": keys.user}),
    ]


def stand_in() -> Object:
    """Returns the ConfigMap with the stand-in's program."""
    return _object("v1", "ConfigMap", STAND_IN, data={"ollama.py": inspect.getsource(ollama)})


def client(image: str, node: str) -> list[Object]:
    """Returns two pods that send requests: one that the network policies let in, and a stranger."""
    wait = {"command": ["sleep", "86400"]}
    return [
        _object("v1", "Pod", name, labels=labels, spec=_pod(image, node, wait))
        for name, labels in ((CLIENT, CLIENT_LABEL), (STRANGER, {}))
    ]


def probe_program() -> str:
    """Returns the program that runs in the client's pod."""
    return inspect.getsource(probe)


def load_job(plan: LoadPlan, image: str, node: str, url: str) -> Object:
    """Returns the Job of a load. It runs once, whatever its end."""
    key = {"valueFrom": {"secretKeyRef": {"name": CLIENT, "key": "key"}}}
    command = ["sh", "-c", STARTED_LOAD, "sh", url, *plan.arguments(url)]
    container = {"command": command, "env": [{"name": "RAGHERD_API_KEY", **key}]}
    return _object(
        "batch/v1",
        "Job",
        plan.name,
        spec={
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(plan.seconds + plan.timeout + 120),
            "template": {
                "metadata": {"labels": {**PART, **CLIENT_LABEL}},
                "spec": _pod(image, node, container),
            },
        },
    )


def forbidden_pod(image: str) -> Object:
    """Returns a pod that the level `restricted` must not admit."""
    spec = {"containers": [{"name": "root", "image": image, "securityContext": {"privileged": True}}]}
    return _object("v1", "Pod", "rehearsal-forbidden", spec=spec)


def _pod(image: str, node: str, container: Object) -> Object:
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": RESTRICTED_POD,
        # On one node: a drained node would take the load with it.
        **on_node(node),
        "containers": [
            {
                "name": "client",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "resources": {
                    "requests": {"cpu": "100m", "memory": "128Mi"},
                    "limits": {"cpu": "1", "memory": "512Mi"},
                },
                "securityContext": RESTRICTED,
                **container,
            }
        ],
    }


def _secret(name: str, values: dict[str, str]) -> Object:
    encoded = {key: b64encode(value.encode()).decode() for key, value in values.items()}
    return _object("v1", "Secret", name, type="Opaque", data=encoded)


def _object(version: str, kind: str, name: str, *, labels: dict[str, str] | None = None, **rest: Any) -> Object:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "labels": {**PART, **(labels or {})}},
        **rest,
    }
