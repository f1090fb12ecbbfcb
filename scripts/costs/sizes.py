"""Measures lookups and memory by size: entries of the cache, chunks of documents."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from itertools import count
from typing import Any, Final

import numpy as np
from redis.asyncio import Redis

from api.knowledge.retrieval import PassageQuery, RetrievalPolicy, Retriever
from api.ports.document_store import Chunk, DocumentFacts
from api.ports.document_work import EmbeddedChunk, Work
from api.ports.inference import CurrentIdentity
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.search_index import algorithm_for
from api.redis_store.stores.documents.document_records import chunk_fields
from api.redis_store.stores.documents.passages import RedisPassageIndex
from api.values import EmbedderIdentity, Vector
from scripts.bench_cache import ANSWER, DIMENSION, SCOPE, Bench, questions
from scripts.bench_cache import EMBEDDER as OF_ENTRIES
from scripts.costs.server import CONCURRENCY, Server, cost_of

EMBEDDER: Final = EmbedderIdentity("chunks", DIMENSION, "chunkschun")
CHUNK_WORDS: Final = 110
CHUNKS_A_DOCUMENT: Final = 20
VOCABULARY: Final = 20_000


async def of_entries(url: str, server: Server, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measures caches of each size: lookups, stores, and bytes per entry without its answer."""
    return [await _entries(url, server, size) for size in sizes]


async def _entries(url: str, server: Server, size: int) -> dict[str, Any]:
    async with BatchingRedis.from_url(url, max_connections=64) as redis:
        await redis.flushall()
        bench, number = Bench(redis, size, algorithm_for(size)), count()
        used, _ = await bench.fill()
        times = 300 if size > 50_000 else 1000
        return {
            "entries": size,
            "index": algorithm_for(size),
            "exact": await cost_of(server, [lambda: bench.exact(next(number))] * CONCURRENCY, times),
            "similar": await cost_of(server, [lambda: _similar(bench, next(number))] * CONCURRENCY, times),
            "store": await cost_of(server, [lambda: bench.store_new(next(number))] * CONCURRENCY, times),
            "entry_bytes": round(used - len(ANSWER)),
        }


async def _similar(bench: Bench, number: int) -> None:
    vector: Vector = bench.asked[number % len(bench.asked)].tobytes()
    assert await bench.cache.find_similar(OF_ENTRIES, SCOPE, vector, 1)


class _Known:
    """An embedder that must not be called."""

    current = CurrentIdentity(EMBEDDER)

    async def identity(self) -> EmbedderIdentity:
        return EMBEDDER


async def of_chunks(url: str, server: Server, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measures knowledge bases of each size: a retrieval of 4 passages, and bytes per chunk."""
    return [await _chunks(url, server, size) for size in sizes]


async def _chunks(url: str, server: Server, size: int) -> dict[str, Any]:
    async with BatchingRedis.from_url(url, max_connections=64) as redis:
        await redis.flushall()
        gate = HealthGatedRedis(redis, 32)
        await gate.check()
        index = RedisPassageIndex(gate, Keys())
        await index.ensure(EMBEDDER)
        before = server.sample().memory
        vectors, chance = questions(size, np.random.default_rng(11)), random.Random(5)
        await _fill(redis, vectors)
        used = (server.sample().memory - before) / size
        retriever = Retriever(index, _Known(), None, RetrievalPolicy())  # type: ignore[arg-type]

        async def ask() -> None:
            vector = vectors[chance.randrange(len(vectors))].tobytes()
            wanted = PassageQuery(" ".join(_words(chance, 8)), "", 4, vector=vector)
            assert (await retriever.retrieve(wanted)).sources

        return {"chunks": size, "retrieve": await cost_of(server, [ask] * CONCURRENCY, 200), "chunk_bytes": round(used)}


async def _fill(redis: Redis, vectors: Any) -> None:
    chance, keys = random.Random(3), Keys()
    for begin in range(0, len(vectors), 500):
        async with redis.pipeline(transaction=False) as pipe:
            for number in range(begin, min(begin + 500, len(vectors))):
                document, place = f"d{number // CHUNKS_A_DOCUMENT}", number % CHUNKS_A_DOCUMENT
                work = Work(document, 1, "store", DocumentFacts(tenant="", title=f"Title {document}", tags=()))
                chunk = Chunk(place, " ".join(_words(chance, CHUNK_WORDS)), "A heading", 0, 700)
                fields = chunk_fields(work, EmbeddedChunk(chunk, vectors[number].tobytes(), (0, 700), (0, 700)))
                key = keys.chunk(EMBEDDER.fingerprint, document, 1, place)
                pipe.hset(key, mapping=dict(zip(fields[::2], fields[1::2], strict=True)))
                if place == 0:
                    serving = {"tenant": "", "title": "t", "revision": 1, f"embedded:{EMBEDDER.fingerprint}": 1}
                    pipe.hset(keys.document(document), mapping=serving)  # type: ignore[arg-type]
                    pipe.set(keys.document_text(document), "x" * 700 * CHUNKS_A_DOCUMENT)
            await pipe.execute()


def _words(chance: random.Random, number: int) -> list[str]:
    """Generates words with the frequencies of a natural language: a few words make up most of a text."""
    return [f"word{int(VOCABULARY ** chance.random())}" for _ in range(number)]


def run(url: str, server: Server, entries: Sequence[int], chunks: Sequence[int]) -> dict[str, Any]:
    """Measures both."""
    return {
        "entries": asyncio.run(of_entries(url, server, entries)),
        "chunks": asyncio.run(of_chunks(url, server, chunks)),
    }
