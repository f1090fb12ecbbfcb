"""`ragherd dev --check`: a question, its paraphrase, and the proof that the second came from the first's entry.

An entry of an earlier run proves nothing. So the question is asked with `no-cache`, each run asks with a seed of its
own (options are part of a cache entry's scope), and the hit may not be older than this run's answer.

What `ragherd dev` prints once everything runs: what was started, where it is, and how to try it.
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
from urllib.parse import urlsplit, urlunsplit

import httpx
import typer

from api import __version__
from api.embedded.model_process import STAND_IN
from api.embedded.stack import Stack
from api.settings import Settings

QUESTION = "What does the circuit breaker do when Ollama fails?"


def summary(stack: Stack, settings: Settings) -> str:
    """Plain text of a dozen lines; the headline is bold on a terminal."""
    where = stack.addresses
    headline = f"Ragherd {__version__} answers on {where.url} with {stack.workers} worker(s)"
    return "\n".join(
        [
            "",
            typer.style(headline, bold=True),
            f"  Redis    {_redis(stack, settings)}",
            f"  Model    {_model(stack, settings)}",
            f"  Metrics  {where.metrics_url}",
            f"  API      {where.url}/docs",
            f"  Logs     {stack.logs}/service.log (and what else was started here, beside it)",
            "",
            "Try it, then ask the same in other words:",
            f"  {_curl(where.url, settings)}",
            "",
            "Ctrl-C stops all of it.",
        ]
    )


def _redis(stack: Stack, settings: Settings) -> str:
    if stack.redis is None:
        return f"your own: {without_password(settings.redis.url)}"
    return f"embedded, started here; look into it with: redis-cli -p {stack.redis.port}"


def _model(stack: Stack, settings: Settings) -> str:
    if stack.model_server is None:
        return f"{stack.language_model} on your Ollama: {settings.ollama.ollama_base_url}"
    return f"{stack.language_model} on {STAND_IN}: {stack.model_server.url}"


def _curl(url: str, settings: Settings) -> str:
    key = " -H 'authorization: Bearer ONE-OF-YOUR-API-KEYS'" if settings.access.api_keys else ""
    return f"curl -s {url}/query -H 'content-type: application/json'{key} -d '{{\"question\": \"{QUESTION}\"}}'"


def without_password(url: str) -> str:
    """A URL that may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


PARAPHRASE = "What happens at the circuit breaker when Ollama fails?"
"""Cosine 0.977 to the question under MiniLM: well over the default threshold of 0.92."""

_METRICS = ("/api/circuit-breaker/metrics", "/api/connection-pool/metrics", "/api/semantic-cache/metrics")
_ATTEMPTS = 20
_AT_ONCE = 4
_ANSWER_TIMEOUT = 300.0

Report = Callable[[str], None]


class CheckFailed(Exception):
    """Something did not answer as it should: one line that says what."""


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """One question's response."""

    question: str
    worker: str
    seconds: float
    body: dict[str, Any]

    @property
    def cache(self) -> dict[str, Any]:
        """The cache's part in the answer."""
        cache: dict[str, Any] = self.body["cache"]
        return cache

    def described(self) -> str:
        """Three lines: question, answer, how."""
        cache, answer = self.cache, textwrap.shorten(self.body["answer"], 100, placeholder=" ...")
        kind = f" ({cache['kind']}, similarity {cache['similarity']:.3f})" if cache["kind"] else ""
        how = f"cache {cache['status']}{kind}, {self.seconds * 1000:.1f} ms, worker {self.worker}"
        return f"  Question: {self.question}\n  Answer:   {answer}\n  How:      {how}"


def run_self_check(stack: Stack, settings: Settings, report: Report, *, grounded: bool = False) -> None:
    """Tells `report` what it sees. `grounded`: documents are stored that answer the question.

    Raises `CheckFailed`, or `ChildEnded` where a process's end was the reason.
    """
    try:
        with _client(stack, settings) as client:
            _check_endpoints(client, stack.addresses.metrics_url)
            report("Check: health and metrics answer")
            _check_paraphrase(client, stack, report, grounded)
    except httpx.HTTPError as error:
        stack.require_running()
        raise CheckFailed(f"the service did not answer: {error or type(error).__name__}") from None
    except CheckFailed:
        stack.require_running()
        raise


