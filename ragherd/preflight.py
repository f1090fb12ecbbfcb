"""`ragherd preflight`: checks before a deployment whether this environment fits a scenario.

A scenario says which findings are faults: production needs keys and a durable Redis, a laptop does not.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer

from api.errors import SettingsError
from api.ports.answer_cache import Store
from api.settings import Settings, access_warnings, load_settings, origins
from ragherd.checks import Check, report
from ragherd.config import unknown_line, unknown_variables, without_password
from ragherd.service_client import AsJson, local_url

HTTP_SECONDS: Final = 5.0
SKEW_SECONDS: Final = 2.0
"""Clocks that differ by more make logs and expiry times hard to compare."""
PARALLEL: Final = "OLLAMA_NUM_PARALLEL"
"""A setting of Ollama that none of its endpoints shows."""


class Scenario(StrEnum):
    """Where the service will run."""

    DEVELOPMENT = "development"
    STAGING = "staging"
    PRODUCTION = "production"


class Level(IntEnum):
    """How strict a scenario is."""

    ALWAYS = 0
    STAGING = 1
    PRODUCTION = 2
    NEVER = 3


LEVELS: Final = {
    Scenario.DEVELOPMENT: Level.ALWAYS,
    Scenario.STAGING: Level.STAGING,
    Scenario.PRODUCTION: Level.PRODUCTION,
}
REDIS_LEVELS: Final = {
    "old": Level.STAGING,
    "without_search": Level.ALWAYS,
    "evicts_all": Level.STAGING,
    "not_persistent": Level.STAGING,
    "snapshots_only": Level.PRODUCTION,
    "disk_fails": Level.ALWAYS,
    "replica": Level.ALWAYS,
    "read_only": Level.ALWAYS,
    "unchecked": Level.STAGING,
}
"""From which scenario on a warning about Redis is a fault."""
REDIS_CHECKS: Final = {
    "version": ("old",),
    "module": ("without_search",),
    "eviction": ("evicts_all",),
    "persistence": ("not_persistent", "snapshots_only", "disk_fails"),
    "role": ("replica", "read_only"),
    "information": ("unchecked",),
}
"""The checks of a Redis, each with the warnings that belong to it."""


@dataclass(frozen=True, slots=True)
class ScenarioJudge:
    """Makes checks for one scenario."""

    scenario: Scenario

    def check(self, name: str, good: object, detail: str, advice: str = "", needed: Level = Level.ALWAYS) -> Check:
        """Returns a check. A bad finding fails from the scenario `needed` on, and is a warning in easier ones."""
        if good:
            return Check(name, True, detail)
        return Check(name, LEVELS[self.scenario] < needed, detail, advice)


def preflight(
    scenario: Annotated[Scenario, typer.Option(help="Where the service will run.")] = Scenario.DEVELOPMENT,
    env_file: Annotated[
        Path | None,
        typer.Option("--env-file", exists=True, dir_okay=False, help="File with settings to check instead of .env."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the settings, keys, ports, Redis, Ollama and clock of this environment before a deployment.

    Redis: version, search module, eviction, persistence, rights of the user. Ollama: models, context, parallelism.
    Changes nothing. Needs no running service. The exit code is 1 if a check fails.
    """
    checks = _checks(ScenarioJudge(scenario), str(env_file or ".env"))
    report(list(checks), as_json=as_json, scenario=scenario.value)


def _checks(judge: ScenarioJudge, env_file: str) -> Iterator[Check]:
    try:
        settings = load_settings(env_file)
    except SettingsError as error:
        yield Check("settings", False, str(error), f"Correct it in the environment or in {env_file}.")
        return
    yield Check("settings", True, "valid")
    yield from _settings(judge, settings, env_file)
    yield from _keys(judge, settings)
    yield from _ports(settings)
    yield from _redis(judge, settings, "main", settings.redis.url)
    if settings.breaker_redis.url:
        yield from _redis(judge, settings, "breaker", settings.breaker_redis.url)
    for url in settings.ollama.base_urls:
        yield from _ollama(judge, settings, url)
    yield _parallelism(judge, settings)


# -- Settings, keys and ports ------------------------------------------------------------------------------------------


def _settings(judge: ScenarioJudge, settings: Settings, env_file: str) -> Iterator[Check]:
    from worker_config.limits import raise_limit, too_many_connections

    for name, meant in unknown_variables(origins(env_file)):
        yield judge.check("unknown setting", False, unknown_line(name, meant), "Remove or rename it.", Level.NEVER)
    raise_limit()
    too_many = too_many_connections(settings)
    yield judge.check("file descriptors", not too_many, too_many or "enough for MAX_CONNECTIONS")
    if LEVELS[judge.scenario] >= Level.STAGING:
        yield from _switches(judge, settings)
        level = settings.server.log_level
        yield judge.check("log level", level != "debug", level, "Set LOG_LEVEL=info.", Level.PRODUCTION)
        logged = settings.server.log_questions
        detail = "in the log and on the live page" if logged else "not logged"
        yield judge.check("questions", not logged, detail, "Set LOG_QUESTIONS=false.", Level.NEVER)


