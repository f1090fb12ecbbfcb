"""Tenants, models, templates and embedders never share answers: 10,000 random questions with equal texts."""

from __future__ import annotations

import asyncio
import hashlib
import random
import struct
from collections.abc import Mapping, Sequence
from typing import cast

import pytest
from redis.asyncio import Redis

from api.backends.failover import Generations, Unread
from api.knowledge.retrieval import RetrievalPolicy, Retriever
from api.observability.metrics import Metrics
from api.observability.worker_telemetry import WorkerTelemetry
from api.ports.coordination import TextOutput
from api.ports.inference import CurrentIdentity
from api.ports.question import Query, Template, Timings
from api.query.cache import CacheBudget, CachePolicy, SemanticCache
from api.query.cache_key import CacheKeyBuilder
from api.query.condense import Condenser
from api.query.generate import FreshAnswers
from api.query.grounding import PassageRetriever, PromptBuilder
from api.query.prompt import load_template
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.cache.answers import RedisAnswerCache
from api.redis_store.stores.cache.semantic_index import SemanticIndexes
from api.redis_store.stores.documents.passages import RedisPassageIndex
from api.redis_store.stores.fleet import CacheCounters
from api.values import EmbedderIdentity, Embedding, Generation, GenerationEnd, GenerationRequest, Usage, Vector

TENANTS = ("acme", "acme,inc", "ACME", "a b {c}|d-*")
MODELS = ("llama3.2", "qwen3:4b")
TEMPLATES: tuple[Template, ...] = ("grounded", "raw")
TEXTS = [f"How do I {verb} my {thing}?" for verb in ("find", "print", "rename", "share") for thing in "abcdefghijklmno"]
ASKED = 10_000
CONCURRENCY = 32


class WordEmbedder:
    """Equal words, equal vectors, whatever their order: each text has a paraphrase of cosine 1."""

    def __init__(self, fingerprint: str) -> None:
        self._identity = EmbedderIdentity("words", 16, fingerprint)
        self.current = CurrentIdentity(self._identity)

    async def identity(self) -> EmbedderIdentity:
        return self._identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        return [Embedding(_vector(text)) for text in texts]


def _vector(text: str) -> Vector:
    words = sorted("".join(filter(lambda c: c.isalpha() or c == " ", text.lower())).split())
    source = random.Random(hashlib.sha256(" ".join(words).encode()).digest())
    values = [source.gauss() for _ in range(16)]
    length = sum(value * value for value in values) ** 0.5
    return struct.pack("<16f", *(value / length for value in values))


class Digests:
    """Nothing is known of the models' weights."""

    by_model: Mapping[str, str] = {}
    unknown = ""


class EchoModel:
    """Stands where `Generations` does: answers with whose question it was."""

    def __init__(self, embedder: str) -> None:
        self._embedder = embedder

    async def generate(self, request: GenerationRequest, output: TextOutput) -> Generation:
        template = "raw" if request.messages[0].role == "user" else "grounded"
        text = "|".join((request.tenant, request.model, template, self._embedder, request.messages[-1].content))
        return Generation(text, GenerationEnd(request.model, "stop", Usage(1, 1)), 0.0)


class Side:
    """The service with one embedder, without HTTP: look up, else generate and store."""

    def __init__(self, redis: Redis, gate: HealthGatedRedis, embedder: str) -> None:
        keys = Keys()
        counters = CacheCounters(gate, keys, "w")
        events = WorkerTelemetry(Metrics(), counters, log_questions=False)
        index = SemanticIndexes(gate, keys)
        cache = RedisAnswerCache(gate, keys, index, counters, ttl_ms=60_000, stale_ms=60_000, max_size=20_000)
        policy = CachePolicy(0.92)
        self.embedder = embedder
        words = WordEmbedder(embedder)
        self.shared = SemanticCache(cache, words, CacheKeyBuilder(words, Digests()), events, policy, CacheBudget(30.0))
        retriever = Retriever(RedisPassageIndex(gate, keys), words, None, RetrievalPolicy())
        grounder = PassageRetriever(retriever, cast(Condenser, None), events)  # no question here has a history
        prompting = PromptBuilder(load_template(None), None, "say_so")
        self.fresh = FreshAnswers(cast(Generations, EchoModel(embedder)), self.shared, grounder, prompting, events)

    async def ask(self, query: Query) -> tuple[str, str]:
        timings = Timings()
        lookup = await self.shared.look_up(query, timings)
        if lookup.match is not None:
            return lookup.match.answer.answer, lookup.match.kind
        completed = await self.fresh.generate(query, lookup, timings, Unread(), buffered=True)
        return completed.text, "miss"


@pytest.fixture
async def sides(redis: BatchingRedis) -> list[Side]:
    """Two embedders of the same dimension, side by side on one Redis."""
    gate = HealthGatedRedis(redis, CONCURRENCY)
    await gate.check()
    return [Side(redis, gate, fingerprint) for fingerprint in ("aaaaaaaaaa", "bbbbbbbbbb")]


def paraphrase(text: str) -> str:
    verb, thing = text.removeprefix("How do I ").rstrip("?").split(" my ")
    return f"My {thing}: how do I {verb}?"


@pytest.mark.once(reason="the keys are built from texts alone; other tests show each part of a key")
async def test_ten_thousand_mixed_questions_and_none_has_anothers_answer(sides: list[Side]) -> None:
    source = random.Random(5)
    kinds = {"miss": 0, "exact": 0, "semantic": 0}

    async def one() -> None:
        side, text = source.choice(sides), source.choice(TEXTS)
        question = paraphrase(text) if source.random() < 0.3 else text
        tenant, model, template = source.choice(TENANTS), source.choice(MODELS), source.choice(TEMPLATES)
        answer, kind = await side.ask(Query(question, tenant, model, template=template))
        kinds[kind] += 1
        *whose, asked = answer.rsplit("|", 4)
        assert whose == [tenant, model, template, side.embedder]
        assert asked in {text, paraphrase(text)}

    for _ in range(ASKED // CONCURRENCY + 1):
        await asyncio.gather(*(one() for _ in range(CONCURRENCY)))
    assert kinds["exact"] > 4000
    assert kinds["semantic"] > 500
