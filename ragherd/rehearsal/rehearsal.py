"""One rehearsal: what the steps share. Steps ask the cluster through it, and never keep state of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from ragherd.rehearsal.added import CLIENT, Keys, LoadPlan, probe_program
from ragherd.rehearsal.kubectl import Kubectl, until
from ragherd.rehearsal.load import Load, running
from ragherd.rehearsal.manifests import NAME_LABEL, REDIS, SENTINEL, SERVICE, Object, Rehearsed

ADMIN: Final = "admin"
USER: Final = "user"
LIMIT_SECONDS: Final = 1800.0
"""The longest load."""


class StepFailed(Exception):
    """A step saw something else than it expects. The message is one line with what it saw."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says about a rehearsal."""

    image: str
    second_image: str = ""
    rate: float = 10.0
    seconds: float = 30.0
    timeout: float = 10.0
    ready_seconds: float = 600.0
    """Seconds in which a workload must be ready, with pulls of images."""


@dataclass(slots=True)
class Rehearsal:
    """`node` is where the client and the load run; such a node is never drained."""

    kubectl: Kubectl
    manifests: Rehearsed
    options: Options
    keys: Keys
    labels: Mapping[str, str] = field(default_factory=dict)
    node: str = ""
    nodes: tuple[str, ...] = ()
    cordoned: set[str] = field(default_factory=set)

    # -- What is deployed ----------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The URL of the service inside the namespace."""
        name, port = self.manifests.ports["http"]
        return f"http://{name}:{port}"

    @property
    def deployment(self) -> str:
        return f"deployment/{self.manifests.service['metadata']['name']}"

    @property
    def has_sentinels(self) -> bool:
        return self.manifests.named("StatefulSet", SENTINEL) is not None

    @property
    def has_redis(self) -> bool:
        return self.manifests.named("StatefulSet", REDIS) is not None

    def pods(self, part: str = SERVICE) -> list[Object]:
        """Returns the pods of a part that are ready and not on their way out, oldest first."""
        found = self.kubectl.items("pods", f"{NAME_LABEL}={part}")
        alive = [each for each in found if is_ready(each) and "deletionTimestamp" not in each["metadata"]]
        return sorted(alive, key=lambda each: (each["metadata"]["creationTimestamp"], each["metadata"]["name"]))

    @property
    def least_replicas(self) -> int:
        """How many pods of the service the manifests ask for."""
        autoscaler = self.manifests.named("HorizontalPodAutoscaler")
        spec = self.manifests.service["spec"] if autoscaler is None else autoscaler["spec"]
        return int(spec.get("minReplicas" if autoscaler else "replicas", 1))

    def replicas(self) -> int:
        """Returns how many pods of the service are wanted."""
        return int(self.kubectl.get(self.deployment)["spec"]["replicas"])

    # -- Changes -------------------------------------------------------------------------------------------------------

    def rolled_out(self, seconds: float | None = None) -> None:
        """Waits for the service."""
        self.kubectl.rolled_out(self.deployment, self.options.ready_seconds if seconds is None else seconds)

    def settled(self) -> None:
        """Waits until every workload is ready again, so that a step does not suffer from the one before."""
        for each in self.manifests.workloads():
            self.kubectl.rolled_out(f"{each['kind'].lower()}/{each['metadata']['name']}", self.options.ready_seconds)

    def restarted(self) -> float:
        """Restarts the pods one after another. Returns the seconds that it took."""
        began = time.monotonic()
        self.kubectl.run("rollout", "restart", self.deployment)
        self.rolled_out()
        self.gone()
        return time.monotonic() - began

    def gone(self) -> None:
        """Waits until every pod that leaves is gone."""
        until(self._nothing_leaves, self.options.ready_seconds, "pods are still on their way out")

    def _nothing_leaves(self) -> bool:
        pods = self.kubectl.items("pods", f"{NAME_LABEL}={SERVICE}")
        return not any("deletionTimestamp" in each["metadata"] for each in pods)

    def cordon(self, node: str) -> None:
        """Lets no pod go to a node until `uncordon`."""
        self.cordoned.add(node)
        self.kubectl.run("cordon", node)

    def uncordon(self) -> None:
        """Lets pods go to the nodes again. Raises `KubectlError`."""
        for node in sorted(self.cordoned):
            self.kubectl.run("uncordon", node)
            self.cordoned.discard(node)

    @contextmanager
    def load(self, what: str) -> Iterator[Load]:
        """Runs a load during the body."""
        options = self.options
        plan = LoadPlan(f"load-{what}", options.rate, LIMIT_SECONDS, options.timeout)
        with running(self.kubectl, plan, options.image, self.node, self.address, options.seconds) as load:
            yield load

    # -- Requests from inside the cluster ------------------------------------------------------------------------------

    def url(self, pod: Object, path: str) -> str:
        """Returns a URL of one replica."""
        address = str(pod["status"]["podIP"])
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{container_port(pod)}{path}"

    def request(self, pod: Object, method: str, path: str, body: Any = None, *, role: str = USER) -> dict[str, Any]:
        """Returns a request for `send` and `spread` of the probe."""
        key = self.keys.admin if role == ADMIN else self.keys.user
        return {
            "method": method,
            "url": self.url(pod, path),
            "headers": {"Authorization": f"Bearer {key}"},
            **({} if body is None else {"body": body}),
        }

    def send(self, *requests: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Sends requests one after another from the client's pod."""
        found: list[dict[str, Any]] = self.probe({"do": "send", "requests": requests})
        return found

    def probe(self, job: Mapping[str, Any], pod: str = CLIENT) -> Any:
        """Runs the probe in a pod, and returns its result."""
        return json.loads(self.kubectl.execute(pod, "python", "-c", probe_program(), text=json.dumps(job)))

    def redis(self, *command: str, pod: str | None = None) -> str:
        """Runs `redis-cli` in a pod of Redis, and returns what it printed."""
        name = pod or str(self.pods(REDIS)[0]["metadata"]["name"])
        line = 'REDISCLI_AUTH=$(cat /run/redis/password) exec redis-cli "$@"'
        return self.kubectl.execute(name, "sh", "-c", line, "redis-cli", *command)

    def named_primary(self) -> str:
        """Returns the pod that a Sentinel names as Redis's primary, or ''."""
        sentinels = self.pods(SENTINEL)
        if not sentinels:
            raise StepFailed("no Sentinel is ready")
        ask = ("redis-cli", "-p", "26379", "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return self.kubectl.execute(names(sentinels)[0], *ask).partition(".")[0].strip()

    def primary(self) -> str:
        """Returns the name of the pod that is Redis's primary."""
        roles = {
            name: self.redis("ROLE", pod=name).split("\n", 1)[0]
            for name in (str(each["metadata"]["name"]) for each in self.pods(REDIS))
        }
        primaries = [name for name, role in roles.items() if role.strip() == "master"]
        if len(primaries) != 1:
            raise StepFailed(f"Redis has {len(primaries)} primaries: {roles}")
        return primaries[0]


def is_ready(pod: Object) -> bool:
    """Returns whether a pod is ready for requests."""
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def container_port(pod: Object) -> int:
    """Returns the port of the API in a pod of the service."""
    ports = [port for one in pod["spec"]["containers"] for port in one.get("ports", [])]
    return int(next(port["containerPort"] for port in ports if port.get("name") == "http"))


def names(pods: Sequence[Object]) -> list[str]:
    """Returns the names of pods."""
    return [str(each["metadata"]["name"]) for each in pods]
