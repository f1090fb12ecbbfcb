"""Passages are stemmed by their documents' languages, also beside workers whose index knows English only."""

from __future__ import annotations

from io import BytesIO
from typing import Any
from zipfile import ZipFile

import httpx
import numpy as np
import pytest
from redis.asyncio import Redis

from api.knowledge.retrieval import PassageQuery
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.schema import SCHEMA
from api.redis_store.stores.documents.embeddings import RedisUnusedEmbeddings
from api.redis_store.stores.documents.passage_search import passage_schema
from api.redis_store.stores.documents.passages import RedisPassageIndex
from api.redis_store.stores.fleet import WorkerRegistry
from api.values import EmbedderIdentity, Vector
from tests.integration.test_documents import ONNX, add
from tests.integration.test_retrieval import EMBEDDER
from tests.stub_ollama import StubOllama
from tests.support.knowledge_worker import DIMENSION, GatedEmbedder, worker
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

KEYS = Keys()
HOUSES = "Die Verwaltung betreut alle Häuser in der Altstadt und meldet Schäden noch am gleichen Tag."
HORSES = "Les chevaux du centre sont nourris trois fois par jour par les soigneurs de la ferme."
LEAVE = "员工请假需要经理批准。年假是十五天。"


async def titles(client: httpx.AsyncClient, question: str) -> list[str]:
    return [source["title"] for source in (await ask(client, question))["sources"]]


async def test_a_word_in_another_form_is_found_in_the_language_of_the_document(
    serve: Service, stub: StubOllama
) -> None:
    client = await serve()
    for title, text in (("Eins", HOUSES), ("Deux", HORSES), ("Three", "The keys are kept by the porter.")):
        await add(client, title, text)
    stub.behaviour("status", path="/api/embed")  # words alone
    assert await titles(client, "Wer betreut das Haus?") == ["Eins"]
    assert await titles(client, "Quand mange un cheval ?") == ["Deux"]
    assert await titles(client, "Which key is kept?") == ["Three"]


async def test_words_of_a_chinese_question_are_found_without_spaces(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    await add(client, "Leave", LEAVE)
    await add(client, "Invoices", "我们每个月发送发票给客户。")
    stub.behaviour("status", path="/api/embed")
    assert await titles(client, "请假要谁批准？") == ["Leave"]


async def test_a_document_shows_its_language(serve: Service) -> None:
    client = await serve()
    assert (await add(client, "Detected", HOUSES))["language"] == "de"
    assert (await add(client, "Unknown", "QX-7 42"))["language"] is None
    given = await add(client, "Given", "QX-8 43", language="pt_br")
    assert given["language"] == "pt-BR"
    assert (await client.get(f"/documents/{given['id']}")).json()["language"] == "pt-BR"
    again = await client.post("/documents", json={"title": "Detected", "text": HOUSES, "language": "sv"})
    assert (again.json()["language"], again.json()["outcome"]) == ("sv", "updated")
    refused = await client.post("/documents", json={"title": "x", "text": "y", "language": "German, mostly"})
    assert (refused.status_code, "language" in refused.text) == (422, True)


def docx(language: str, text: str) -> bytes:
    """A document with this default language of its styles."""
    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        run = f"<w:r><w:t>{text}</w:t></w:r>"
        archive.writestr("word/document.xml", f"<w:document {word}><w:body><w:p>{run}</w:p></w:body></w:document>")
        defaults = f'<w:rPrDefault><w:rPr><w:lang w:val="{language}"/></w:rPr></w:rPrDefault>'
        archive.writestr("word/styles.xml", f"<w:styles {word}><w:docDefaults>{defaults}</w:docDefaults></w:styles>")
        link = f'<Relationship Id="a" Type="{office}" Target="word/document.xml"/>'
        archive.writestr("_rels/.rels", f'<Relationships xmlns="{package}/relationships">{link}</Relationships>')
        kinds = '<Default Extension="xml" ContentType="application/xml"/>'
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{package}/content-types">{kinds}</Types>')
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "language"),
    [
        ("a.html", b"<html lang='is'><body><p>Gr 12</p></body></html>", "is"),
        ("a.md", b"---\nlang: cy\n---\n\nGr 12\n", "cy"),
        ("a.docx", docx("eu-ES", "Gr 12"), "eu-ES"),
        ("b.docx", docx("en-US", HOUSES), "de"),
    ],
)
async def test_a_file_may_declare_its_language(serve: Service, name: str, content: bytes, language: str) -> None:
    client = await serve()
    stored = await client.post("/documents", files={"file": (name, content)})
    assert stored.json()["language"] == language
    given = await client.post("/documents", files={"file": (name, content)}, data={"language": "nl"})
    assert given.json()["language"] == "nl"


