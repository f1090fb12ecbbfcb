"""How well passages are found: recall and mean reciprocal rank by vector, by BM25, and fused.

The 503 questions of the Swedish Construction FAQ (CC-BY-4.0, Zaragoza AB; package zaragoza-construction-faq) are asked
in other words of the knowledge base that their answers make. Edits are simple and reproducible: a typing error, words
left out, another order, a politer form. Run: python -m scripts.bench_retrieval
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from redis.asyncio import Redis

from api.embedded.redis_server import embedded_redis
from api.embedders.onnx import OnnxEmbedder
from api.knowledge.fusion import MEANING, WORDS, fused
from api.ports.documents import DocumentFilter, Hit
from api.redis_store.document_fields import owner_of
from api.redis_store.gate import RedisGate
from api.redis_store.keys import Keys
from api.redis_store.passage_index import RedisPassageIndex

STOP = frozenset(("a", "an", "and", "are", "be", "can", "do", "does", "for", "how", "i", "in", "is", "it", "my", "of"))
STOP |= {"on", "or", "the", "to", "was", "what", "when", "where", "which", "who", "with"}
CANDIDATES = 40


def typo(text: str, chance: random.Random) -> str:
    """Two neighbouring letters of a long word change places."""
    words = text.split()
    long = [place for place, word in enumerate(words) if len(word) > 5]
    if long:
        place = chance.choice(long)
        at = chance.randrange(1, len(words[place]) - 2)
        word = words[place]
        words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def keywords(text: str, chance: random.Random) -> str:
    """Only the words that carry meaning."""
    return " ".join(word for word in re.findall(r"\w+", text.lower()) if word not in STOP)


def dropped(text: str, chance: random.Random) -> str:
    """Every fifth word is missing."""
    words = text.split()
    return " ".join(word for word in words if chance.random() > 0.2) or text


def shuffled(text: str, chance: random.Random) -> str:
    """The same words in any order."""
    words = re.findall(r"\w+", text)
    chance.shuffle(words)
    return " ".join(words)


def polite(text: str, chance: random.Random) -> str:
    """Wrapped in a request."""
    return f"Could you please tell me the following: {text[0].lower()}{text[1:]}"


EDITS: tuple[Callable[[str, random.Random], str], ...] = (typo, keywords, dropped, shuffled, polite)


def questions() -> list[dict[str, Any]]:
    """The FAQ in English."""
    text = (files("zaragoza_construction_faq") / "data" / "faq-en.json").read_text("utf-8")
    found: list[dict[str, Any]] = json.loads(text)["questions"]
    return found


async def main() -> None:
    faq = questions()
    with embedded_redis(persistent=False) as server:
        async with Redis.from_url(server.url) as client, OnnxEmbedder.open(None, 60.0) as embedder:
            gate = RedisGate(client, 8)
            await gate.check()
            index = RedisPassageIndex(gate, Keys())
            identity = await embedder.identity()
            await index.ensure(identity)
            await store(client, embedder, faq)
            for with_question in (False, True):
                await measure(index, embedder, faq, with_question)


async def store(client: Redis, embedder: OnnxEmbedder, faq: Sequence[dict[str, Any]]) -> None:
    """Two tenants: one whose documents are the answers alone, one whose documents have the questions as titles."""
    identity = await embedder.identity()
    for tenant, with_question in (("answers", False), ("titled", True)):
        texts = [f"{one['q']}\n{one['a']}" if with_question else one["a"] for one in faq]
        vectors = await embedder.embed(texts)
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
                "reach": "0-1",
                "vector": vector,
            }
            await client.hset(key, mapping=fields)


async def measure(
    index: RedisPassageIndex, embedder: OnnxEmbedder, faq: Sequence[dict[str, Any]], with_question: bool
) -> None:
    """One table."""
    tenant, identity = ("titled" if with_question else "answers"), await embedder.identity()
    ranks: dict[str, list[int]] = {"vector": [], "BM25": [], "fused": []}
    relevant: list[float] = []
    chance = random.Random(20)
    for number, one in enumerate(faq):
        edit = EDITS[number % len(EDITS)]
        asked = edit(one["q"], chance)
        (vector,) = await embedder.embed([asked])
        found = await index.search(identity, tenant, DocumentFilter(), asked, vector, CANDIDATES)
        by_vector, by_words = found.meaning, found.words
        orders = {
            "vector": [hit.document for hit in by_vector],
            "BM25": [hit.document for hit in by_words],
            "fused": fused(
                [(MEANING, [hit.document for hit in by_vector]), (WORDS, [hit.document for hit in by_words])]
            ),
        }
        for name, order in orders.items():
            ranks[name].append(order.index(str(number)) + 1 if str(number) in order else 0)
        relevant.append(cosine_of(str(number), [*by_vector, *by_words], vector))
    what = "answers with their questions as titles" if with_question else "answers alone"
    print(f"\n{len(faq)} questions in other words, documents: {what}")
    print(f"| {'ranking':8} | recall@1 | recall@5 |   MRR |")
    print("|----------|----------|----------|-------|")
    for name, places in ranks.items():
        first, five = (sum(0 < rank <= most for rank in places) / len(places) for most in (1, 5))
        mrr = sum(1 / rank for rank in places if rank) / len(places)
        print(f"| {name:8} | {first:8.3f} | {five:8.3f} | {mrr:.3f} |")
    lowest = np.quantile([one for one in relevant if one > -1], [0.01, 0.05, 0.5])
    print("cosine of the right document, 1 %, 5 %, 50 %: " + ", ".join(f"{one:.2f}" for one in lowest))


def cosine_of(document: str, hits: Sequence[Hit], vector: bytes) -> float:
    """Of the right document, -1 where it was not found."""
    asked = np.frombuffer(vector, dtype="<f4")
    for hit in hits:
        if hit.document == document and hit.vector is not None:
            return float(np.frombuffer(hit.vector, dtype="<f4") @ asked)
    return -1.0


if __name__ == "__main__":
    asyncio.run(main())
