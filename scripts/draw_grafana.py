"""Draws the dashboards for the docs, docs/images/grafana-*.png, from the real results of their queries.

    .venv/bin/python -m scripts.draw_grafana

Starts two replicas with the stub of Ollama, and a Prometheus that scrapes them. Asks for some minutes, with an outage
of Ollama. The pictures are drawn with uPlot and Chromium, and resemble Grafana's own: Grafana is not involved. Needs
Chromium, Prometheus and Alertmanager (scripts/install-test-tools).
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from playwright.sync_api import sync_playwright

from api.embedded.redis_server import embedded_redis
from scripts.generate_monitoring import MONITORING
from tests.stub_ollama import StubProcess, stub_process
from tests.support.gunicorn_process import Gunicorn, free_port, gunicorns
from tests.support.prometheus_process import Prometheus, quick_rules, running_prometheus

ROOT: Final = Path(__file__).parents[1]
IMAGES: Final = ROOT / "docs" / "images"
PAGE: Final = Path(__file__).parent / "lib" / "grafana_picture.html"
UPLOT: Final = ROOT / "api" / "endpoints" / "live_page"
SECONDS: Final = 150
OUTAGE: Final = (80, 105)
"""Seconds after the start."""
CLIENTS: Final = 6
STEP: Final = 2
VARIABLES: Final = {"$__rate_interval": "15s", "$namespace": ".*", "$job": ".*", "$instance": ".*"}
SETTINGS: Final = {
    "WORKERS": "2",
    "CIRCUIT_BREAKER_TIMEOUT": "5",
    "CIRCUIT_BREAKER_TIMEOUT_MAX": "10",
    "SEMANTIC_CACHE_SHADOW_RATE": "0.1",
    "SEMANTIC_CACHE_SHADOW_PER_MINUTE": "600",
    "SEMANTIC_CACHE_STALE_TTL": "1",
}
SPEED: Final = {"delay": 0.15, "pace": 0.01, "path": "/api/chat"}
"""Of the stub, in seconds."""
SUBJECTS: Final = (
    "the warranty",
    "the canteen",
    "the invoice",
    "the parking permit",
    "a new laptop",
    "the travel budget",
)
FORMS: Final = ("How do I get {0}?", "Who decides about {0}?", "When does {0} end?", "What does {0} cost?")


def main() -> int:
    """Watches a fleet and draws each dashboard."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("Chromium is not installed (Debian: apt install chromium)", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as folder,
        watched_fleet(Path(folder)) as (prometheus, began),
        sync_playwright() as p,
    ):
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for path in sorted((MONITORING / "dashboards").glob("*.json")):
            page = browser.new_page(viewport={"width": 1536, "height": 800})
            page.set_content(_page())
            page.evaluate("draw", shown(prometheus, json.loads(path.read_text()), began))
            picture = IMAGES / f"grafana-{path.stem}.png"
            page.screenshot(path=picture, full_page=True)
            print(picture.relative_to(ROOT))
        browser.close()
    return 0


def _page() -> str:
    text = PAGE.read_text().replace("/*UPLOT_CSS*/", (UPLOT / "uPlot.min.css").read_text())
    return text.replace("/*UPLOT_JS*/", (UPLOT / "uPlot.iife.min.js").read_text())


# -- the fleet ---------------------------------------------------------------------------------------------------------


@contextmanager
def watched_fleet(folder: Path) -> Iterator[tuple[Prometheus, int]]:
    """Yields a Prometheus that has watched a fleet through an outage, and when it began to watch."""
    with ExitStack() as stack:
        redis = stack.enter_context(embedded_redis())
        ollama = stack.enter_context(stub_process())
        ollama.behaviour("ok", **SPEED)
        begin = stack.enter_context(gunicorns("api.asgi:app", folder))
        ports = [free_port(), free_port()]
        shared = {"REDIS_URL": redis.url, "OLLAMA_BASE_URL": ollama.base_url, **SETTINGS}
        replicas = [begin(**shared, METRICS_PORT=port) for port in ports]
        targets = {f"ragherd-{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports)}
        prometheus = stack.enter_context(running_prometheus(folder, targets, _rules()))
        began = int(time.time())
        _ask_for_a_while(replicas, ollama)
        yield prometheus, began


def _rules() -> dict[str, Any]:
    """The rules with short windows, in which a minute without a new minute of the history is no gap."""
    rules = quick_rules()
    for group in rules["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert") != "RagherdHistoryGap"]
    return rules


