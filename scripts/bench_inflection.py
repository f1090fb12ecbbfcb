"""Measures whether a question finds a passage that has its words in another form, by language.

    .venv/bin/python -m scripts.bench_inflection [--among N]

In each of five languages, five notes and eight sheets that differ in one word (tests/data/inflected_questions.json)
stand among the 503 answers of the Swedish Construction FAQ in English (CC-BY-4.0, Zaragoza AB). Each has one question,
written together with it. Without a language, the stemmer for English serves all passages, as it did before.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
from redis.asyncio import Redis

from api.backends.embedder import RememberedEmbedder
from api.embedded.redis_server import embedded_redis
from api.embedders.onnx import OnnxEmbedder
from api.knowledge.retrieval import PassageQuery, RetrievalPolicy, Retriever
from api.languages.documents import language_of_document
from api.ports.document_store import DocumentFilter
from api.ports.inference import Embedder
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.documents.document_records import owner_of, stemmer_of
from api.redis_store.stores.documents.passages import RedisPassageIndex
from scripts.bench_retrieval import questions

FILE: Final = Path(__file__).parents[1] / "tests/data/inflected_questions.json"
TOP: Final = 4
EMBEDDED: Final = 100
"""Texts per call."""


class Note(NamedTuple):
    """A note with its question. `id` is that of its document."""

    id: str
    language: str
    title: str
    text: str
    question: str


def notes() -> dict[str, list[Note]]:
    """Returns the notes, and the sheets, which differ in one word each."""
    sets = json.loads(FILE.read_text("utf-8"))
    written = [
        Note(f"note{code}{at}", code, *one) for code, some in sets["notes"].items() for at, one in enumerate(some)
    ]
    sheets = [
        Note(f"sheet{code}{at}", code, f"{at}", text.format(noun, at + 3), question.format(asked))
        for code, (text, question, nouns) in sets["sheets"].items()
        for at, (noun, asked) in enumerate(nouns)
    ]
    return {"notes": written, "sheets": sheets}


def main(among: Annotated[int, typer.Option(help="Answers of the FAQ.")] = 503) -> None:
    """Prints the tables."""
    asyncio.run(run(among))


async def run(among: int) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(embedded_redis(persistent=False))
        client = await stack.enter_async_context(Redis.from_url(server.url))
        embedder = RememberedEmbedder(
            await stack.enter_async_context(OnnxEmbedder.open(None, 600.0)), max_entries=10_000
        )
        gate = HealthGatedRedis(client, 8)
        await gate.check()
        index = RedisPassageIndex(gate, Keys())
        await index.ensure(await embedder.identity())
        for tenant in ("without", "with"):
            others = [Note(f"faq{at}", "en", "", one["a"], "") for at, one in enumerate(questions()[:among])]
            sets = notes()
            await store(client, embedder, [*sets["notes"], *sets["sheets"], *others], tenant)
            for name, some in sets.items():
                await measure(index, embedder, tenant, name, some)


async def store(client: Redis, embedder: Embedder, texts: list[Note], tenant: str) -> None:
    """Stores one passage for each, as the service does; with its language in the tenant `with`."""
    identity, keys, owner = await embedder.identity(), Keys(), owner_of(tenant)
    for start in range(0, len(texts), EMBEDDED):
        part = texts[start : start + EMBEDDED]
        found = await embedder.embed([f"{one.title}\n{one.text}".strip() for one in part], tenant=tenant)
        for one, embedding in zip(part, found, strict=True):
            document = f"{tenant}{one.id}"
            stemmer = stemmer_of(language_of_document(one.text)) if tenant == "with" else ""
            await client.hset(
                keys.document(document),
                mapping={"tenant": tenant, "title": one.title, "revision": 1, f"embedded:{identity.fingerprint}": 1},
            )
            chunk = ("owner", owner, "document", document, "revision", 1, "number", 0, "title", one.title)
            where = ("heading", "", "text", one.text, "span", "0-1", "reach", "0-1", "stemmer", stemmer)
            name = keys.chunk(identity.fingerprint, document, 1, 0)
            await client.hset(name, items=[*chunk, *where, "vector", embedding.vector])
            if stemmer:
                await client.hset(keys.corpus(owner), f"stemmer:{stemmer}", 1)


async def measure(index: RedisPassageIndex, embedder: Embedder, tenant: str, name: str, some: list[Note]) -> None:
    """Prints how many questions of each language find their note."""
    retriever = Retriever(index, embedder, None, RetrievalPolicy())
    identity, languages = await embedder.identity(), await index.languages(tenant)
    print(f"\n{name}, {tenant} the language\n| language | questions | first by words | first | among {TOP} |")
    print("|---|---|---|---|---|")
    ranks: dict[str, list[tuple[bool, bool, bool]]] = {}
    for note in some:
        document = f"{tenant}{note.id}"
        words = await index.search_words(
            identity.fingerprint, tenant, DocumentFilter(), note.question, TOP, languages=languages
        )
        found = [
            one.document_id for one in (await retriever.retrieve(PassageQuery(note.question, tenant, TOP))).sources
        ]
        first = [hit.document for hit in words[:1]] == [document]
        ranks.setdefault(note.language, []).append((first, found[:1] == [document], document in found))
    for name, counts in rows(ranks):
        print(f"| {name} | {' | '.join(map(str, counts))} |")


def rows(ranks: dict[str, list[tuple[bool, bool, bool]]]) -> Iterator[tuple[str, list[int]]]:
    """Yields the counts of each language, and of all."""
    for name, of_language in [*ranks.items(), ("all", [one for each in ranks.values() for one in each])]:
        yield name, [len(of_language), *map(sum, zip(*of_language, strict=True))]


if __name__ == "__main__":
    typer.run(main)
