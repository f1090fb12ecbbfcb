"""Measures what the grounded check adds to the guards: hits and wrong hits on questions about documents.

    .venv/bin/python -m scripts.bench_grounded [--runs 3] [--examples]

Two streams start with an empty cache and an embedded Redis that holds the documents:

- `documents`: 1,600 questions about 64 documents (`grounded_corpus.toml`). Each section of a document states two facts
  with two or three questions each; eight documents of a kind differ in name and figures only.
- `faq`: each of the 503 questions of the Swedish Construction FAQ and two rephrasings (`bench_retrieval`).

The documents are cut into chunks of about one section (64 tokens) or several (160, the default of the service). The
answer comes from the first of the 5 nearest cached questions that is above the threshold and passes the guards, without
and with the grounded check. A hit is wrong if the cached question asks for another fact. A cached answer cites the
passages that state the fact, or nothing if the search did not find them. Needs the extra `onnx`.
"""

from __future__ import annotations

import asyncio
import random
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from redis.asyncio import Redis

from api.backends.embedder import RememberedEmbedder
from api.embedded.redis_server import embedded_redis
from api.embedders.onnx import OnnxEmbedder
from api.guards.agreement import Features, disagreement, read
from api.knowledge.chunking import Chunker, estimated_tokens, in_context
from api.knowledge.retrieval import PassageQuery, RetrievalPolicy, Retriever
from api.ports.document_store import CurrentDocument, DocumentFacts
from api.query.grounding import objection
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.documents.document_records import owner_of
from api.redis_store.stores.documents.passages import RedisPassageIndex
from api.values import CachedAnswer, Source, Usage
from scripts.bench_retrieval import EDITS, questions

CORPUS = Path(__file__).with_name("grounded_corpus.toml")
THRESHOLDS = (0.80, 0.85, 0.88, 0.90, 0.92)
NEIGHBOURS, TOP_K, TENANT = 5, 4, "bench"


@dataclass(slots=True)
class Page:
    """A document: its text as Markdown, and a phrase of each section, by section."""

    title: str
    text: str
    phrases: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Asked:
    """A question, the fact it asks for, and where that is stated: the page, and a phrase of the section."""

    text: str
    fact: str
    page: int
    phrase: str
    vector: Any = None
    sources: tuple[Source, ...] = ()
    cited: frozenset[int] = frozenset()
    features: Features | None = None

    @property
    def cached(self) -> CachedAnswer:
        """The answer to the question, as it would be stored."""
        answer = " ".join(f"[{number + 1}]" for number in sorted(self.cited))
        return CachedAnswer("", self.text, answer, "", self.sources, Usage(), 0, 0)


class AllCurrent(RedisPassageIndex):
    """An index in which every chunk is in service."""

    pages: Sequence[Page] = ()

    async def is_complete(self, embedder: Any) -> bool:
        return True

    async def current(self, documents: Sequence[str], embedder: str) -> dict[str, CurrentDocument]:
        return {one: CurrentDocument(DocumentFacts(TENANT, self.pages[int(one)].title), 1) for one in documents}


def corpus() -> tuple[list[Page], list[Asked]]:
    """The pages of `grounded_corpus.toml` and their questions, a fifth of them in lower case."""
    chance = random.Random(16)
    pages: list[Page] = []
    asked: list[Asked] = []
    for kind in tomllib.loads(CORPUS.read_text("utf-8"))["kind"]:
        for name in kind["names"]:
            title = kind["title"].format(name=name)
            parts = [f"# {title}"]
            for passage in kind["passage"]:
                m, n = chance.sample(range(3, 40), 2)
                said = {"name": name, "m": m, "n": n}
                text = passage["text"].format(**said)
                parts.append(f"## {passage['heading']}\n\n{text}")
                for fact in ("a", "b"):
                    for question in passage[fact]:
                        worded = question.format(**said)
                        worded = worded.lower() if chance.random() < 0.2 else worded
                        asked.append(Asked(worded, f"{title}/{passage['heading']}/{fact}", len(pages), text[:40]))
            pages.append(Page(title, "\n\n".join(parts)))
    return pages, asked


def faq() -> tuple[list[Page], list[Asked]]:
    """The FAQ's answers, a page each, and three forms of each question."""
    chance = random.Random(16)
    pages, asked = [], []
    for number, one in enumerate(questions()):
        pages.append(Page("", one["a"]))
        edits = chance.sample(EDITS, 2)
        forms = (one["q"], *[edit(one["q"], chance) for edit in edits])
        asked += [Asked(text, str(number), number, one["a"][:40]) for text in forms]
    return pages, asked


@dataclass(slots=True)
class Tally:
    """The counts of one run. `rejected_right`: rejections of answers that were right."""

    hits: int = 0
    wrong: int = 0
    rejected: int = 0
    rejected_right: int = 0
    wrong_hits: list[str] = field(default_factory=list)


def main(
    runs: Annotated[int, typer.Option(min=1, help="Orders of the stream; the table shows their mean.")] = 3,
    examples: Annotated[bool, typer.Option(help="Print the wrong hits that remain at 0.92.")] = False,
) -> None:
    """Prints a table per stream."""
    streams = (("documents", corpus, 64), ("documents", corpus, 160), ("faq", faq, 160))
    for name, make, chunk_tokens in streams:
        pages, asked = make()
        seconds = asyncio.run(prepare(pages, asked, chunk_tokens))
        half, most = np.quantile(seconds, [0.5, 0.99]) * 1000
        print(f"\n{name}, {len(asked)} questions, {len(pages)} documents, chunks of up to {chunk_tokens} tokens")
        print(f"the search: p50 {half:.1f} ms, p99 {most:.1f} ms; the comparison: {compared_in(asked) * 1e6:.0f} us")
        print("| threshold | hits %, guards / and check | wrong % of hits | rejected | of those right |")
        print("|---|---|---|---|---|")
        for threshold in THRESHOLDS:
            plain, checked = (tallies(asked, threshold, runs, check=check) for check in (False, True))
            show(threshold, len(asked) * runs, plain, checked)
            for line in sorted(set(checked.wrong_hits)) if examples and threshold == THRESHOLDS[-1] else ():
                print("   ", line)


