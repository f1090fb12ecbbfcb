"""Measures follow-up questions: which are served from the cache, and how many of them wrongly.

    .venv/bin/python -m scripts.bench_conversations [--fow] [--examples]

Each pair of conversations has its own tenant on an embedded Redis. The first conversation is stored turn by turn,
and the last question of the second is looked up, as the service does it. The pairs come from `conversations.toml`, 30
conversations with 8 variations each: rules and thresholds were chosen with the even ones, the odd ones are held out.
--fow uses the 240 pairs of the package fow-cache. Needs the extra `onnx`.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from api.backends.embedder import RememberedEmbedder
from api.embedded.redis_server import embedded_redis
from api.embedders.onnx import OnnxEmbedder
from api.languages.identify import ONLY_ENGLISH
from api.ports.answer_quality import PolicyName, Versions
from api.ports.question import Query, Timings
from api.ports.telemetry import Telemetry
from api.quality.keeper import QualityView
from api.quality.policies import QualitySettings
from api.query.cache import CacheBudget, CachePolicy, SemanticCache
from api.query.cache_key import CacheKeyBuilder
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.search_index import algorithm_for
from api.redis_store.stores.cache.answers import RedisAnswerCache
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.fleet import CacheCounters
from api.values import ChatMessage, Generation, GenerationEnd, Usage

CONVERSATIONS = Path(__file__).with_name("conversations.toml")
THRESHOLDS = (None, 0.80, 0.85, 0.90, 0.92)
"""None: SEMANTIC_CACHE_FOLLOW_UPS=false."""
ENTRIES = 100_000

Turns = tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations that end with a question, and whether one answer is right for both."""

    kind: str
    same: bool
    cached: Turns
    asked: Turns


@dataclass(frozen=True, slots=True)
class AnyModel:
    """The digests of the models' weights."""

    unknown: str = "digest"
    by_model: Mapping[str, str] = field(default_factory=dict)


def main(
    fow: Annotated[bool, typer.Option(help="Use the conversations of fow-cache.")] = False,
    examples: Annotated[bool, typer.Option(help="Print the traps served among the even conversations.")] = False,
) -> None:
    """Prints a row per threshold, and one for SEMANTIC_CACHE_FOLLOW_UPS=false."""
    if fow:
        asyncio.run(measure("fow-cache", list(fow_pairs()), (None, 0.92), examples=False))
        return
    for half, name in enumerate(("even", "held out")):
        asyncio.run(measure(name, list(own_pairs(half)), THRESHOLDS, examples=examples and half == 0))


def own_pairs(half: int) -> Iterator[Pair]:
    """The pairs of every second conversation."""
    for one in tomllib.loads(CONVERSATIONS.read_text("utf-8"))["conversation"][half::2]:
        u, u2, t, a, f, f2, g = (one[name] for name in ("u", "u2", "t", "a", "f", "f2", "g"))
        first = turns(u, a, f)
        yield Pair("follow-up reworded", True, first, turns(u, a, f2))
        yield Pair("context reworded", True, first, turns(u2, a, f))
        yield Pair("both reworded", True, first, turns(u2, a, f2))
        yield Pair("typed otherwise", True, first, turns(f" {u.rstrip('?.!')} ", a, f))
        yield Pair("another follow-up", False, first, turns(u, a, g))
        yield Pair("another context, same answer", False, first, turns(t, a, f))
        yield Pair("another context and answer", False, first, turns(t, "Something else.", f))
        yield Pair("answer altered", False, first, turns(u, f"{a} Or not.", f))


def turns(asked: str, answered: str, follow_up: str) -> Turns:
    return ChatMessage("user", asked), ChatMessage("assistant", answered), ChatMessage("user", follow_up)


def fow_pairs() -> Iterator[Pair]:
    """The conversations of fow-cache."""
    for one in import_module("fow_cache.data").load_conversations():
        cached, asked = (tuple(ChatMessage(turn["role"], turn["content"]) for turn in one[side]) for side in "ab")
        yield Pair(one["subtype"], one["same_answer"], cached, asked)


async def measure(name: str, pairs: list[Pair], thresholds: tuple[float | None, ...], *, examples: bool) -> None:
    print(f"\n{name}: {len(pairs)} pairs")
    kinds = dict.fromkeys(pair.kind for pair in pairs)
    for threshold in thresholds:
        hits, number = Counter[str](), Counter(pair.kind for pair in pairs)
        async with AsyncExitStack() as stack:
            cache = await opened(stack, threshold)
            for at, pair in enumerate(pairs):
                hit = await served(cache, pair, f"tenant{at}")
                hits[pair.kind] += hit
                hits["should hit" if pair.same else "traps"] += hit
                if hit and not pair.same and examples:
                    print("   ", [turn.content for turn in (*pair.cached, *pair.asked)])
        total = Counter("should hit" if pair.same else "traps" for pair in pairs)
        summed = ", ".join(f"{kind} {hits[kind]}/{total[kind]}" for kind in ("should hit", "traps"))
        print(f"{threshold or 'off'}: {summed}; " + ", ".join(f"{kind} {hits[kind]}/{number[kind]}" for kind in kinds))


async def opened(stack: AsyncExitStack, given: float | None) -> SemanticCache:
    """Opens a cache without entries. Without a threshold it finds follow-ups only in the same words."""
    threshold = given or 0.92
    server = stack.enter_context(embedded_redis(persistent=False))
    client = await stack.enter_async_context(BatchingRedis.from_url(server.url))
    embedder = RememberedEmbedder(await stack.enter_async_context(OnnxEmbedder.open(None, 600.0)), max_entries=5_000)
    gate = HealthGatedRedis(client, 8)
    await gate.check()
    indexes = SemanticIndexes(gate, Keys(), algorithm_for(ENTRIES))
    await indexes.prepare(embedder)
    counters = CacheCounters(gate, Keys(), "bench")
    answers = RedisAnswerCache(gate, Keys(), indexes, counters, ttl_ms=3_600_000, stale_ms=3_600_000, max_size=ENTRIES)
    policy = CachePolicy(threshold, languages=ONLY_ENGLISH, follow_ups=given is not None)
    quality = QualityView(QualitySettings(PolicyName.GUARDED, threshold, 0.02, Versions("bench")))
    keys, budget = CacheKeyBuilder(embedder, AnyModel()), CacheBudget(600.0)
    return SemanticCache(answers, embedder, keys, Telemetry(), policy, budget, quality=quality)


async def served(cache: SemanticCache, pair: Pair, tenant: str) -> bool:
    """Stores the first conversation, and returns whether the last question of the second is a hit."""
    for place, turn in enumerate(pair.cached):
        if turn.role == "user":
            answer = pair.cached[place + 1].content if place + 1 < len(pair.cached) else "the answer"
            await store(cache, Query(turn.content, tenant, "model", history=pair.cached[:place]), answer)
    last = Query(pair.asked[-1].content, tenant, "model", history=pair.asked[:-1])
    return (await cache.look_up(last, Timings())).match is not None


async def store(cache: SemanticCache, query: Query, answer: str) -> None:
    """Stores an answer if the question has none."""
    lookup = await cache.look_up(query, Timings())
    if lookup.match is None:
        generation = Generation(answer, GenerationEnd("model", "stop", Usage()), 0.0)
        await cache.store(query, lookup, None, (), generation, Timings())


if __name__ == "__main__":
    typer.run(main)
