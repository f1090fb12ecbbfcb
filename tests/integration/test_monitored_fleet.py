"""A real Prometheus watches two replicas: its figures, its alerts at a webhook, the dashboards, and the runbooks.

The fleet answers 10,000 questions while a worker is killed. Then Redis fails and recovers, and then Ollama. The tests
judge what Prometheus has scraped.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis

from api.embedded.redis_server import EmbeddedRedis
from scripts.draw_grafana import shown
from scripts.generate_monitoring import MONITORING
from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.needed_tools import need_tool
from tests.support.prometheus_process import Prometheus, Webhook, quick_rules, running_prometheus
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

REQUESTS = 10_000
RATE = 700
"""Most requests per second. A killed worker loses its counts of 250 ms: of a much faster fleet, that is over 1 %."""
CLIENTS = 12
QUESTIONS = 60
RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks.md"
SETTINGS = {
    "WORKERS": "2",
    "REDIS_TIMEOUT": "1",  # a busy test machine is no lost Redis
    "REDIS_REQUEST_BUDGET": "2",
    "CIRCUIT_BREAKER_TIMEOUT": "2",
    "CIRCUIT_BREAKER_TIMEOUT_MAX": "2",
    "SEMANTIC_CACHE_SHADOW_RATE": "0.01",
}


@dataclass
class Asked:
    """What the clients saw: answers by cache status, and requests without an answer."""

    seen: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0


@dataclass
class Fleet:
    """The watched fleet, and what happened to it."""

    replicas: list[Gunicorn]
    ollama: StubProcess
    prometheus: Prometheus
    webhook: Webhook
    redis: EmbeddedRedis
    began: float
    asked: Asked = field(default_factory=Asked)
    counted: Counter[str] = field(default_factory=Counter)
    """Prometheus's sums by cache status, before the outage."""
    history: Counter[str] = field(default_factory=Counter)
    """The same of the history."""