async def prepare(pages: Sequence[Page], asked: Sequence[Asked], chunk_tokens: int) -> list[float]:
    """Stores the pages, embeds the questions, and searches for each. Returns the seconds of each search."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(embedded_redis(persistent=False))
        client = await stack.enter_async_context(BatchingRedis.from_url(server.url))
        onnx = await stack.enter_async_context(OnnxEmbedder.open(None, 600.0))
        gate = HealthGatedRedis(client, 8)
        await gate.check()
        index = AllCurrent(gate, Keys())
        index.pages = pages
        await index.ensure(await onnx.identity())
        chunks = await store(client, onnx, pages, chunk_tokens)
        retriever = Retriever(index, RememberedEmbedder(onnx, max_entries=10), None, RetrievalPolicy())
        return [await look_up(one, retriever, onnx, chunks) for one in asked]


async def store(
    client: Redis, embedder: OnnxEmbedder, pages: Sequence[Page], chunk_tokens: int
) -> dict[tuple[str, int], str]:
    """Stores the pages' chunks. Returns their texts, by document and number."""
    identity, texts = await embedder.identity(), {}
    chunker = Chunker(estimated_tokens, chunk_tokens, chunk_tokens // 7)
    for number, page in enumerate(pages):
        chunks = chunker.chunks(page.text)
        vectors = await embedder.embed([in_context(page.title, one.heading, one.text) for one in chunks], tenant=TENANT)
        for chunk, vector in zip(chunks, vectors, strict=True):
            texts[str(number), chunk.number] = chunk.text
            fields: dict[Any, Any] = {
                "owner": owner_of(TENANT),
                "document": str(number),
                "revision": 1,
                "number": chunk.number,
                "title": page.title,
                "heading": chunk.heading,
                "text": chunk.text,
                "span": "0-1",
                "reach": "0-1",
                "vector": vector.vector,
            }
            await client.hset(Keys().chunk(identity.fingerprint, str(number), 1, chunk.number), mapping=fields)
    return texts


async def look_up(
    one: Asked, retriever: Retriever, embedder: OnnxEmbedder, chunks: Mapping[tuple[str, int], str]
) -> float:
    """Embeds a question and finds its passages. Returns the seconds of the search."""
    (embedding,) = await embedder.embed([one.text], tenant=TENANT)
    one.vector = np.frombuffer(embedding.vector, "<f4")
    one.features = read(one.text)
    began = time.perf_counter()
    found = await retriever.retrieve(PassageQuery(one.text, TENANT, TOP_K, vector=embedding.vector))
    seconds = time.perf_counter() - began
    one.sources = found.sources
    one.cited = frozenset(
        number
        for number, source in enumerate(found.sources)
        if source.document_id == str(one.page) and one.phrase in chunks[source.document_id, source.chunk]
    )
    return seconds


def compared_in(asked: Sequence[Asked]) -> float:
    """The seconds of one comparison of passages."""
    answers = [one.cached for one in asked]
    began = time.perf_counter()
    for one, answer in zip(asked, answers, strict=True):
        objection(one.sources, answer)
    return (time.perf_counter() - began) / len(asked)


def tallies(asked: Sequence[Asked], threshold: float, runs: int, *, check: bool) -> Tally:
    """Adds up the runs, each of which asks the questions in another order."""
    total = Tally()
    for seed in range(runs):
        stream = list(asked)
        random.Random(seed).shuffle(stream)
        tally = simulate(stream, threshold, check=check)
        total.hits += tally.hits
        total.wrong += tally.wrong
        total.rejected += tally.rejected
        total.rejected_right += tally.rejected_right
        total.wrong_hits += tally.wrong_hits
    return total


def simulate(stream: Sequence[Asked], threshold: float, *, check: bool) -> Tally:
    """Asks the questions one after the other. A miss is cached."""
    tally = Tally()
    vectors = np.stack([one.vector for one in stream])
    cached: list[int] = []
    for place, one in enumerate(stream):
        similarity = vectors[cached] @ vectors[place]
        for at in np.argsort(-similarity)[:NEIGHBOURS]:
            other = stream[cached[at]]
            if similarity[at] < threshold or disagreement(one.features or "", other.features or "") is not None:
                continue
            right = one.fact == other.fact
            if check and objection(one.sources, other.cached):
                tally.rejected += 1
                tally.rejected_right += right
                continue
            tally.hits += 1
            if not right:
                tally.wrong += 1
                tally.wrong_hits.append(f"{similarity[at]:.3f} {one.text} | {other.text}")
            break
        else:
            cached.append(place)
    return tally


def show(threshold: float, questions: int, plain: Tally, checked: Tally) -> None:
    """Prints a row of the table."""
    hits = " / ".join(f"{100 * one.hits / questions:.1f}" for one in (plain, checked))
    wrong = " / ".join(f"{100 * one.wrong / max(one.hits, 1):.2f}" for one in (plain, checked))
    print(f"| {threshold:.2f} | {hits} | {wrong} | {checked.rejected} | {checked.rejected_right} |")


if __name__ == "__main__":
    typer.run(main)