def _switches(judge: ScenarioJudge, settings: Settings) -> Iterator[Check]:
    """Checks that nothing is off which a rollout watches or relies on."""
    server = settings.server
    switches = (
        ("cache", "SEMANTIC_CACHE_ENABLED", settings.cache.enabled, Level.NEVER),
        ("breaker", "CIRCUIT_BREAKER_ENABLED", settings.breaker.enabled, Level.PRODUCTION),
        ("history", "HISTORY_ENABLED", server.history_enabled, Level.PRODUCTION),
    )
    for name, variable, is_on, needed in switches:
        yield judge.check(name, is_on, "enabled" if is_on else "disabled", f"Set {variable}=true.", needed)


def _keys(judge: ScenarioJudge, settings: Settings) -> Iterator[Check]:
    access, advice = settings.access, "Make one with: openssl rand -hex 24."
    users, admins = len(access.tenants_by_key()), len(access.admins())
    detail = f"{users} in API_KEYS{', others in Redis' if access.require_keys else ''}"
    needed = f"Set API_KEYS or REQUIRE_KEYS. {advice}"
    yield judge.check("API keys", access.is_keyed, detail, needed, Level.STAGING)
    yield judge.check("admin keys", admins, f"{admins} in ADMIN_KEYS", f"Set ADMIN_KEYS. {advice}", Level.STAGING)
    weak = [warning for warning in access_warnings(access, []) if "can be guessed" in warning]
    yield judge.check("key strength", not weak, "; ".join(weak) or "no key is short", advice, Level.STAGING)
    anonymous = access.allow_anonymous and not access.is_keyed
    detail = "anyone may ask" if anonymous else "callers need a key, or are on this machine"
    yield judge.check("anonymous callers", not anonymous, detail, "Unset ALLOW_ANONYMOUS.", Level.STAGING)


def _ports(settings: Settings) -> Iterator[Check]:
    server = settings.server
    for variable, port in (("PORT", server.port), ("METRICS_PORT", server.metrics_port)):
        if port:
            name, where = f"port, {variable}", f"{server.host}:{port}"
            problem = _why_not_bound(server.host, port)
            if not problem:
                yield Check(name, True, f"{where} is free")
            elif _serves_ragherd(local_url(server.host, port)):
                yield Check(name, True, f"a running Ragherd listens at {where}", f"Stop it first, or set {variable}.")
            else:
                yield Check(name, False, f"{where} {problem}", f"Stop it, or set {variable}.")


def _serves_ragherd(url: str) -> bool:
    """Returns whether /health or /metrics is Ragherd's. Sends no key, because anybody may listen there."""
    try:
        with httpx.Client(base_url=url, timeout=HTTP_SECONDS, trust_env=False) as client:
            return '"circuit_breaker"' in client.get("/health").text or "ragherd_" in client.get("/metrics").text
    except httpx.HTTPError:
        return False


