"""`ragherd dev --check`: asks a question and its paraphrase, and checks that the second is a hit on the first's entry.

An entry of an earlier run would prove nothing. The first question is therefore asked with `no-cache`, each run uses its
own seed (options are part of a cache entry's scope), and the hit must not be older than this run's answer.

`summary` is what `ragherd dev` prints once everything runs.
"""

from __future__ import annotations

import secrets
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import typer

from api import __version__
from api.embedded.model_process import STAND_IN
from api.embedded.stack import Stack
from api.settings import Settings
from ragherd.config import without_password

QUESTION = "What does the circuit breaker do when Ollama fails?"


def summary(stack: Stack, settings: Settings) -> str:
    """Returns about a dozen lines of plain text. The headline is bold on a terminal."""
    where = stack.addresses
    headline = f"Ragherd {__version__} is running at {where.url} with {stack.workers} worker(s)"
    return "\n".join(
        [
            "",
            typer.style(headline, bold=True),
            f"  Redis    {_redis(stack, settings)}",
            f"  Model    {_model(stack, settings)}",
            f"  Metrics  {where.metrics_url}",
            f"  API      {where.url}/docs",
            f"  Logs     {stack.logs}/service.log (the other logs are next to it)",
            "",
            "Try it, then ask the same question in other words:",
            f"  {_curl(where.url, settings)}",
            "",
            "Press Ctrl-C to stop everything.",
        ]
    )


def _redis(stack: Stack, settings: Settings) -> str:
    if stack.redis is None:
        return f"your own: {without_password(settings.redis.url)}"
    return f"embedded; inspect it with: redis-cli -p {stack.redis.port}"


def _model(stack: Stack, settings: Settings) -> str:
    if stack.model_server is None:
        return f"{stack.language_model} on your Ollama: {settings.ollama.ollama_base_url}"
    return f"{stack.language_model} on {STAND_IN}: {stack.model_server.url}"


def _curl(url: str, settings: Settings) -> str:
    key = " -H 'authorization: Bearer ONE-OF-YOUR-API-KEYS'" if settings.access.is_keyed else ""
    return f"curl -s {url}/query -H 'content-type: application/json'{key} -d '{{\"question\": \"{QUESTION}\"}}'"


PARAPHRASE = "What happens at the circuit breaker when Ollama fails?"
"""Its cosine to the question is 0.975 with MiniLM, well above the default threshold of 0.92."""

_METRICS = ("/api/circuit-breaker/metrics", "/api/connection-pool/metrics", "/api/semantic-cache/metrics")
_ATTEMPTS = 20
_CONCURRENCY = 4
_ANSWER_TIMEOUT = 300.0

Report = Callable[[str], None]


class CheckFailed(Exception):
    """A check failed. The message is one line with the reason."""


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """The response to one question."""

    question: str
    worker: str
    seconds: float
    body: dict[str, Any]

    @property
    def cache(self) -> dict[str, Any]:
        """The `cache` object of the response."""
        cache: dict[str, Any] = self.body["cache"]
        return cache

    def describe(self) -> str:
        """Returns three lines: the question, the answer and its origin."""
        cache, answer = self.cache, textwrap.shorten(self.body["answer"], 100, placeholder=" ...")
        kind = f" ({cache['kind']}, similarity {cache['similarity']:.3f})" if cache["kind"] else ""
        how = f"cache {cache['status']}{kind}, {self.seconds * 1000:.1f} ms, worker {self.worker}"
        return f"  Question: {self.question}\n  Answer:   {answer}\n  How:      {how}"


def run_self_check(stack: Stack, settings: Settings, report: Report, *, grounded: bool = False) -> None:
    """Passes its findings to `report`. With `grounded`, stored documents answer the question.

    Raises `CheckFailed`, or `ChildEnded` if the reason was the end of a process.
    """
    try:
        with _client(stack, settings) as client:
            _check_endpoints(client, stack.addresses.metrics_url)
            report("Check: health and metrics respond")
            _check_paraphrase(client, stack, report, grounded)
    except httpx.HTTPError as error:
        stack.require_running()
        raise CheckFailed(f"the service did not answer: {error or type(error).__name__}") from None
    except CheckFailed:
        stack.require_running()
        raise