@contextmanager
def _client(stack: Stack, settings: Settings) -> Iterator[httpx.Client]:
    """Without keep-alive: every request may meet another worker."""
    keys = [*settings.access.admins(), *settings.access.tenants_by_key()]
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    limits = httpx.Limits(max_keepalive_connections=0)
    url, timeout = stack.addresses.url, _ANSWER_TIMEOUT
    with httpx.Client(base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=False) as client:
        yield client


def _check_endpoints(client: httpx.Client, metrics_url: str) -> None:
    health = _get(client, "/health").json()
    if health.get("database") is not True:
        raise CheckFailed(f"the service does not reach Redis: GET /health says {health}")
    for path in _METRICS:
        _get(client, path).json()
    if "ragherd_" not in _get(client, metrics_url).text:
        raise CheckFailed(f"{metrics_url} shows no metric of Ragherd")


def _check_paraphrase(client: httpx.Client, stack: Stack, report: Report, grounded: bool) -> None:
    seed, began = secrets.randbelow(2**31), time.monotonic()
    report("Check: asking a question, afresh")
    first = _ask(client, QUESTION, seed, {"Cache-Control": "no-cache"})
    report(first.described())
    if grounded:
        report(f"Check: grounded in {require_sources(first)}")
    report("Check: asking the same in other words")
    second = _ask(client, PARAPHRASE, seed)
    report(second.described())
    require_semantic_hit(second, time.monotonic() - began)
    if stack.workers > 1:
        report(_seen_from_another(client, seed, first, second))


def require_sources(asked: QueryResponse) -> str:
    """What the answer is grounded in. Raises `CheckFailed` where that is nothing."""
    titles = dict.fromkeys(source["title"] for source in asked.body["sources"])
    if not titles:
        raise CheckFailed("the answer is grounded in no document, though one answers the question")
    return ", ".join(titles)


def require_semantic_hit(asked: QueryResponse, seconds_since_first: float) -> None:
    """Raises `CheckFailed` unless the answer came from the entry that this run stored."""
    cache = asked.cache
    if cache["status"] != "hit" or cache["kind"] != "semantic":
        raise CheckFailed(f"the paraphrase was no semantic hit: its cache says {cache}")
    if cache["age_seconds"] > seconds_since_first + 1:
        raise CheckFailed(f"the paraphrase hit an entry of an earlier run: its cache says {cache}")


def _seen_from_another(client: httpx.Client, seed: int, first: QueryResponse, second: QueryResponse) -> str:
    """Asks several at once, because the system gives an idle service's connections to one worker again and again."""
    if second.worker != first.worker:
        return f"Check: answered by {first.worker}, and from its entry by another worker, {second.worker}"
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for asked in range(_AT_ONCE, _ATTEMPTS + 1, _AT_ONCE):
            for further in threads.map(lambda _: _ask(client, PARAPHRASE, seed), range(_AT_ONCE)):
                if further.worker != first.worker and further.cache["status"] == "hit":
                    return f"Check: a hit on another worker too, {further.worker} (within {asked} more requests)"
    return f"Check: {_ATTEMPTS} more requests all met the first worker, so the other one was not seen using its entry"


def _ask(client: httpx.Client, question: str, seed: int, headers: dict[str, str] | None = None) -> QueryResponse:
    body = {"question": question, "options": {"seed": seed, "num_predict": 48}}
    began = time.monotonic()
    response = client.post("/query", json=body, headers=headers)
    seconds = time.monotonic() - began
    if not response.is_success:
        raise CheckFailed(f"POST /query answered {response.status_code}: {response.text[:300]}")
    return QueryResponse(question, response.headers.get("X-Worker", "unknown"), seconds, response.json())


def _get(client: httpx.Client, url: str) -> httpx.Response:
    response = client.get(url)
    if not response.is_success:
        raise CheckFailed(f"GET {url} answered {response.status_code}: {response.text[:300]}")
    return response
