"""A question with history is found by meaning only after the same conversation (SEMANTIC_CACHE_FOLLOW_UPS)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.integration.test_documents import ONNX, add
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask

Turn = dict[str, str]
FIRST, REWORDED = "How do I cancel my subscription?", "How can I cancel my subscription?"
NEAR = "How do I renew my subscription?"
ANSWER = "You can do that in your account."
FOLLOW_UP, FOLLOW_UP_REWORDED = "How do I find that on my phone?", "How can I find that on my phone?"


def after(question: str, answer: str = ANSWER) -> list[Turn]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


async def talked(serve: Service, stub: StubOllama, **cache: Any) -> httpx.AsyncClient:
    """A worker that has answered a question and its follow-up. Equal answers make the contexts hard to tell apart."""
    client = await serve(embedder=ONNX, cache=cache)
    stub.behaviour(answer=ANSWER, path="/api/chat")
    for question, history in ((FIRST, []), (NEAR, []), (FOLLOW_UP, after(FIRST))):
        assert (await ask(client, question, history=history))["cache"]["status"] == "miss"
    return client


async def status(client: httpx.AsyncClient, question: str, history: list[Turn], **more: Any) -> tuple[str, str | None]:
    found = (await ask(client, question, history=history, **more))["cache"]
    return found["status"], found["kind"]


async def test_in_other_words_after_the_same_conversation(serve: Service, stub: StubOllama) -> None:
    client = await talked(serve, stub)
    assert await status(client, FOLLOW_UP_REWORDED, after(FIRST)) == ("hit", "semantic")


async def test_after_the_same_conversation_in_other_words(serve: Service, stub: StubOllama) -> None:
    client = await talked(serve, stub)
    assert await status(client, FOLLOW_UP, after(REWORDED)) == ("hit", "exact")
    assert await status(client, FOLLOW_UP_REWORDED, after(REWORDED)) == ("hit", "semantic")


async def test_after_the_same_conversation_typed_otherwise(serve: Service, stub: StubOllama) -> None:
    client = await talked(serve, stub, follow_ups=False)
    assert await status(client, FOLLOW_UP, after(f" {FIRST.lower()} ")) == ("hit", "exact")


@pytest.mark.parametrize(
    "history",
    [
        after(NEAR),
        after(FIRST, ANSWER.replace("can", "cannot")),
        after(FIRST, f"{ANSWER} "),
        [*after(NEAR), *after(FIRST)],
        [*after(FIRST), *after(NEAR)],
        [{"role": "user", "content": FIRST}],
        [{"role": "assistant", "content": ANSWER}],
        [],
    ],
    ids=[
        "near question",
        "answer altered",
        "answer longer",
        "turn before",
        "other subject",
        "cut",
        "no question",
        "none",
    ],
)
async def test_another_conversation_is_another_context(serve: Service, stub: StubOllama, history: list[Turn]) -> None:
    client = await talked(serve, stub)
    assert await status(client, FOLLOW_UP, history) == ("miss", None)
    assert await status(client, FOLLOW_UP_REWORDED, after(FIRST)) == ("hit", "semantic"), "and it takes nothing away"


async def test_a_question_is_not_the_follow_up_of_the_same_words(serve: Service, stub: StubOllama) -> None:
    client = await talked(serve, stub)
    assert (await status(client, FOLLOW_UP, []))[0] == "miss"
    assert await status(client, FOLLOW_UP_REWORDED, after(FIRST)) == ("hit", "semantic")


async def test_an_answer_that_the_cache_did_not_give_does_not_join_conversations(
    serve: Service, stub: StubOllama
) -> None:
    """The reworded question is similar, but its assistant's turn is not the cached answer."""
    client = await talked(serve, stub)
    mine = "You can do that by letter."
    assert (await status(client, FOLLOW_UP, after(FIRST, mine)))[0] == "miss"
    assert (await status(client, FOLLOW_UP, after(REWORDED, mine)))[0] == "miss"


async def test_longer_conversations(serve: Service, stub: StubOllama) -> None:
    client = await talked(serve, stub)
    longer = [*after(FIRST), *after(FOLLOW_UP)]
    assert (await status(client, "Is there a fee for that?", longer))[0] == "miss"
    reworded = [*after(REWORDED), *after(FOLLOW_UP_REWORDED)]
    assert await status(client, "Is there a fee for that?", reworded) == ("hit", "exact")
    assert await status(client, "Is there any fee for that?", reworded) == ("hit", "semantic")


async def test_tenants_share_no_conversation(serve: Service, stub: StubOllama) -> None:
    client = await talked(serve, stub)
    assert (await status(client, FOLLOW_UP, after(FIRST), tenant="other"))[0] == "miss"
    assert await status(client, FOLLOW_UP_REWORDED, after(REWORDED), tenant="other") == ("miss", None)


async def test_off_only_the_same_words_are_found(serve: Service, stub: StubOllama) -> None:
    client = await talked(serve, stub, follow_ups=False)
    assert await status(client, FOLLOW_UP, after(FIRST)) == ("hit", "exact")
    assert (await status(client, FOLLOW_UP_REWORDED, after(FIRST)))[0] == "miss"
    assert (await status(client, FOLLOW_UP, after(REWORDED)))[0] == "miss"


async def test_explain_finds_what_the_flow_finds(serve: Service, stub: StubOllama) -> None:
    client = await talked(serve, stub)

    async def decision(question: str, history: list[Turn]) -> str:
        body = {"question": question, "history": history}
        return str((await client.post("/api/semantic-cache/explain", json=body)).json()["decision"])

    assert await decision(FOLLOW_UP_REWORDED, after(FIRST)) == "semantic_hit"
    assert await decision(FOLLOW_UP, after(REWORDED)) == "exact_hit"
    assert await decision(FOLLOW_UP_REWORDED, after(REWORDED)) == "semantic_hit"
    assert await decision(FOLLOW_UP, after(NEAR)) == "miss"


async def test_a_follow_up_from_documents_needs_the_same_words(serve: Service, stub: StubOllama) -> None:
    """Its own search is unknown before it is rewritten, so the grounded check cannot agree."""
    client = await serve(embedder=ONNX)
    await add(client, "Holiday", "Holiday is approved by the team lead.", source="holiday")
    history = after("Who approves my holiday?", "The team lead.")
    first = await ask(client, "How do I ask the team lead for holiday?", history=history)
    assert [one["source"] for one in first["sources"]] == ["holiday"]
    assert (await status(client, "How can I ask the team lead for holiday?", history))[0] == "miss"
    assert await status(client, "How do I ask the team lead for holiday?", history) == ("hit", "exact")


async def test_any_new_document_outdates_a_follow_up(serve: Service, stub: StubOllama) -> None:
    """Its words alone do not say what it is about."""
    client = await serve(embedder=ONNX)
    await add(client, "Holiday", "Holiday is approved by the team lead.", source="holiday")
    history = after("Who approves my holiday?", "The team lead.")
    stub.behaviour(answer="How long is holiday?", path="/api/chat")
    assert (await ask(client, "And how long is it?", history=history))["cache"]["entry"] is not None
    assert await status(client, "And how long is it?", history) == ("hit", "exact")
    await add(client, "Parking", "Cars are parked behind the house.", source="parking")
    assert (await status(client, "And how long is it?", history))[0] == "miss"