def _ask_for_a_while(replicas: list[Gunicorn], ollama: StubProcess) -> None:
    began = time.monotonic()

    def go_on(client: int) -> None:
        choose, url = random.Random(client), replicas[client % 2].url()
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as asking:
            while time.monotonic() < began + SECONDS:
                answer = asking.post("/query", json={"question": _question(choose, time.monotonic() - began)})
                if choose.random() < 0.02 and answer.is_success:
                    vote = {"request_id": answer.json()["request_id"], "verdict": "good"}
                    asking.post("/feedback", json=vote)
                if choose.random() < 0.01:
                    text = f"Case {choose.random()}: {choose.choice(SUBJECTS)} is explained in the handbook."
                    asking.post("/documents", json={"title": "Handbook", "text": text, "source": f"book-{client}"})
                time.sleep(choose.expovariate(8))

    threads = [threading.Thread(target=go_on, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(OUTAGE[0])
    ollama.behaviour("refuse")
    time.sleep(OUTAGE[1] - OUTAGE[0])
    ollama.behaviour("ok", **SPEED)
    for thread in threads:
        thread.join()


def _question(choose: random.Random, seconds: float) -> str:
    """Mostly known questions, some of them reworded; one in eight is new and differs from others in a number."""
    form, subject = choose.choice(FORMS), choose.choice(SUBJECTS)
    if choose.random() < 0.125:
        return f"{form.format(subject)} I ask about case {int(seconds * 10)}."
    question = form.format(subject)
    return f"Please, {question[0].lower()}{question[1:]}" if choose.random() < 0.2 else question


# -- the results -------------------------------------------------------------------------------------------------------


def shown(prometheus: Prometheus, board: dict[str, Any], began: int) -> dict[str, Any]:
    """Returns what the page draws of a dashboard."""
    end = int(time.time())
    panels = [_shown_panel(prometheus, panel, began, end) for panel in board["panels"]]
    return {"title": board["title"], "description": board["description"], "panels": panels}


def _shown_panel(prometheus: Prometheus, panel: dict[str, Any], began: int, end: int) -> dict[str, Any]:
    found = {"title": panel["title"], "kind": panel["type"], "place": panel["gridPos"]}
    if panel["type"] == "row":
        return found
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults.get("thresholds", {}).get("steps", [{"value": None, "color": "green"}])
    mapped = [mapping["options"] for mapping in defaults.get("mappings", ())]
    times = [began + number * STEP for number in range((end - began) // STEP)]
    series = [one for target in panel["targets"] for one in _series(prometheus, target, times)]
    return {
        **found,
        "unit": defaults["unit"],
        "stacked": "stacking" in defaults.get("custom", {}),
        "steps": [(step["value"], step["color"]) for step in steps],
        "limits": [step["value"] for step in steps[1:] if "custom" in defaults],
        "names": mapped[0] if mapped else {},
        "times": times,
        "series": series,
    }


def _series(prometheus: Prometheus, target: dict[str, Any], times: list[int]) -> Iterator[dict[str, Any]]:
    expression = target["expr"].replace("[30m]", "[30s]")  # the rules of the tests have short windows, too
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    for found in prometheus.query_range(expression, times[0], times[-1], STEP):
        legend = target["legendFormat"]
        for label, value in found["metric"].items():
            legend = legend.replace("{{" + label + "}}", value)
        values = {at: float(value) for at, value in found["values"]}
        row = [values.get(at) for at in times]
        yield {"name": legend, "values": [None if value is None or math.isnan(value) else value for value in row]}


if __name__ == "__main__":
    sys.exit(main())
