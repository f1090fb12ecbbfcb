"""Runs Debian's Prometheus and Alertmanager for tests, with the project's rules, and a webhook that notes alerts."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.gunicorn_process import free_port
from tests.support.needed_tools import need_tool
from tests.support.waiting import wait_until

RULES = Path(__file__).parents[2] / "k8s" / "components" / "monitoring" / "rules.yaml"
FASTER = 60
"""What took a minute takes a second."""
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def quick_rules() -> dict[str, Any]:
    """Returns the project's rules with every duration divided by `FASTER`."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * SECONDS[found[3]] // FASTER}s"

    rules: dict[str, Any] = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"(\[|offset )(\d+)([smhd])\b", shorter, rule["expr"])
            if "for" in rule:
                rule["for"] = re.sub(r"^()(\d+)([smhd])$", shorter, rule["for"])
    return rules


class Webhook:
    """Receives notifications. `heard` has (alert, status) in the order of their arrival."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.bodies.append(body)
                owner.heard += [(alert["labels"]["alertname"], alert["status"]) for alert in body["alerts"]]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Prints nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Webhook:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").is_success
        except httpx.HTTPError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Returns the series now: `metric` has the labels, `value` the time and the value as text."""
        return self._ask("/api/v1/query", query=expression)

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Returns the series of a time: `metric` has the labels, `values` the times and values as text."""
        return self._ask("/api/v1/query_range", query=expression, start=start, end=end, step=step)

    def sums(self, expression: str, label: str) -> dict[str, float]:
        """Returns the values of a query by one of its labels."""
        return {series["metric"][label]: float(series["value"][1]) for series in self.query(expression)}

    def firing(self) -> set[str]:
        return set(self.sums('count by (alertname) (ALERTS{alertstate="firing"})', "alertname"))

    def targets_up(self) -> int:
        return len([series for series in self.query("up") if series["value"][1] == "1"])

    def _ask(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        # A query in the form is not limited in length.
        response = self._client.post(path, data=parameters)
        assert response.status_code == 200, f"{response.text}: {parameters}"
        data = response.json()
        assert not data.get("warnings"), data
        found: list[dict[str, Any]] = data["data"]["result"]
        return found


@contextmanager
def running_prometheus(
    folder: Path, targets: Mapping[str, str], rules: Mapping[str, Any] | None = None, webhook: str | None = None
) -> Iterator[Prometheus]:
    """Scrapes the targets, addresses by pod, every second. Sends alerts through an Alertmanager to the webhook."""
    need_tool("prometheus")
    port, alerts = free_port(), free_port()
    labelled = [
        {"targets": [target], "labels": {"namespace": "ragherd", "pod": pod}} for pod, target in targets.items()
    ]
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": "ragherd", "static_configs": labelled}],
        "rule_files": ["rules.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alerts}"]}]}]},
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules or {"groups": []})))
    commands = [
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'series'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
    ]
    if webhook is not None:
        commands.append(_alertmanager(folder, alerts, webhook))
    with _processes(folder, commands):
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(prometheus.is_ready, timeout=30)
        wait_until(lambda: prometheus.targets_up() == len(targets), timeout=30)
        yield prometheus


def _alertmanager(folder: Path, port: str, webhook: str) -> list[str]:
    program = need_tool("prometheus-alertmanager")
    route = {"receiver": "test", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s"}
    receiver = {"name": "test", "webhook_configs": [{"url": webhook, "send_resolved": True}]}
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump({"route": route, "receivers": [receiver]}))
    return [
        program,
        f"--config.file={folder / 'alertmanager.yaml'}",
        f"--storage.path={folder / 'notifications'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]


@contextmanager
def _processes(folder: Path, commands: Sequence[Sequence[str]]) -> Iterator[None]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=log))
        yield
    finally:
        for process in started:
            process.kill()
            process.wait(10)