class Caller:
    """A client with one connection, which it opens again if it breaks."""

    def __init__(self, gunicorn: Gunicorn) -> None:
        host, _, port = gunicorn.url().removeprefix("http://").partition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=30)

    def ask(self, question: str) -> tuple[int, dict[str, Any], str] | None:
        """Returns status, body and worker; None if the connection broke."""
        body = json.dumps({"question": question})
        try:
            self._connection.request("POST", "/query", body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            return response.status, json.loads(response.read()), response.headers["X-Worker"]
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return None

    def close(self) -> None:
        self._connection.close()


def ask_all(replicas: list[Gunicorn], asked: Asked) -> None:
    """Asks all questions from several clients, in time. In the middle it kills a worker that has answered some."""
    numbers, lock, failures = count(), threading.Lock(), list[str]()
    began = time.monotonic()
    workers: Counter[int] = Counter()

    def kill() -> None:
        of_first = replicas[0].workers() & workers.keys()
        os.kill(min(of_first, key=workers.__getitem__), signal.SIGKILL)

    def go_on(client: int) -> None:
        caller = Caller(replicas[client % 2])
        for number in iter(lambda: next(numbers), None):
            if number >= REQUESTS:
                break
            if number == REQUESTS // 2:
                kill()
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))
            answer = caller.ask(f"What is the answer to question {number % QUESTIONS}?")
            with lock:
                if answer is None:
                    asked.unanswered += 1
                    continue
                status, body, worker = answer
                workers[int(worker.split("-")[-2])] += 1
                if status == 200:
                    asked.seen[body["cache"]["status"]] += 1
                else:
                    failures.append(f"{status} {body}")
        caller.close()

    threads = [threading.Thread(target=go_on, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]


def counts(fleet: Fleet) -> bool:
    """Reads the sums. Returns whether they hold all answers; the history may lack those of a killed worker."""
    sums = fleet.prometheus.sums("sum by (status) (ragherd_queries_total)", "status")
    fleet.counted = +Counter({status: int(value) for status, value in sums.items()})
    points = fleet.replicas[1].get("/api/history").json()["points"]
    fleet.history = +sum((Counter(point.get("queries", {})) for point in points), Counter())
    wanted = fleet.asked.seen.total()
    return fleet.counted.total() >= wanted and fleet.history.total() >= 0.99 * wanted


def state(fleet: Fleet) -> str:
    return str(fleet.replicas[0].get("/api/circuit-breaker/metrics").json()["state"])


def has_outage(fleet: Fleet, alert: str, fail: Callable[[], None], recover: Callable[[], None]) -> None:
    """Lets something fail until the alert is at the webhook, then lets it recover until the alert is resolved."""
    caller, numbers = Caller(fleet.replicas[1]), count()

    def heard(status: str) -> bool:
        caller.ask(f"What is new today, number {next(numbers)}?")
        return (alert, status) in fleet.webhook.heard

    fail()
    wait_until(lambda: heard("firing"), timeout=30, interval=0.1)
    recover()
    wait_until(lambda: heard("resolved"), timeout=30, interval=0.1)
    caller.close()


def has_outages(fleet: Fleet) -> None:
    """Loses Redis, with all its data, and then Ollama. Afterwards all is well again."""
    has_outage(fleet, "RagherdRedisDown", fleet.redis.kill, fleet.redis.start)
    ollama = fleet.ollama
    has_outage(fleet, "RagherdBreakerOpen", partial(ollama.behaviour, "refuse"), partial(ollama.behaviour, "ok"))
    wait_until(lambda: state(fleet) == "CLOSED", timeout=20)
    with sync_redis.Redis.from_url(fleet.redis.url) as client:
        wait_until(lambda: client.get("rag:history:keeper"), timeout=30)


@pytest.fixture(scope="module")
def fleet(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Runs the whole story once."""
    for tool in ("prometheus", "prometheus-alertmanager"):
        need_tool(tool)
    redis_server.start()
    with sync_redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    with ExitStack() as stack:
        ollama = stack.enter_context(stub_process())
        begin = stack.enter_context(gunicorns("api.asgi:app", tmp_path_factory.mktemp("fleet")))
        shared = {"REDIS_URL": redis_server.url, "OLLAMA_BASE_URL": ollama.base_url, **SETTINGS}
        ports = [free_port(), free_port()]
        replicas = [begin(**shared, METRICS_PORT=port) for port in ports]
        webhook = stack.enter_context(Webhook())
        targets = {f"ragherd-{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports)}
        began = time.time()
        watching = running_prometheus(tmp_path_factory.mktemp("prometheus"), targets, quick_rules(), webhook.url)
        fleet = Fleet(replicas, ollama, stack.enter_context(watching), webhook, redis_server, began)
        ask_all(replicas, fleet.asked)
        wait_until(lambda: counts(fleet), timeout=30, interval=0.5)
        has_outages(fleet)
        yield fleet


def test_prometheus_and_the_client_count_the_same_though_a_worker_is_killed(fleet: Fleet) -> None:
    asked = fleet.asked
    assert asked.seen.total() + asked.unanswered == REQUESTS
    assert asked.unanswered <= CLIENTS
    assert asked.seen["hit"] > 0.9 * REQUESTS
    for status, number in asked.seen.items():
        # An answer may have been counted and not sent when the worker was killed.
        assert number <= fleet.counted[status] <= number + asked.unanswered, fleet
    assert fleet.counted.total() <= REQUESTS
    [started] = fleet.prometheus.query("sum(ragherd_workers_started_total)")
    assert started["value"][1] == "5"


def test_the_history_agrees_with_prometheus_and_the_client(fleet: Fleet) -> None:
    for status in ("hit", "miss"):
        for other in (fleet.asked.seen, fleet.counted):
            assert fleet.history[status] == pytest.approx(other[status], rel=0.01, abs=2), fleet


def test_an_outage_is_at_the_webhook_and_its_end_too(fleet: Fleet) -> None:
    heard = fleet.webhook.heard
    for name in ("RagherdRedisDown", "RagherdBreakerOpen"):
        assert heard.index((name, "firing")) < heard.index((name, "resolved"))
    alert = next(
        alert
        for body in fleet.webhook.bodies
        for alert in body["alerts"]
        if (alert["labels"]["alertname"], alert["labels"].get("name")) == ("RagherdBreakerOpen", "ollama")
    )
    assert alert["labels"] == {
        "alertname": "RagherdBreakerOpen",
        "name": "ollama",
        "namespace": "ragherd",
        "severity": "warning",
    }
    assert alert["annotations"]["summary"] == "The circuit breaker ollama is open"
    assert alert["annotations"]["runbook_url"].endswith("/runbooks/#ragherdbreakeropen")


def test_no_alert_is_left_after_the_outage(fleet: Fleet) -> None:
    # Alerts whose windows, even the short ones of the test, still hold what happened.
    lasting = {"RagherdErrorBudgetFast", "RagherdErrorBudgetSlow", "RagherdHitRateLow", "RagherdWorkersCrash"}
    wait_until(lambda: fleet.prometheus.firing() <= {*lasting, *EXPECTED}, timeout=60)


EXPECTED = {"RagherdRedisWarning", "RagherdHistoryGap"}
"""The tests' Redis keeps nothing on a disk. With windows of seconds, a minute without a new minute looks like a gap."""


def test_every_rule_of_the_project_can_be_evaluated(fleet: Fleet) -> None:
    rules = fleet.replicas[0].client.get(f"{fleet.prometheus.url}/api/v1/rules").json()["data"]["groups"]
    states = {rule["name"]: rule.get("lastError", "") for group in rules for rule in group["rules"]}
    assert len(states) > 30
    assert {name: error for name, error in states.items() if error} == {}


def boards() -> list[Path]:
    return sorted((MONITORING / "dashboards").glob("*.json"))


def filled(expression: str) -> str:
    values = {"$__rate_interval": "10s", "$namespace": "ragherd", "$job": "ragherd|other", "$instance": ".*"}
    for name, value in values.items():
        expression = expression.replace(name, value)
    return expression.replace("[30m]", "[30s]")


@pytest.mark.parametrize("path", boards(), ids=lambda path: path.stem)
def test_no_panel_of_a_dashboard_is_empty(fleet: Fleet, path: Path) -> None:
    empty = []
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel.get("targets", ()):
            ask = partial(fleet.prometheus.query_range, filled(target["expr"]), fleet.began)
            series = ask(time.time(), 1)
            numbers = [float(value) for one in series for _, value in one["values"]]
            if not any(math.isfinite(number) for number in numbers):
                empty.append((panel["title"], target["expr"]))
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert any(label in one["metric"] for one in series), (panel["title"], label)
    assert empty == []


@pytest.mark.parametrize("path", boards(), ids=lambda path: path.stem)
def test_the_pictures_for_the_docs_draw_every_panel(fleet: Fleet, path: Path) -> None:
    drawn = shown(fleet.prometheus, json.loads(path.read_text()), int(fleet.began))["panels"]
    panels = [panel for panel in drawn if panel["kind"] != "row"]
    assert len(panels) >= 12
    for panel in panels:
        assert panel["series"], panel["title"]
        for series in panel["series"]:
            assert len(series["values"]) == len(panel["times"])
            assert "{{" not in series["name"], panel["title"]


def runbook_commands() -> list[str]:
    """The commands of the runbooks that need no Kubernetes."""
    blocks = re.findall(r"^```sh\n(.*?)^```", RUNBOOKS.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(("curl ", "redis-cli "))))


def run_command(fleet: Fleet, line: str) -> subprocess.CompletedProcess[str]:
    port = int(fleet.replicas[0].url().rpartition(":")[2])
    metrics = int(fleet.prometheus.query('up{pod="ragherd-0"}')[0]["metric"]["instance"].rpartition(":")[2])
    local = line.replace("localhost:8001", f"127.0.0.1:{port}").replace("localhost:9090", f"127.0.0.1:{metrics}")
    local = re.sub(r"^redis-cli ", f"redis-cli -u {shlex.quote(fleet.redis.url)} ", local)
    local = re.sub(r"^curl -s ", "curl -s --fail-with-body --noproxy '*' ", local)
    return subprocess.run(["bash", "-o", "pipefail", "-c", local], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("line", runbook_commands())
def test_a_command_of_the_runbooks_works_and_prints_something(fleet: Fleet, line: str) -> None:
    need_tool("redis-cli" if line.startswith("redis-cli") else "curl")
    done = run_command(fleet, line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERR" not in done.stdout
    assert done.stdout.strip() or "SLOWLOG" in line
