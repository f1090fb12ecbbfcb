"""Measures the quality of retrieval: recall and mean reciprocal rank by vector, by BM25, mixed, and reranked.

    .venv/bin/python -m scripts.bench_retrieval [--rerank PATH]

Rephrases the 503 questions of the Swedish Construction FAQ (CC-BY-4.0, Zaragoza AB; package zaragoza-construction-faq)
and searches a knowledge base of their answers. The edits are simple and reproducible: a typo, missing words, another
order, a more polite form. `--rerank PATH` also measures a cross-encoder.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
import typer
from redis.asyncio import Redis

from api.backends.embedder import RememberedEmbedder
from api.embedded.redis_server import embedded_redis
from api.embedders.onnx import OnnxEmbedder
from api.embedders.reranker import OnnxReranker
from api.knowledge.chunking import in_context
from api.knowledge.diversity import diverse
from api.knowledge.ranking import leading, mixed, searched_terms
from api.ports.document_store import DocumentFilter, Hit
from api.ports.inference import Embedder
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.documents.document_records import owner_of
from api.redis_store.stores.documents.passages import RedisPassageIndex

STOP = frozenset(("a", "an", "and", "are", "be", "can", "do", "does", "for", "how", "i", "in", "is", "it", "my", "of"))
STOP |= {"on", "or", "the", "to", "was", "what", "when", "where", "which", "who", "with"}
CANDIDATES, RERANKED, SHOWN = 40, 20, 5
TENANTS = {"answers": "answers alone", "titled": "answers with their questions as titles"}


def typo(text: str, chance: random.Random) -> str:
    """Swaps two adjacent letters of a long word."""
    words = text.split()
    long = [place for place, word in enumerate(words) if len(word) > 5]
    if long:
        place = chance.choice(long)
        at = chance.randrange(1, len(words[place]) - 2)
        word = words[place]
        words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def keywords(text: str, chance: random.Random) -> str:
    """Keeps only the content words."""
    return " ".join(word for word in re.findall(r"\w+", text.lower()) if word not in STOP)


def dropped(text: str, chance: random.Random) -> str:
    """Drops every fifth word."""
    words = text.split()
    return " ".join(word for word in words if chance.random() > 0.2) or text


def shuffled(text: str, chance: random.Random) -> str:
    """Shuffles the words."""
    words = re.findall(r"\w+", text)
    chance.shuffle(words)
    return " ".join(words)


def polite(text: str, chance: random.Random) -> str:
    """Wraps the question in a request."""
    return f"Could you please tell me the following: {text[0].lower()}{text[1:]}"


EDITS: tuple[Callable[[str, random.Random], str], ...] = (typo, keywords, dropped, shuffled, polite)


def questions(name: str = "faq-en.json") -> list[dict[str, Any]]:
    """Returns the FAQ in English. `faq.json` is in Swedish."""
    text = (files("zaragoza_construction_faq") / "data" / name).read_text("utf-8")
    found: list[dict[str, Any]] = json.loads(text)["questions"]
    return found


@dataclass(slots=True)
class Measured:
    """One table: for each question and round, the rank of the right document by each ranking; 0 if not found."""

    ranks: defaultdict[str, list[list[int]]] = field(default_factory=lambda: defaultdict(list))
    cosines: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Bench:
    """The client and models under test. `reranker` is None without `--rerank`."""

    index: RedisPassageIndex
    embedder: Embedder
    reranker: OnnxReranker | None
    faq: Sequence[dict[str, Any]]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="In five, each question is asked in all five ways.")] = 5,
    seed: int = 20,
    rerank: Annotated[str | None, typer.Option(help="A folder with model.onnx and tokenizer.json.")] = None,
) -> None:
    """Prints one table for documents that are answers only, and one with the questions as titles."""
    asyncio.run(run(rounds, seed, rerank))


async def run(rounds: int, seed: int, rerank: str | None) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(embedded_redis(persistent=False))
        client = await stack.enter_async_context(BatchingRedis.from_url(server.url))
        onnx = await stack.enter_async_context(OnnxEmbedder.open(None, 600.0))
        reranker = await stack.enter_async_context(OnnxReranker.open(rerank, 600.0)) if rerank else None
        gate = HealthGatedRedis(client, 8)
        await gate.check()
        index = RedisPassageIndex(gate, Keys())
        await index.ensure(await onnx.identity())
        faq = questions()
        await store(client, onnx, faq)
        bench = Bench(index, RememberedEmbedder(onnx, max_entries=100_000), reranker, faq)
        for tenant, what in TENANTS.items():
            measured = Measured()
            for number in range(rounds):
                await measure(bench, tenant, number, random.Random(seed + number), measured)
            show(what, measured)


async def store(client: Redis, embedder: OnnxEmbedder, faq: Sequence[dict[str, Any]]) -> None:
    """Stores the FAQ for two tenants: one with answers only, one with the questions as titles."""
    identity = await embedder.identity()
    for tenant in TENANTS:
        with_question = tenant == "titled"
        texts = [f"{one['q']}\n{one['a']}" if with_question else one["a"] for one in faq]
        vectors = [one.vector for one in await embedder.embed(texts, tenant=tenant)]
        for number, (one, vector) in enumerate(zip(faq, vectors, strict=True)):
            key = Keys().chunk(identity.fingerprint, f"{tenant}{number}", 1, 0)
            fields: dict[Any, Any] = {
                "owner": owner_of(tenant),
                "document": f"{number}",
                "revision": 1,
                "number": 0,
                "title": one["q"] if with_question else "",
                "heading": "",
                "text": one["a"],
                "span": "0-1",
                "reach": "0-1",
                "vector": vector,
            }
            await client.hset(key, mapping=fields)


async def measure(bench: Bench, tenant: str, turn: int, chance: random.Random, measured: Measured) -> None:
    """Runs one round: each question with one of the five edits, another one each round."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(bench.faq):
        asked = EDITS[(number + turn) % len(EDITS)](one["q"], chance)
        rankings, hits, cosines, frequent = await search(bench, tenant, asked)
        texts = {
            name: in_context(bench.faq[int(name)]["q"] if tenant == "titled" else "", "", hits[name].text)
            for name in rankings["mixed"]
        }
        rankings["served"] = served(asked, rankings["mixed"], hits, texts, cosines, frequent)
        if bench.reranker is not None:
            began = time.perf_counter()
            rankings["re-ranked"] = await reranked(bench.reranker, asked, rankings["served"], texts)
            measured.seconds.append(time.perf_counter() - began)
        for name, order in rankings.items():
            found[name].append(order.index(str(number)) + 1 if str(number) in order else 0)
        measured.cosines.append(cosines.get(str(number), -1.0))
    for name, ranks in found.items():
        measured.ranks[name].append(ranks)


