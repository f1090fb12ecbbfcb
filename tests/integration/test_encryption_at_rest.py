"""With ENCRYPTION_KEYS, Redis has no text of a question, an answer or a passage, and all works as without."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from api.redis_store.encryption import CONTENT
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.documents.passages import RedisPassageIndex
from ragherd.commands import commands
from tests.stub_ollama import StubOllama
from tests.support.every_value import everything
from tests.support.mcp_client import mcp_client, problem_of
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

MARKS = (b"zebraquestion", b"zebraanswer", b"zebrapassage", b"zebracomment", b"zebraheading")
OLD, NEW, WRONG = (f"{name}={b64encode(bytes([n]) * 32).decode()}" for name, n in (("old", 1), ("new", 2), ("old", 3)))
TOLD: dict[str, Any] = {
    "server": {"log_questions": True, "log_level": "error"},
    "cache": {"keep_pairs": True, "shadow_rate": 1.0, "condense": True},
    "retrieval": {"retrieval_neighbours": 1},
    "documents": {"chunk_tokens": 40, "chunk_overlap": 0},
}
QUESTION = "When is the zebraquestion asked?"
DOCUMENT = {
    "title": "On feeding",
    "text": "# The zebraheading\n\n" + "The zebrapassage is fed at noon, by the keeper. " * 40,
    "source": "https://feeding.example",
}


def told(keys: str) -> dict[str, Any]:
    return {**TOLD, "access": {"encryption_keys": keys}} if keys else TOLD


async def marked(redis: Redis) -> dict[str, bytes]:
    """Returns the keys with a marked text."""
    found = (await everything(redis)).items()
    return {key.decode(): value for key, value in found if any(mark in (key + value).lower() for mark in MARKS)}


async def is_hit(client: httpx.AsyncClient) -> bool:
    return bool((await ask(client, QUESTION))["cache"]["kind"] == "exact")


async def use_everything(client: httpx.AsyncClient, other: httpx.AsyncClient, stub: StubOllama) -> None:
    """Uses all that stores a text."""
    stub.behaviour(answer="The zebraanswer is noon.")
    assert (await client.post("/documents", json=DOCUMENT)).status_code == 201
    first = await ask(client, QUESTION)
    assert "zebrapassage" in first["sources"][0]["text"]
    await wait_until_async(lambda: is_hit(other))  # a new index stores nothing while it is built
    await ask(other, "The zebraquestion, when is it asked?")
    history = [{"role": "user", "content": "I like the zebraquestion."}, {"role": "assistant", "content": "So do I."}]
    await ask(client, "Is the zebraquestion it?", history=history)
    questions = [{"question": f"Where is zebraquestion {number}?"} for number in range(3)]
    assert (await client.post("/api/semantic-cache/warm", json={"questions": questions})).status_code == 202
    judged = await ask(other, "Who keeps the zebraquestion?")
    vote = {"request_id": judged["request_id"], "verdict": "bad", "comment": "No: zebracomment."}
    assert (await client.post("/feedback", json=vote)).status_code == 202


async def settled(redis: Redis) -> bool:
    """True when what is written in the background is there."""
    written = [await redis.xlen("rag:recent"), await redis.xlen("rag:labels:pairs")]
    return all(written) and not await redis.exists("rag:warm:jobs")


async def command(redis_url: str, keys: str, *arguments: str) -> Result:
    environment = {"REDIS_URL": redis_url, "ENCRYPTION_KEYS": keys}
    return await asyncio.to_thread(lambda: CliRunner().invoke(commands, list(arguments), env=environment))


async def test_no_text_is_in_redis_and_all_of_them_are_served(
    serve: Service, redis: Redis, redis_url: str, stub: StubOllama, tmp_path: Path
) -> None:
    client, other = await serve(**told(OLD)), await serve(**told(OLD))
    stub.behaviour(answer="The zebraanswer is noon. " * 20, pace=0.02)
    both = [one.post("/query", json={"question": "Which zebraquestion?"}) for one in (client, other)]
    calls = [asyncio.create_task(call) for call in both]
    questions = [{"question": f"Where is zebraquestion {number}, slowly?"} for number in range(9)]
    assert (await client.post("/api/semantic-cache/warm", json={"questions": questions})).status_code == 202
    await wait_until_async(lambda: follows_and_waits(redis))
    assert await marked(redis) == {}, "while answers are generated"
    assert [(await call).json()["answer"][:14] for call in calls] == ["The zebraanswe"] * 2
    await use_everything(client, other, stub)
    await wait_until_async(lambda: settled(redis))
    assert await marked(redis) == {}
    for pattern in ("cache", "quarantine", "condensed", "chunk", "doc"):
        assert [key async for key in redis.scan_iter(match=f"rag:{pattern}:*")], pattern

    hit = await ask(other, QUESTION)
    assert (hit["cache"]["kind"], hit["answer"]) == ("exact", "The zebraanswer is noon.")
    listed = (await client.get("/documents")).json()["documents"][0]
    chunks = (await other.get(f"/documents/{listed['id']}")).json()["passages"]
    assert "zebrapassage" in chunks[0]["text"]

    exported = await command(redis_url, OLD, "export", str(tmp_path / "all.jsonl"), "--tenant", "default")
    assert exported.exit_code == 0, exported.output
    text = (tmp_path / "all.jsonl").read_text()
    assert [mark for mark in MARKS if mark.decode() not in text] == []
    restored = await command(redis_url, OLD, "restore", str(tmp_path / "all.jsonl"), "--json")
    assert restored.exit_code == 0, restored.output
    assert await marked(redis) == {}


async def follows_and_waits(redis: Redis) -> bool:
    """True when one worker follows the generation of the other, and questions of a warm-up wait."""
    patterns = ("rag:flight:*:words", "rag:warm:*:queue")
    found = [[key async for key in redis.scan_iter(match=pattern)] for pattern in patterns]
    return all(found)


async def test_plain_texts_are_encrypted_rotated_and_decrypted_again(
    serve: Service, redis: Redis, redis_url: str, stub: StubOllama
) -> None:
    client, other = await serve(**told("")), await serve(**told(""))
    await use_everything(client, other, stub)
    await wait_until_async(lambda: settled(redis))
    lasting = {key for key in await marked(redis) if not key.startswith(("rag:recent", "rag:warm", "rag:flight"))}
    assert {key.split(":")[1] for key in lasting} == {"cache", "quarantine", "condensed", "chunk", "doc", "labels"}

    for keys, first in ((f"{OLD}", "old"), (f"{NEW},{OLD}", "new"), (f"plain,{NEW}", "plain")):
        dry = await command(redis_url, keys, "reencrypt", "--dry-run", "--json")
        before = {kind: counts for kind, counts in json.loads(dry.stdout).items() if kind != "dry_run"}
        assert before.keys() == {"answers", "condensed", "documents", "pairs", "passages"}
        assert all(counts.keys() == {"rewritten"} for counts in before.values()), before
        done = await command(redis_url, keys, "reencrypt", "--json")
        assert done.exit_code == 0, done.output
        assert {kind: counts for kind, counts in json.loads(done.stdout).items() if kind != "dry_run"} == before
        again = json.loads((await command(redis_url, keys, "reencrypt", "--json")).stdout)
        assert all(again[kind].keys() == {"current"} for kind in before), again
        is_plain = first == "plain"
        assert {key for key in await marked(redis) if key in lasting} == (lasting if is_plain else set())
        reader = await serve(**told(keys))
        hit = await ask(reader, QUESTION)
        assert (hit["cache"]["kind"], hit["answer"]) == ("exact", "The zebraanswer is noon.")
        found = await ask(reader, f"With {first}: is the zebrapassage fed at noon, by the keeper?")
        assert "zebrapassage" in found["sources"][0]["text"]


async def test_a_missing_key_is_a_counted_miss_and_an_error_that_says_what_to_do(
    serve: Service, redis: Redis, redis_url: str, stub: StubOllama
) -> None:
    client, without = await serve(**told(OLD)), await serve(**told(NEW))
    stub.behaviour(answer="The zebraanswer is noon.")
    await ask(client, QUESTION)
    assert (await ask(without, QUESTION))["cache"]["status"] == "miss"
    assert re.search(r"^ragherd_undecryptable_texts_total [1-9]", (await without.get("/metrics")).text, re.MULTILINE)
    assert (await client.post("/documents", json=DOCUMENT)).status_code == 201
    listed = (await without.get("/documents")).json()["documents"][0]
    refused = await without.get(f"/documents/{listed['id']}")
    problem = refused.json()
    assert (refused.status_code, problem["type"]) == (503, "urn:ragherd:problem:undecryptable-text")
    assert (problem["key_id"], refused.headers["retry-after"]) == ("old", "60")
    assert "Add its key to ENCRYPTION_KEYS: 'old'" in problem["detail"]
    async with mcp_client(without.base_url) as tools:
        called = await tools.call_tool("search", {"question": "Is the zebrapassage fed at noon, by the keeper?"})
    assert (called.is_error, problem_of(called)["key_id"]) == (True, "old")
    left = await command(redis_url, NEW, "reencrypt")
    assert left.exit_code == 1
    assert "unreadable" in left.stdout
    assert (await without.delete(f"/documents/{listed['id']}")).is_success


async def test_no_answer_from_a_search_that_met_an_unreadable_passage_is_cached(
    serve: Service, stub: StubOllama
) -> None:
    client, without = await serve(**told(OLD)), await serve(**told(NEW))
    for one, animal in ((client, "zebra"), (without, "horse")):
        text = f"The {animal} is fed at noon, by the keeper. " * 10
        assert (await one.post("/documents", json={"title": animal, "text": text})).status_code == 201
    question = "Which animal is fed at noon, by the keeper?"
    stub.behaviour(answer="No animal.")
    for _ in range(2):
        answer = await ask(without, question)
        assert (answer["answer"], answer["sources"], answer["cache"]["status"]) == ("No animal.", [], "miss")
    assert 'ragherd_groundings_total{outcome="unavailable"} 2.0' in (await without.get("/metrics")).text


@pytest.mark.parametrize("keys", ["", WRONG], ids=["no key", "another key of the same name"])
async def test_who_cannot_decrypt_misses_and_answers(keys: str, serve: Service, redis: Redis, stub: StubOllama) -> None:
    client, without = await serve(**told(OLD)), await serve(**told(keys))
    assert (await client.post("/documents", json=DOCUMENT)).status_code == 201
    stub.behaviour(answer="The zebraanswer is noon. " * 10, pace=0.03)
    slowly = {"question": "Is the zebrapassage fed at noon, by the keeper, slowly?"}
    calls = [asyncio.create_task(client.post("/query", json=slowly))]
    await wait_until_async(lambda: redis.keys("rag:flight:*"))
    calls.append(asyncio.create_task(without.post("/query", json=slowly)))
    led, followed = [(await call).json() for call in calls]
    assert led["sources"]
    assert followed["answer"] == led["answer"]
    assert followed["cache"]["status"] == "miss", "it generated alone"
    assert followed["sources"] == []
    stub.behaviour(answer="It is night.")
    history = [{"role": "user", "content": "I like the zebraquestion."}, {"role": "assistant", "content": "So do I."}]
    for words, before in ((QUESTION, []), ("Is the zebraquestion it?", history)):
        await ask(client, words, history=before)
        assert (await ask(without, words, history=before))["cache"]["status"] == "miss"
    assert (await ask(without, "The zebraquestion, when is it asked?"))["answer"] == "It is night."
    assert re.search(r"^ragherd_undecryptable_texts_total [1-9]", (await without.get("/metrics")).text, re.MULTILINE)
    passages = RedisPassageIndex(await a_gate(redis), Keys())
    document = (await client.get("/documents")).json()["documents"][0]["id"]
    revision = int(await redis.hget(f"rag:doc:{document}", "revision") or 0)
    if not keys:
        assert await passages.texts([(document, revision, (100, 200))]) == [None]


async def a_gate(redis: Redis) -> HealthGatedRedis:
    gate = HealthGatedRedis(redis, 2)  # type: ignore[arg-type]
    assert await gate.check()
    return gate


async def test_a_file_that_looks_encrypted_is_refused(serve: Service) -> None:
    client = await serve()
    files = {"file": ("a.pdf", CONTENT + b"%PDF-" + b" " * 3_000_000, "application/pdf")}
    refused = await client.post("/documents", files=files)
    assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (422, "unreadable-document")


async def test_a_moved_answer_is_a_miss(serve: Service, redis: Redis, stub: StubOllama) -> None:
    client = await serve(**told(OLD))
    for name in ("red", "blue"):
        stub.behaviour(answer=f"It is {name}.")
        await ask(client, f"What is {name}?")
    red, blue = [key async for key in redis.scan_iter(match="rag:cache:*")]
    answers = [await redis.hget(key, "answer") for key in (red, blue)]
    await redis.hset(red, "answer", answers[1])
    await redis.hset(blue, "answer", answers[0])
    reader = await serve(**told(OLD))
    stub.behaviour(answer="It is generated.")
    assert (await ask(reader, "What is red?"))["answer"] == "It is generated."


async def test_new_documents_and_votes_reach_encrypted_answers(serve: Service, redis: Redis, stub: StubOllama) -> None:
    client, other = await serve(**told(OLD)), await serve(**told(OLD))
    stub.behaviour(answer="The zebraanswer is noon.")
    stored = (await client.post("/documents", json=DOCUMENT)).json()
    await wait_until_async(lambda: is_hit(client))
    changed = {**DOCUMENT, "text": DOCUMENT["text"].replace("noon", "night")}
    assert (await client.post("/documents", json=changed)).status_code in (200, 201), stored
    assert (await ask(other, QUESTION))["cache"]["status"] == "miss"
    await wait_until_async(lambda: is_hit(client))
    judged = await ask(client, QUESTION)
    vote = {"request_id": judged["request_id"], "verdict": "bad", "comment": "zebracomment"}
    assert (await other.post("/feedback", json=vote)).status_code == 202
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"
