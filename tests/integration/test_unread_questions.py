"""Questions that an embedder cannot read completely never get each other's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask

PAIRS = [
    tuple(line.split("\t")) for line in Path(__file__).with_name("unread_pairs.tsv").read_text("utf-8").splitlines()[1:]
]
FOREIGN = [
    tuple(line.split("\t")[2:])
    for line in Path(__file__).parents[1].joinpath("unit/foreign_pairs.tsv").read_text("utf-8").splitlines()[1:]
]
ONNX = {"embedder": "onnx"}
ALL = {"embed_languages": "all"}
"""Only what the embedder reads keeps questions apart."""


async def explained(client: httpx.AsyncClient, question: str, tenant: str = "default") -> Any:
    asked = {"question": question, "tenant": tenant}
    return (await client.post("/api/semantic-cache/explain", json=asked)).json()


async def served(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    """Returns the pairs whose second question gets the first's answer."""
    wrong = []
    for number, (first, second) in enumerate(PAIRS):
        tenant = f"pair-{number}"
        await ask(client, first, tenant=tenant)
        assert (await ask(client, first, tenant=tenant))["cache"]["kind"] == "exact"
        found = await explained(client, second, tenant)
        answered = await ask(client, second, tenant=tenant)
        assert found["hit"] == (answered["cache"]["status"] == "hit")
        if found["hit"]:
            wrong.append((first, second))
    return wrong


async def test_with_the_embedder_in_the_worker(serve: Service) -> None:
    assert await served(await serve(embedder=ONNX)) == []


async def test_with_one_on_ollama_that_knows_latin_letters_only(serve: Service, stub: StubOllama) -> None:
    stub.behaviour(vocabulary="latin")
    assert await served(await serve(embedder=ALL)) == []


async def test_questions_in_other_languages_than_the_embedders_are_found_exactly_only(
    serve: Service, redis: Redis
) -> None:
    client = await serve(embedder=ONNX)
    wrong = []
    for number, (first, second) in enumerate(FOREIGN):
        tenant = f"foreign-{number}"
        await ask(client, first, tenant=tenant)
        found = await explained(client, second, tenant)
        assert found["foreign_language"], second
        assert "not in a language of the embedder" in found["reason"]
        if (await ask(client, second, tenant=tenant))["cache"]["status"] != "miss":
            wrong.append((first, second))
        assert (await ask(client, first, tenant=tenant))["cache"]["kind"] == "exact"
    assert wrong == []
    assert f"ragherd_cache_language_unknown_total {2.0 * len(FOREIGN)}" in (await client.get("/metrics")).text


async def test_the_same_unread_word_keeps_a_paraphrase(serve: Service) -> None:
    client = await serve(embedder=ONNX)
    await ask(client, "How do I reset 密码?")
    found = await explained(client, "How can I reset 密码?")
    assert (found["decision"], found["unread"]) == ("semantic_hit", ["密码"])
    assert (await ask(client, "How can I reset 密码?"))["cache"]["kind"] == "semantic"


async def test_explain_says_what_was_not_read(serve: Service) -> None:
    client = await serve(embedder=ONNX)
    await ask(client, "How do I reset 密码?")
    found = await explained(client, "How do I reset 账号?")
    assert (found["decision"], found["unread"]) == ("miss", ["账号"])
    assert (
        found["reason"] == "The embedder cannot read all of the question, and other words are unread in every near one."
    )
    (candidate,) = found["candidates"]
    assert candidate["verdict"] == "rejected"
    assert candidate["guards"][0] == {"guard": "unread", "agrees": False, "detail": "账号 / 密码"}
    assert (await explained(client, "How do I reset my password?"))["unread"] == []


async def test_the_order_of_unread_words_counts(serve: Service) -> None:
    client = await serve(embedder=ONNX)
    await ask(client, "Is ☀ better than ☂ here?")
    assert (await explained(client, "Is ☂ better than ☀ here?"))["decision"] == "miss"


async def test_an_entry_tells_what_was_not_read_of_its_question(serve: Service, redis: Redis) -> None:
    client = await serve(embedder=ONNX)
    entry = (await ask(client, "How do I reset 密码?"))["cache"]["entry"]
    assert await redis.hget(entry, "unread") == '["密码"]'.encode()
    plain = (await ask(client, "How do I enter the building?"))["cache"]["entry"]
    assert await redis.hget(plain, "unread") == b"[]"


@pytest.mark.parametrize(
    ("stored", "asked", "decision"),
    [
        ("How do I reset 密码?", "How can I reset 密码?", "miss"),
        ("How do I reset my password?", "How can I reset my password?", "semantic_hit"),
    ],
)
async def test_of_an_older_release_only_plain_questions_are_compared(
    serve: Service, redis: Redis, stored: str, asked: str, decision: str
) -> None:
    client = await serve(embedder=ONNX)
    entry = (await ask(client, stored))["cache"]["entry"]
    await redis.hdel(entry, "unread")
    assert (await explained(client, asked))["decision"] == decision
    assert (await ask(client, stored))["cache"]["kind"] == "exact"


async def test_no_stale_answer_of_another_question_where_ollama_fails(serve: Service, stub: StubOllama) -> None:
    client = await serve(embedder=ONNX, cache={"ttl": 0.001, "stale_while_revalidate": 0})
    await ask(client, "What does ☀ mean?")
    stub.behaviour(mode="status", status=500)
    assert (await client.post("/query", json={"question": "What does ☂ mean?"})).status_code >= 500
    again = await client.post("/query", json={"question": "What does ☀ mean?"})
    assert (again.status_code, again.json()["cache"]["status"]) == (200, "stale")


async def test_a_model_on_ollama_is_asked_once_which_scripts_it_reads(serve: Service, stub: StubOllama) -> None:
    client = await serve(embedder=ALL)
    await ask(client, "Who approves expenses?")
    before = stub.stats["requests"]["/api/embed"]
    await ask(client, "Кто утверждает отпуск здесь?")
    assert stub.stats["requests"]["/api/embed"] == before + 2
    await ask(client, "Когда открывается дверь?")
    assert stub.stats["requests"]["/api/embed"] == before + 3
    found = await explained(client, "Здесь кто утверждает отпуск?")
    assert (found["decision"], found["unread"]) == ("semantic_hit", [])


async def test_a_model_that_reads_no_script_but_latin_is_found_out(serve: Service, stub: StubOllama) -> None:
    stub.behaviour(vocabulary="latin")
    client = await serve(embedder=ALL)
    assert (await explained(client, "Кто утверждает отпуск?"))["unread"] == ["кто", "утверждает", "отпуск"]
    assert (await explained(client, "Who approves ☀ and ☂?"))["unread"] == ["☀", "☂"]