@contextmanager
def _client(stack: Stack, settings: Settings) -> Iterator[httpx.Client]:
    """Disables keep-alive, so that each request may reach another worker."""
    keys = [*settings.access.admins(), *settings.access.tenants_by_key()]
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    limits = httpx.Limits(max_keepalive_connections=0)
    url, timeout = stack.addresses.url, _ANSWER_TIMEOUT
    with httpx.Client(base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=False) as client:
        yield client


def _check_endpoints(client: httpx.Client, metrics_url: str) -> None:
    health = _get(client, "/health").json()
    if health.get("database") is not True:
        raise CheckFailed(f"the service cannot reach Redis: GET /health returned {health}")
    for path in _METRICS:
        _get(client, path).json()
    if "ragherd_" not in _get(client, metrics_url).text:
        raise CheckFailed(f"{metrics_url} has no metrics of Ragherd")


def _check_paraphrase(client: httpx.Client, stack: Stack, report: Report, grounded: bool) -> None:
    seed, began = secrets.randbelow(2**31), time.monotonic()
    report("Check: asking a question without the cache")
    first = _ask(client, QUESTION, seed, {"Cache-Control": "no-cache"})
    report(first.describe())
    if grounded:
        report(f"Check: sources: {require_sources(first)}")
    report("Check: asking the same question in other words")
    second = _ask(client, PARAPHRASE, seed)
    report(second.describe())
    require_semantic_hit(second, time.monotonic() - began)
    if stack.workers > 1:
        report(_seen_from_another(client, seed, first, second))


def require_sources(response: QueryResponse) -> str:
    """Returns the titles of the answer's sources. Raises `CheckFailed` without any."""
    titles = dict.fromkeys(source["title"] for source in response.body["sources"])
    if not titles:
        raise CheckFailed("the answer has no sources, but a stored document answers the question")
    return ", ".join(titles)


def require_semantic_hit(response: QueryResponse, seconds_since_first: float) -> None:
    """Raises `CheckFailed` unless the answer came from the entry that this run stored."""
    cache = response.cache
    if cache["status"] != "hit" or cache["kind"] != "semantic":
        raise CheckFailed(f"the paraphrase was not a semantic hit: its `cache` is {cache}")
    if cache["age_seconds"] > seconds_since_first + 1:
        raise CheckFailed(f"the paraphrase hit an entry of an earlier run: its `cache` is {cache}")


def _seen_from_another(client: httpx.Client, seed: int, first: QueryResponse, second: QueryResponse) -> str:
    """Asks several times at once, because the system tends to give an idle service's connections to the same worker."""
    if second.worker != first.worker:
        return f"Check: {first.worker} generated the answer, and {second.worker} answered from its entry"
    with ThreadPoolExecutor(_CONCURRENCY) as threads:
        for requests in range(_CONCURRENCY, _ATTEMPTS + 1, _CONCURRENCY):
            for further in threads.map(lambda _: _ask(client, PARAPHRASE, seed), range(_CONCURRENCY)):
                if further.worker != first.worker and further.cache["status"] == "hit":
                    return f"Check: also a hit on another worker, {further.worker} (within {requests} more requests)"
    return f"Check: {_ATTEMPTS} more requests all reached the first worker, so sharing was not observed"


def _ask(client: httpx.Client, question: str, seed: int, headers: dict[str, str] | None = None) -> QueryResponse:
    body = {"question": question, "options": {"seed": seed, "num_predict": 48}}
    began = time.monotonic()
    response = client.post("/query", json=body, headers=headers)
    seconds = time.monotonic() - began
    if not response.is_success:
        raise CheckFailed(f"POST /query returned {response.status_code}: {response.text[:300]}")
    return QueryResponse(question, response.headers.get("X-Worker", "unknown"), seconds, response.json())


def _get(client: httpx.Client, url: str) -> httpx.Response:
    response = client.get(url)
    if not response.is_success:
        raise CheckFailed(f"GET {url} returned {response.status_code}: {response.text[:300]}")
    return response
