"""The knowledge base: documents ground the answers, and a change of a document invalidates the answers that cite it.

Read this file third, after the answers and streaming.
"""

from __future__ import annotations

from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask

QUESTION = "Who approves my holiday?"
HOLIDAY = {"title": "Holiday policy", "text": "The team lead approves my holiday.", "source": "policies/holiday.md"}


async def test_an_answer_cites_the_document_it_is_based_on(serve: Service, stub: StubOllama) -> None:
    one, other = await serve(), await serve()
    stored = await one.post("/documents", json=HOLIDAY)
    assert (stored.status_code, stored.json()["status"]) == (201, "ready")
    stub.behaviour(answer="Your team lead [1], or the king [4].", path="/api/chat")
    answered = await ask(other, QUESTION)
    assert answered["answer"] == "Your team lead [1], or the king."
    (source,) = answered["sources"]
    assert (source["document_id"], source["title"], source["chunk"]) == (stored.json()["id"], "Holiday policy", 0)
    assert source["text"] == HOLIDAY["text"]


async def test_a_cached_answer_keeps_its_sources(serve: Service) -> None:
    one, other = await serve(), await serve()
    await one.post("/documents", json=HOLIDAY)
    first, second = await ask(one, QUESTION), await ask(other, QUESTION)
    assert second["cache"]["status"] == "hit"
    assert second["sources"] == first["sources"] != []


async def test_changing_a_document_invalidates_the_answers_that_cite_it(serve: Service) -> None:
    one, other = await serve(), await serve()
    await one.post("/documents", json=HOLIDAY)
    await ask(one, QUESTION)
    await one.post("/documents", json={**HOLIDAY, "text": "The office approves my holiday."})
    answered = await ask(other, QUESTION)
    assert answered["cache"]["status"] == "miss"
    assert answered["sources"][0]["text"] == "The office approves my holiday."


async def test_deleting_a_document_invalidates_the_answers_that_cite_it(serve: Service) -> None:
    one, other = await serve(), await serve()
    document = (await one.post("/documents", json=HOLIDAY)).json()["id"]
    await ask(one, QUESTION)
    assert (await one.delete(f"/documents/{document}")).status_code == 204
    answered = await ask(other, QUESTION)
    assert (answered["cache"]["status"], answered["sources"]) == ("miss", [])
    assert (await other.get(f"/documents/{document}")).status_code == 404
