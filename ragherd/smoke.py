"""`ragherd smoke`: asks a running service a few questions, and checks that the fleet does what it should.

The questions have a seed that no other question has. Options are part of the scope of a cached answer, so a run never
gets an answer of an earlier run or of a user, and no user gets one of a run.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer

from ragherd.cached_answers import CACHE_PATH, WARM_PATH, waited_for
from ragherd.checks import Check, report
from ragherd.exits import FAILED, UNREACHABLE
from ragherd.service_client import AsJson, RequestRefused, ServiceClient, Unreachable, Url, opened

ANSWER_SECONDS: Final = 300.0
QUESTION: Final = "How do I reset my password?"
PARAPHRASE: Final = "My password, how do I reset?"
OTHER: Final = "What is the capital of France?"
ANSWER: Final = "Open the settings and choose a new password."
"""What --without-ollama stores as the answer."""
STORE_SECONDS: Final = 30.0
STORED: Final = "stored answer"
STREAM: Final = "stream"
CACHED: Final = frozenset({STORED, "same question", "paraphrase", "isolation"})
"""Checks that need a cached answer."""
SHAPES: Final[Mapping[str, Mapping[str, type | tuple[type, ...]]]] = {
    "circuit-breaker": {
        "state": str,
        "failure_count": int,
        "success_count": int,
        "total_calls": int,
        "rejected_calls": int,
        "last_failure_time": (str, type(None)),
        "opened_at": (str, type(None)),
        "slow_calls": int,
        "epoch": int,
        "failure_rate": (int, float),
        "retry_after_seconds": int,
        "forced": (str, type(None)),
        "store": str,
        "breakers": dict,
    },
    "connection-pool": {
        "pool_connections": int,
        "pool_maxsize": int,
        "max_keepalive_connections": int,
        "active": int,
        "idle": int,
        "keepalive_expiry": (int, float),
        "waiting": int,
        "requests": int,
        "connections_opened": int,
        "connections_reused": int,
        "reuse_rate": (int, float),
        "pool_timeouts": int,
        "endpoints": dict,
        "workers": dict,
    },
    "semantic-cache": {
        "enabled": bool,
        "hits": int,
        "misses": int,
        "hit_rate": (int, float),
        "cache_size": int,
        "max_cache_size": int,
        "exact_hits": int,
        "semantic_hits": int,
        "stale_hits": int,
        "coalesced": int,
        "stores": int,
        "evictions": int,
        "guard_rejections": int,
        "similarity_threshold": (int, float),
        "ttl_seconds": (int, float),
        "embedder": (dict, type(None)),
        "false_hit_rate": dict,
    },
}
"""The fields of the three metrics endpoints that others rely on."""


class Failed(Exception):
    """A check failed. The message is one line with what was found."""


@dataclass(slots=True)
class SmokeRun:
    """One run against one service. `tenant` is None where the key fixes the tenant."""

    service: ServiceClient
    without_ollama: bool
    seed: int = field(default_factory=lambda: secrets.randbelow(2**31))
    tenant: str | None = None
    entry: str | None = None
    unreachable: bool = False
    cache: Mapping[str, Any] = field(default_factory=dict)
    policy: str = ""

    def __post_init__(self) -> None:
        self.tenant = f"smoke-{self.seed}"

    def body(self, question: str, tenant: str | None = None) -> dict[str, Any]:
        """Returns the body of POST /query in this run's scope."""
        named = tenant or self.tenant
        options = {"seed": self.seed, "num_predict": 48}
        return {"question": question, "top_k": 0, "options": options, **({"tenant": named} if named else {})}

    def ask(self, question: str, tenant: str | None = None, **headers: str) -> Any:
        """Returns the answer. Raises `RequestRefused`."""
        return self.service.send("POST", "/query", json=self.body(question, tenant), headers=headers)

    def checks(self) -> Iterator[Check]:
        """Runs every check in turn. A check that fails does not stop the others, unless the service is gone."""
        steps: dict[str, Callable[[], str]] = {
            "health": self.health,
            "readiness": self.readiness,
            **{f"{name} metrics": lambda name=name: self.shape(name) for name in SHAPES},  # type: ignore[misc]
            "prometheus": self.prometheus,
            **({STORED: self.stored} if self.without_ollama else {"question": self.question}),
            "same question": self.same_question,
            "paraphrase": self.paraphrase,
            STREAM: self.stream,
            "isolation": self.isolation,
            **({"outage": self.outage} if self.without_ollama else {}),
        }
        for name, step in steps.items():
            if why := self.skipped(name):
                yield Check(name, True, f"not checked: {why}")
                continue
            try:
                yield Check(name, True, step())
            except (Failed, RequestRefused) as error:
                yield Check(name, False, str(error))
            except TypeError:
                yield Check(name, False, "the answer has another shape than Ragherd's")
            except Unreachable as error:
                self.unreachable = True
                yield Check(name, False, str(error))
                return
        self.clean_up()

    def skipped(self, name: str) -> str:
        """Returns why a check of the cache makes no sense in this service, or ''."""
        if name not in CACHED and not (self.without_ollama and name == STREAM):
            return ""
        if not self.cache.get("enabled", True):
            return "the semantic cache is disabled"
        if self.policy == "observe":
            return "the policy observe serves no cached answer"
        embedder = self.cache.get("embedder") or {}
        return "the embedder needs Ollama" if self.without_ollama and embedder.get("kind") == "ollama" else ""

    # -- Health and metrics --------------------------------------------------------------------------------------------

    def health(self) -> str:
        found = self.service.health()
        redis, ollama = found["database"], found["ollama"]
        said = f"{found['status']}, Redis {redis}, Ollama {ollama}, breaker {found['circuit_breaker']}"
        good = found["status"] != "unhealthy" if self.without_ollama else found["status"] == "healthy" and ollama
        if not (good and redis):
            raise Failed(said)
        return f"{said}, version {found['version']}"

    def readiness(self) -> str:
        return str(self.service.get("/health/ready")["status"])

    def shape(self, name: str) -> str:
        path = f"/api/{name}/metrics"
        found = self.service.get(path)
        wrong = [field for field, kind in SHAPES[name].items() if not isinstance(found.get(field, ...), kind)]
        if wrong:
            raise Failed(f"{path} lacks {', '.join(wrong)}, or has another type")
        if name == "semantic-cache":
            self.cache, self.policy = found, self.service.get(f"{CACHE_PATH}/quality")["policy"]
        return f"{path} has its {len(SHAPES[name])} fields"

    def prometheus(self) -> str:
        text = self.service.metrics()
        names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ragherd_")}
        if not names:
            raise Failed("/metrics has no metric of Ragherd")
        return f"/metrics has {len(names)} metrics"

    # -- Questions -----------------------------------------------------------------------------------------------------

    def question(self) -> str:
        try:
            answer = self.ask(QUESTION)
        except RequestRefused as error:
            if error.status != 403:
                raise
            self.tenant = None  # a user's key fixes the tenant
            answer = self.ask(QUESTION)
        return self._first(answer, "miss" if self.cache.get("enabled", True) else "bypass")

    def stored(self) -> str:
        """Stores an answer by a warm-up, which needs no model."""
        question = {**self.body(QUESTION), "answer": ANSWER}
        job = self.service.send("POST", WARM_PATH, json={"questions": [question]})
        if waited_for(self.service, job, STORE_SECONDS)["status"] == "running":
            raise Failed(f"the warm-up {job['id']} is not done after {STORE_SECONDS:g} s")
        answer = self.ask(QUESTION, **{"Cache-Control": "only-if-cached"})
        if answer["answer"] != ANSWER:
            raise Failed(f"another answer than the stored one: {answer['answer'][:80]}")
        return self._first(answer, "hit")

    def _first(self, answer: Mapping[str, Any], expected: str) -> str:
        cache = answer["cache"]
        self.entry = cache["entry"]
        if not answer["answer"] or cache["status"] != expected:
            raise Failed(f"cache {cache['status']}, {len(answer['answer'])} characters; expected {expected}")
        return f"answered by {answer['model']} in {answer['timings_ms']['total'] / 1000:.2f} s, cache {expected}"

    def same_question(self) -> str:
        cache = self.ask(QUESTION)["cache"]
        if (cache["status"], cache["kind"]) != ("hit", "exact"):
            raise Failed(f"cache {cache['status']} ({cache['kind']}); expected an exact hit")
        return f"an exact hit, {cache['age_seconds']:.1f} s old"

    def paraphrase(self) -> str:
        """Explains before it asks: an answer would be stored and found the next time."""
        found = self.service.send("POST", f"{CACHE_PATH}/explain", json=self.body(PARAPHRASE))
        cosine = "unknown" if found["similarity"] is None else f"{found['similarity']:.3f}"
        said = f"cosine {cosine}, threshold {found['threshold']:g}, policy {found['policy']}"
        cache = self.ask(PARAPHRASE, **{"Cache-Control": "only-if-cached"})["cache"] if found["hit"] else None
        if cache is None and found["level"] > 0:
            return f"not checked: the fleet has tightened, because too many cached answers were wrong ({said})"
        if cache is None or (cache["status"], cache["kind"]) != ("hit", "semantic"):
            raise Failed(f"no semantic hit: {found['reason']} ({said})")
        return f"a semantic hit ({said})"

    def stream(self) -> str:
        names: list[str] = []
        with self.service.stream("/query", json={**self.body(QUESTION), "stream": True}) as events:
            for name, _ in events:
                names.append(name)
        tokens = names.count("token")
        if names[:1] != ["sources"] or names[-1:] != ["done"] or not tokens:
            raise Failed(f"events: {', '.join(dict.fromkeys(names)) or 'none'}; expected sources, token, done")
        return f"sources, {tokens} token event{'' if tokens == 1 else 's'}, done"

    def isolation(self) -> str:
        """Asks the same question as another tenant, who must not get the answer."""
        try:
            answer = self.ask(QUESTION, f"smoke-other-{self.seed}", **{"Cache-Control": "only-if-cached"})
        except RequestRefused as error:
            if error.status == 504:
                return "another tenant does not get the cached answer"
            if error.status == 403:
                return "the key cannot ask as another tenant"
            raise
        raise Failed(f"another tenant got the cached answer: cache {answer['cache']['status']}")

    def outage(self) -> str:
        """A question that needs the model must fail with a clear error."""
        try:
            self.ask(OTHER)
        except RequestRefused as error:
            if error.status in {502, 503, 504}:
                return f"a new question gets {error.status}"
            raise
        raise Failed("a new question was answered, so Ollama works: run it without --without-ollama")

    def clean_up(self) -> None:
        """Deletes the answer, where the key may. Otherwise it expires."""
        if self.entry:
            try:
                self.service.send("DELETE", CACHE_PATH, params={"entry": self.entry})
            except (RequestRefused, Unreachable):
                self.entry = None


def smoke(
    without_ollama: Annotated[
        bool,
        typer.Option("--without-ollama", help="Ollama is absent: store the answer instead. Needs an admin key."),
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Check a service after its deployment: health, metrics, a question, a paraphrase, a stream, two tenants.

    Its questions match no user's cached answers. Its answer is deleted at the end if the key allows it. An admin key,
    or no keys at all, checks the isolation of tenants most strictly.
    """
    with opened(url, read_seconds=ANSWER_SECONDS) as service:
        run = SmokeRun(service, without_ollama)
        checks = list(run.checks())
    report(checks, UNREACHABLE if run.unreachable else FAILED, as_json=as_json)