def _why_not_bound(host: str, port: int) -> str:
    """Returns why this machine cannot listen there, or ''."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return f"cannot be used: {error.strerror or error}"
    return ""


# -- Redis and the clock -----------------------------------------------------------------------------------------------


def _redis(judge: ScenarioJudge, settings: Settings, store: Store, url: str) -> Iterator[Check]:
    from api.wiring.check import redis_report  # imports as much as a worker, which takes a second

    subject = "Redis" if store == "main" else "Redis of the breakers"
    found = asyncio.run(redis_report(settings, store))
    if found.problem:
        variable = "REDIS_URL" if store == "main" else "BREAKER_REDIS_URL"
        detail = f"{without_password(url)} cannot be used: {found.problem}"
        yield judge.check(subject, False, detail, f"Start it, or correct {variable}.")
        return
    yield Check(subject, True, f"{without_password(url)} answers and accepts writes")
    yield from _redis_setup(judge, subject, dict(found.warnings), found.version)
    bounded = found.max_bytes > 0
    detail = f"maxmemory {found.max_bytes / 2**20:,.0f} MiB" if bounded else "no maxmemory"
    yield judge.check(f"{subject}, memory", bounded, detail, "Set maxmemory; see `ragherd plan`.", Level.NEVER)
    yield from _rights(judge, subject, found.denied, may_everything=found.may_everything)
    if store == "main":
        ahead = f"{abs(found.ahead):.3f} s from Redis's"
        yield judge.check("clock", abs(found.ahead) < SKEW_SECONDS, ahead, "Synchronize it with NTP.", Level.STAGING)


def _redis_setup(judge: ScenarioJudge, subject: str, warnings: Mapping[str, str], version: str) -> Iterator[Check]:
    for name, members in REDIS_CHECKS.items():
        said = [warning for warning in members if warning in warnings]
        good = f"{version or 'unknown'}, tested" if name == "version" else "as it should be"
        if not said:
            yield Check(f"{subject}, {name}", True, good)
        for warning in said:
            found = warning.replace("_", " ")
            yield judge.check(f"{subject}, {name}", False, found, warnings[warning], REDIS_LEVELS[warning])


def _rights(judge: ScenarioJudge, subject: str, denied: Any, *, may_everything: bool) -> Iterator[Check]:
    advice = "`ragherd redis-acl` prints the line of the ACL file."
    detail = f"the user may not run {', '.join(denied)}" if denied else "the user may run every command that is needed"
    yield judge.check(f"{subject}, rights", not denied, detail, advice)
    detail = "the user may also manage users" if may_everything else "the user may not manage users"
    yield judge.check(f"{subject}, least rights", not may_everything, detail, advice, Level.PRODUCTION)


# -- Ollama ------------------------------------------------------------------------------------------------------------


def _ollama(judge: ScenarioJudge, settings: Settings, url: str) -> Iterator[Check]:
    subject = f"Ollama {without_password(url)}"
    try:
        with httpx.Client(base_url=url, timeout=HTTP_SECONDS, trust_env=False) as client:
            version = client.get("/api/version").raise_for_status().json()["version"]
            yield Check(subject, True, f"version {version}")
            listed = client.get("/api/tags").raise_for_status().json()["models"]
            yield from _models(judge, settings, subject, {model["name"] for model in listed})
            shown = client.post("/api/show", json={"model": settings.ollama.llm_model})
            if shown.is_success:
                yield _context(judge, settings, subject, shown.json().get("model_info") or {})
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        yield judge.check(
            subject, False, f"cannot be used: {_reason(error)}", "Start Ollama, or correct OLLAMA_BASE_URL."
        )


def _reason(error: Exception) -> str:
    """Returns why a request failed. httpx's text of an error status has the URL with its password."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answers {error.response.status_code} {error.response.reason_phrase}".rstrip()
    return str(error) or type(error).__name__


def _models(judge: ScenarioJudge, settings: Settings, subject: str, present: set[str]) -> Iterator[Check]:
    needed = [settings.ollama.llm_model]
    if settings.embedder.embedder == "ollama":
        needed.append(settings.embedder.embed_model)
    for model in needed:
        there = (model if ":" in model else f"{model}:latest") in present
        detail = f"{model} is {'there' if there else 'missing'}"
        yield judge.check(f"{subject}, {model}", there, detail, f"Run: ollama pull {model}.")


def _context(judge: ScenarioJudge, settings: Settings, subject: str, info: Mapping[str, Any]) -> Check:
    longest = next((value for name, value in info.items() if name.endswith(".context_length")), None)
    wanted = settings.ollama.ollama_num_ctx
    if wanted is None:
        detail = f"Ollama's default; the model reads up to {longest or 'an unknown number of'} tokens."
        return judge.check(
            f"{subject}, context", False, detail, "Set OLLAMA_NUM_CTX, so that it is known.", Level.NEVER
        )
    detail = f"OLLAMA_NUM_CTX={wanted}, the model reads up to {longest or 'an unknown number of'} tokens"
    advice = "Lower OLLAMA_NUM_CTX, or take another model."
    return judge.check(f"{subject}, context", longest is None or wanted <= longest, detail, advice, Level.STAGING)


def _parallelism(judge: ScenarioJudge, settings: Settings) -> Check:
    """Compares the bulkhead with Ollama's setting, if this environment has it."""
    permits, pool = settings.bulkhead.max_concurrent, settings.pool.max_size
    parallel = os.environ.get(PARALLEL, "")
    detail = f"BULKHEAD_MAX_CONCURRENT={permits}, CONNECTION_POOL_MAX_SIZE={pool}"
    if not parallel.isdigit():
        advice = f"Ollama does not report its {PARALLEL}: make sure that it is {permits}."
        return judge.check("parallelism", False, detail, advice, Level.NEVER)
    advice = f"Set BULKHEAD_MAX_CONCURRENT to {PARALLEL} times the models in use."
    return judge.check("parallelism", permits >= int(parallel), f"{detail}, {PARALLEL}={parallel}", advice, Level.NEVER)
