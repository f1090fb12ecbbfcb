"""Checks whether a worker could use Redis, Ollama and the embedder now. Writes nothing to Redis."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from api import __version__
from api.embedders.onnx import open_onnx
from api.errors import SettingsError, StoreUnavailable, UpstreamError
from api.ollama.models import OllamaModels
from api.ollama.pool import OllamaPool, PoolLimits, open_pool
from api.ports.answer_cache import Store
from api.redis_store.acl import acl_commands
from api.redis_store.client import AnyHealthGated, open_client
from api.redis_store.diagnostics import RedisCheckup, denied_commands
from api.redis_store.keys import Keys
from api.redis_store.schema import FleetSchema
from api.settings import Settings
from api.wiring.backup import LastFailure
from api.wiring.redis import redis_address

OLLAMA_TIMEOUT: Final = 5.0
"""Timeout of a request to one Ollama, in seconds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report. `failed`: the service would start but could not do all of its work."""

    subject: str
    detail: str
    failed: bool = False


async def findings(settings: Settings) -> Sequence[Finding]:
    """Runs all checks at once. Raises nothing."""
    stores: list[Store] = ["main", "breaker"] if settings.breaker_redis.url else ["main"]
    asked = [
        *(_redis(settings, store) for store in stores),
        *(_ollama(settings, url) for url in settings.ollama.base_urls),
        *([_onnx(settings)] if settings.embedder.embedder == "onnx" else []),
    ]
    return [finding for found in await asyncio.gather(*asked) for finding in found]


async def _redis(settings: Settings, store: Store) -> list[Finding]:
    """Checks that Redis answers, accepts writes and has keys of this release; then reports warnings."""
    subject, variable = ("Redis", "REDIS_URL") if store == "main" else ("Redis of the breakers", "BREAKER_REDIS_URL")
    async with _opened(settings, store) as opened:
        if not await opened.client.check():
            why = opened.schema.conflict or f"{opened.failures.last} Start it, or correct {variable}."
            return [Finding(subject, f"cannot be used: {why}", failed=True)]
        warnings = [Finding(subject, f"warning: {warning.advice}") for warning in opened.checkup.warnings]
        return [Finding(subject, "ready"), *warnings]


@dataclass(frozen=True, slots=True)
class _OpenedRedis:
    client: AnyHealthGated
    checkup: RedisCheckup
    schema: FleetSchema
    failures: LastFailure


@asynccontextmanager
async def _opened(settings: Settings, store: Store) -> AsyncIterator[_OpenedRedis]:
    address, keys, failures = redis_address(settings.redis), Keys(*settings.key_layout), LastFailure()
    if store == "breaker":
        address = replace(address, url=settings.breaker_redis.url or "")
    async with open_client(address, lambda shard: failures, failures.mismatched, keys.probe) as client:
        checkup = RedisCheckup(client, store)
        worker = f"check-{socket.gethostname()}-{os.getpid()}"
        schema = FleetSchema(client, keys, worker, __version__, lambda conflict: None, states=False)
        yield _OpenedRedis(client, checkup, schema, failures)


@dataclass(frozen=True, slots=True)
class RedisReport:
    """The findings about a Redis. `problem`: why it cannot be used; the rest is then unknown.

    `warnings` are pairs of name and advice. `may_everything`: the user may also manage users. `ahead`: seconds by which
    this machine's clock is ahead of Redis's.
    """

    problem: str = ""
    version: str = ""
    warnings: Sequence[tuple[str, str]] = ()
    max_bytes: int = 0
    denied: Sequence[str] = ()
    may_everything: bool = False
    ahead: float = 0.0


async def redis_report(settings: Settings, store: Store) -> RedisReport:
    """Looks at one server, of a cluster the first. Raises nothing."""
    is_cluster = settings.redis.is_cluster and store == "main"
    rights = acl_commands(store, separate=settings.breaker_redis.url is not None, cluster=is_cluster)
    key = Keys(*settings.key_layout).probe
    async with _opened(settings, store) as opened:
        if not await opened.client.check():
            return RedisReport(opened.schema.conflict or opened.failures.last)
        server = opened.client.servers[0]
        try:
            info, (seconds, micros) = await server.run("info", _facts), await server.run("time", lambda one: one.time())
            ahead = time.time() - seconds - micros / 1e6
            denied = await server.run("rights", lambda client: denied_commands(client, [*rights, "acl|setuser"], key))
        except StoreUnavailable as error:
            return RedisReport(str(error))
    warnings = [(warning.name, warning.advice) for warning in opened.checkup.warnings]
    missing = [command for command in denied if command in rights]
    facts = (str(info.get("redis_version", "")), warnings, int(info.get("maxmemory", 0)))
    return RedisReport("", *facts, missing, "acl|setuser" not in denied, ahead)


async def _facts(client: Redis) -> dict[str, Any]:
    try:
        return dict(await client.info())
    except NoPermissionError:
        return {}


async def _ollama(settings: Settings, url: str) -> list[Finding]:
    """Checks that one Ollama answers and has the models."""
    subject = f"Ollama at {url}"
    limits = PoolLimits(min_size=0, connect_timeout=settings.ollama.ollama_connect_timeout)
    async with open_pool(url, limits) as pool:
        try:
            missing = await _missing(settings, pool)
        except UpstreamError as error:
            return [Finding(subject, f"cannot be used: {error} Start it, or correct OLLAMA_BASE_URL.", failed=True)]
    if missing:
        pulls = "; ".join(f"ollama pull {model}" for model in missing)
        return [Finding(subject, f"{' and '.join(missing)} not found. Run: {pulls}", failed=True)]
    return [Finding(subject, f"ready, with {' and '.join(_models(settings))}")]


def _models(settings: Settings) -> list[str]:
    """The models that Ollama needs."""
    embedder = [settings.embedder.embed_model] if settings.embedder.embedder == "ollama" else []
    return [settings.ollama.llm_model, *embedder]


async def _missing(settings: Settings, pool: OllamaPool) -> list[str]:
    models = OllamaModels(pool, OLLAMA_TIMEOUT)
    return [model for model in _models(settings) if await models.find(model) is None]


async def _onnx(settings: Settings) -> list[Finding]:
    """Checks that the embedder in the worker can be loaded."""
    subject = "Embedder"
    try:
        async with open_onnx(settings.embedder.embed_model_path, settings.embedder.embed_timeout) as opened:
            identity = await opened.questions.identity()
    except SettingsError as error:
        return [Finding(subject, f"cannot be used: {error}", failed=True)]
    return [Finding(subject, f"ready, {identity.name} in the worker")]