def served(
    asked: str,
    order: Sequence[str],
    hits: dict[str, Hit],
    texts: dict[str, str],
    cosines: dict[str, float],
    frequent: frozenset[str],
) -> list[str]:
    """Returns the documents as the service chooses them, the first `SHOWN` of them diverse."""
    rare = leading(asked, texts, frequent)
    led = rare.order(order)
    vectors = {name: np.frombuffer(hit.vector or b"", dtype="<f4") for name, hit in hits.items()}
    scored = [(name, cosines[name]) for name in led]
    lead = max(1, len({*rare.by_code, *rare.by_name}))
    first = diverse(scored, SHOWN, texts.__getitem__, lambda one, other: float(vectors[one] @ vectors[other]), lead)
    return list(dict.fromkeys([*(name for name, _ in first), *led]))


async def search(
    bench: Bench, tenant: str, asked: str
) -> tuple[dict[str, list[str]], dict[str, Hit], dict[str, float], frozenset[str]]:
    """Returns the documents by each ranking, the hits and the cosines by document, and the
    terms that are not rare."""
    (embedding,) = await bench.embedder.embed([asked], tenant=tenant)
    identity, terms = await bench.embedder.identity(), searched_terms(asked)
    among = (tenant, DocumentFilter())
    found = await bench.index.search(identity, *among, asked, embedding.vector, CANDIDATES, terms)
    meaning, words = ([hit.document for hit in hits] for hits in (found.meaning, found.words))
    hits = {hit.document: hit for hit in [*found.rare, *found.words, *found.meaning]}
    cosines = {name: cosine_of(name, [hit], embedding.vector) for name, hit in hits.items()}
    order = mixed(cosines, [[(hit.document, hit.score) for hit in found.words]])
    rankings = {"vector": meaning, "BM25": words, "mixed": order}
    return rankings, hits, cosines, found.frequent


async def reranked(reranker: OnnxReranker, asked: str, order: Sequence[str], texts: dict[str, str]) -> list[str]:
    """Returns the first documents in the order of the reranker, as the service does it."""
    read = list(order[:RERANKED])
    verdicts = await reranker.scores(asked, [texts[one] for one in read])
    return [one for _, one in sorted(zip(verdicts, read, strict=True), key=lambda pair: -pair[0])]


def show(what: str, measured: Measured) -> None:
    rounds = len(measured.ranks["mixed"])
    scores = {name: [scored(ranks) for ranks in of_rounds] for name, of_rounds in measured.ranks.items()}
    print(f"\n{len(measured.cosines)} rephrased questions ({rounds} rounds), documents: {what}")
    print(f"| {'ranking':9} | recall@1 | recall@5 |   MRR |")
    print("|-----------|----------|----------|-------|")
    for name, of_rounds in scores.items():
        first, five, mrr = np.mean(of_rounds, axis=0)
        print(f"| {name:9} | {first:8.3f} | {five:8.3f} | {mrr:.3f} |")
    alone = np.maximum(scores["vector"], scores["BM25"])
    least = ", ".join(f"{one:+.3f}" for one in np.min(np.array(scores["mixed"]) - alone, axis=0))
    print(f"mixed minus the better of the two, worst round: {least}")
    lowest = np.quantile([one for one in measured.cosines if one > -1], [0.01, 0.05, 0.5])
    print("cosine of the right document, 1 %, 5 %, 50 %: " + ", ".join(f"{one:.2f}" for one in lowest))
    if measured.seconds:
        half, most = np.quantile(measured.seconds, [0.5, 0.99]) * 1000
        print(f"reranking {RERANKED}: p50 {half:.0f} ms, p99 {most:.0f} ms")


def scored(ranks: Sequence[int]) -> tuple[float, float, float]:
    """Returns recall at 1, recall at 5, and mean reciprocal rank."""
    first, five = (sum(0 < rank <= most for rank in ranks) / len(ranks) for most in (1, 5))
    return first, five, sum(1 / rank for rank in ranks if rank) / len(ranks)


def cosine_of(document: str, hits: Sequence[Hit], vector: bytes) -> float:
    """Returns the cosine of the right document, or -1 if it was not found."""
    asked = np.frombuffer(vector, dtype="<f4")
    for hit in hits:
        if hit.document == document and hit.vector is not None:
            return float(np.frombuffer(hit.vector, dtype="<f4") @ asked)
    return -1.0


if __name__ == "__main__":
    typer.run(main)
