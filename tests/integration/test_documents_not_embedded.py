"""Documents that cannot be embedded, permanently or temporarily: each gets a final status with a reason and blocks no
other.
"""

from __future__ import annotations

from typing import Any

import httpx
from redis.asyncio import Redis

from api.errors import TextNotEmbedded
from api.redis_store.keys import Keys
from tests.integration.test_texts_not_embedded import CRASHED, NAN, WAYS, breaker
from tests.stub_ollama import StubOllama
from tests.support.knowledge_worker import GatedEmbedder, lease_ended, worker
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

SMALL = {"chunk_tokens": 16, "chunk_overlap": 0}
BAD = 7


def sections(count: int, bad: int | None = None) -> str:
    """One chunk each. The bad one holds a word that is nowhere else."""
    words = [f"Rule number {number} says how the canteen is run on day {number}." for number in range(count)]
    if bad is not None:
        words[bad] = "The zebra is unembeddable, and nobody knows why."
    return "\n\n".join(f"## Part {number}\n\n{text}" for number, text in enumerate(words))


async def give(client: httpx.AsyncClient, text: str, source: str = "rules") -> dict[str, Any]:
    answer = await client.post("/documents", json={"title": "Rules", "text": text, "source": source})
    assert answer.status_code in {201, 202}, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ended(client: httpx.AsyncClient, document: str, timeout: float = 20.0) -> dict[str, Any]:
    """Once it is not worked on any more."""
    found: dict[str, Any] = {}

    async def is_ended() -> bool:
        found.update((await client.get(f"/documents/{document}")).json())
        return bool(found["status"] != "processing")

    await wait_until_async(is_ended, timeout=timeout)
    return found


@WAYS
async def test_the_text_that_cannot_be_embedded_is_named_and_all_others_serve(
    serve: Service, stub: StubOllama, way: dict[str, Any]
) -> None:
    client = await serve(documents=SMALL, breaker={"failure_threshold": 2})
    await ask(client, "How do I reset my password?")
    stub.behaviour("bad_text", path="/api/embed", **way)
    found = await ended(client, (await give(client, sections(20, BAD)))["id"])
    assert (found["status"], found["chunks"], found["not_embedded"]) == ("ready", 20, 1)
    assert [one["chunk"] for one in found["failed_chunks"]] == [BAD]
    assert way["message"] in found["failed_chunks"][0]["reason"]
    state = await breaker(client)
    assert (state["state"], state["failure_count"]) == ("CLOSED", 0)
    answered = await ask(client, "Where is the zebra?")
    assert BAD in [source["chunk"] for source in answered["sources"]], "it is found by its words"
    assert (await ask(client, "How is the canteen run on day 5?"))["cache"]["status"] == "miss"
    again = await ask(client, "How is the canteen run on day 5?")
    assert again["cache"]["status"] == "hit", "such a passage keeps no answer from being shared"
    answered = await ask(client, "What does rule number 3 say of day 3?")
    assert 3 in [source["chunk"] for source in answered["sources"]]
    assert "ragherd_chunks_not_embedded_total 1.0" in (await client.get("/metrics")).text


async def test_a_better_revision_names_none(serve: Service, stub: StubOllama) -> None:
    client = await serve(documents=SMALL)
    stub.behaviour("bad_text", path="/api/embed", **NAN)
    before = await ended(client, (await give(client, sections(4, 2)))["id"])
    after = await ended(client, (await give(client, sections(4)))["id"])
    assert (before["not_embedded"], after["not_embedded"], after["failed_chunks"]) == (1, 0, [])


async def test_a_document_of_which_nothing_can_be_embedded_fails(serve: Service, stub: StubOllama) -> None:
    client = await serve(documents=SMALL)
    stub.behaviour("bad_text", bad_text="Rules", path="/api/embed", **NAN)
    found = await ended(client, (await give(client, sections(5)))["id"])
    assert (found["status"], found["chunks"]) == ("failed", 0)
    assert found["error"].startswith("None of its 5 passages could be embedded: Ollama answered 500")


async def test_while_the_embedder_fails_a_document_waits_with_the_reason_and_without_a_place(
    serve: Service, stub: StubOllama
) -> None:
    client = await serve(documents={**SMALL, "ingest_wait": 0}, breaker={"enabled": False})
    await ask(client, "How do I reset my password?")  # who embeds is known
    stub.behaviour("status", path="/api/embed", **CRASHED)
    waiting = [(await give(client, sections(3), source))["id"] for source in ("a", "b", "c", "d")]

    async def all_are_put_off() -> bool:
        found = [(await client.get(f"/documents/{document}")).json() for document in waiting]
        assert {one["status"] for one in found} == {"processing"}
        return all(one["delayed_by"] == "Ollama answered 500: the runner failed" for one in found)

    await wait_until_async(all_are_put_off, timeout=20)
    stub.behaviour()
    newest = await ended(client, (await give(client, sections(3), "e"))["id"])
    assert newest["status"] == "ready", "all places would be taken by those that wait"
    for document in waiting:
        found = await ended(client, document, timeout=30)
        assert (found["status"], found["delayed_by"]) == ("ready", None)


async def test_past_its_patience_it_fails_with_the_reason(serve: Service, stub: StubOllama) -> None:
    client = await serve(
        documents={**SMALL, "ingest_wait": 0, "document_embed_patience": 1}, breaker={"enabled": False}
    )
    await ask(client, "How do I reset my password?")
    stub.behaviour("status", path="/api/embed", **CRASHED)
    found = await ended(client, (await give(client, sections(3)))["id"], timeout=30)
    assert found["status"] == "failed"
    assert found["error"] == "It could not be embedded for 1 s: Ollama answered 500: the runner failed"
    stub.behaviour()
    assert (await ended(client, (await give(client, sections(3)))["id"]))["status"] == "ready"


async def test_a_slow_embedder_embeds_a_document_in_the_end(serve: Service, stub: StubOllama) -> None:
    client = await serve(documents=SMALL, embedder={"embed_timeout": 0.5})
    await ask(client, "How do I reset my password?")
    stub.behaviour(embed_pace=0.2, path="/api/embed")  # a batch of three takes longer than EMBED_TIMEOUT
    found = await ended(client, (await give(client, sections(25)))["id"], timeout=30)
    assert (found["status"], found["chunks"], found["not_embedded"]) == ("ready", 25, 0)
    assert stub.stats["max_texts"] <= 4


class Unable(GatedEmbedder):
    """Cannot embed a text that holds a certain word."""

    async def embed(self, texts: Any, *, tenant: str) -> Any:
        if any("unembeddable" in text for text in texts):
            raise TextNotEmbedded("not a number")
        return await super().embed(texts, tenant=tenant)


async def test_who_takes_a_document_over_knows_what_could_not_be_embedded(redis: Redis, redis_url: str) -> None:
    async with worker(redis_url, "one", Unable("e")) as one, worker(redis_url, "other", Unable("e")) as other:
        document = await one.stopped("rules", sections(12, 3), after=6)
        await lease_ended(redis, document)
        await other.knowledge.ingestion_worker.carry_out_waiting()
        found = await other.knowledge.documents.find(document)
        assert (found.status, found.chunks, found.not_embedded) == ("ready", 12, 1)
        assert [(chunk.number, chunk.reason) for chunk in found.failed_chunks] == [(3, "not a number")]
        fields = await redis.hkeys(Keys().chunk(one.embedder.embedder.fingerprint, document, found.revision, 3))
        assert (b"failure" in fields, b"vector" in fields) == (True, False)