class Multilingual(GatedEmbedder):
    """Puts what speaks of invoices close together, in any language, and everything else farther away."""

    def _vector(self, text: str) -> Vector:
        about_invoices = any(word in text.casefold() for word in ("invoice", "rechnung"))
        row = np.zeros(DIMENSION, dtype="<f4")
        row[0], row[1] = (0.9, 0.44) if about_invoices else (0.6, 0.8)
        row[2 + len(text) % (DIMENSION - 2)] = 0.1
        return bytes((row / np.linalg.norm(row)).astype("<f4").tobytes())


async def test_a_question_finds_a_passage_in_another_language_if_the_embedder_does(
    redis: Redis, redis_url: str
) -> None:
    """Passages in the question's own language share words with it; those must not outweigh the meaning."""
    async with worker(redis_url, "one", Multilingual("multilingual"), chunk_tokens=64) as one:
        await one.store("english", "The accounting department pays an invoice within thirty days.")
        for number in range(6):
            await one.store(
                f"german{number}", f"Bis wann wird die Halle {number} bezahlt? Das entscheidet die Leitung."
            )
        wanted = PassageQuery("Bis wann wird eine Rechnung bezahlt?", "default", 3)
        found = await one.knowledge.retriever.retrieve(wanted)
    assert found.sources[0].source == "english"


# -- beside workers before schema 1.1 ----------------------------------------------------------------------------------


async def make_earlier_index(redis: Redis, embedder: EmbedderIdentity) -> str:
    """Creates the index as workers before schema 1.1 do: without languages."""
    schema, name = passage_schema(KEYS, embedder), KEYS.chunk_index(embedder.fingerprint)
    fields = [part for field in schema.redis_fields if field.name != "stemmer" for part in field.redis_args()]
    prefix = schema.index.prefix
    await redis.execute_command("FT.CREATE", name, "ON", "HASH", "PREFIX", 1, prefix, "STOPWORDS", 0, "SCHEMA", *fields)  # type: ignore[no-untyped-call]
    return name


async def identity_of(redis: Redis) -> EmbedderIdentity:
    listed: Any = await redis.execute_command("FT._LIST")  # type: ignore[no-untyped-call]
    (name,) = [one.decode() for one in listed if one.decode().startswith(KEYS.passage_indexes)]
    return EmbedderIdentity("minilm", 384, name.removeprefix(KEYS.passage_indexes))


async def indexes(redis: Redis) -> set[str]:
    listed: Any = await redis.execute_command("FT._LIST")  # type: ignore[no-untyped-call]
    return {one.decode() for one in listed}


async def test_documents_of_earlier_workers_are_found_at_once_and_the_new_index_is_built(
    serve: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Eins", HOUSES)
    embedder = await identity_of(redis)
    await redis.execute_command("FT.DROPINDEX", KEYS.passage_index(embedder.fingerprint))  # type: ignore[no-untyped-call]
    name = await make_earlier_index(redis, embedder)
    fresh = await serve(embedder=ONNX)  # the first worker of this release
    assert await titles(fresh, "Who looks after Häuser in the Altstadt?") == ["Eins"]
    assert {name, KEYS.passage_index(embedder.fingerprint)} <= await indexes(redis)


async def test_while_the_new_index_is_built_the_earlier_one_serves(redis: BatchingRedis, redis_url: str) -> None:
    async with BatchingRedis.from_url(redis_url, protocol=3) as client:
        gate = HealthGatedRedis(client, 2)
        await gate.check()
        passages = RedisPassageIndex(gate, KEYS)
        name = await make_earlier_index(redis, EMBEDDER)

        async def is_built() -> bool:
            return await passages.is_complete(EMBEDDER)

        await wait_until_async(is_built)
        assert passages._index(EMBEDDER.fingerprint, ["german"]) == (name, ())

        async def is_replaced() -> bool:
            passages._complete.clear()
            await passages.is_complete(EMBEDDER)
            return passages._index(EMBEDDER.fingerprint, ["german"])[0] == KEYS.passage_index(EMBEDDER.fingerprint)

        await wait_until_async(is_replaced)


async def test_the_earlier_index_is_dropped_once_no_worker_uses_it(redis: BatchingRedis, redis_url: str) -> None:
    async with BatchingRedis.from_url(redis_url, protocol=3) as client:
        gate = HealthGatedRedis(client, 2)
        await gate.check()
        passages, unused = RedisPassageIndex(gate, KEYS), RedisUnusedEmbeddings(gate, KEYS)
        name = await make_earlier_index(redis, EMBEDDER)
        assert await unused.drop_earlier() == [], "nothing replaces it yet"
        await passages.ensure(EMBEDDER)
        earlier = WorkerRegistry(gate, KEYS, "earlier", lambda: {"schema": "1.0"})
        await earlier.heartbeat()
        await WorkerRegistry(gate, KEYS, "own", lambda: {"schema": str(SCHEMA)}).heartbeat()
        assert await unused.drop_earlier() == []
        await earlier.leave()

        async def is_dropped() -> bool:
            return await unused.drop_earlier() == [name]

        await wait_until_async(is_dropped)
        assert await indexes(redis) == {KEYS.passage_index(EMBEDDER.fingerprint)}
