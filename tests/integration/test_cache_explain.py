"""POST /api/semantic-cache/explain predicts what the flow would do, gives the reason, and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.embedders.verifier import OnnxVerifier
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.small_cross_encoder import write_cross_encoder

QUESTION = "How do I enable two-factor login in 2024?"
OPPOSITE = "How do I disable two-factor login in 2024?"
NEAR = {"similarity_threshold": 0.5}  # the stub's embeddings know words, not meanings


async def explained(client: httpx.AsyncClient, question: str, **more: Any) -> Any:
    response = await client.post("/api/semantic-cache/explain", json={"question": question, **more})
    assert response.status_code == 200, response.text
    return response.json()


async def test_an_exact_hit(serve: Service) -> None:
    client = await serve()
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    found = await explained(client, f" {QUESTION.upper()} ")
    assert (found["decision"], found["exact"]["entry"], found["exact"]["verdict"]) == ("exact_hit", entry, "fresh")
    assert entry.endswith(f"{found['scope']}:{found['digest']}")
    assert (found["threshold"], found["hit"], found["nearest"], found["similarity"]) == (0.92, True, entry, 1.0)


async def test_a_guard_objects_and_the_flow_obeys(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache=NEAR)
    await ask(client, QUESTION)
    found = await explained(client, OPPOSITE)
    assert found["decision"] == "miss"
    (candidate,) = found["candidates"]
    assert (found["hit"], found["nearest"]) == (False, candidate["entry"])
    assert found["similarity"] == candidate["similarity"]
    assert (candidate["question"], candidate["verdict"], candidate["would_serve"]) == (QUESTION, "rejected", False)
    assert candidate["similarity"] > 0.5
    objections = {one["guard"]: one["detail"] for one in candidate["guards"] if not one["agrees"]}
    assert set(objections) == {"opposites"}
    assert (await ask(client, OPPOSITE))["cache"]["status"] == "miss"
    metrics = (await client.get("/api/semantic-cache/metrics")).json()
    assert (metrics["guard_rejections"], metrics["misses"], metrics["hits"]) == (1, 2, 0)
    assert stub.stats["requests"]["/api/chat"] == 2


async def test_the_first_candidate_that_all_guards_pass_is_served(serve: Service) -> None:
    client = await serve(cache=NEAR)
    await ask(client, OPPOSITE)
    agreed = await ask(client, "How do I now enable two-factor login in 2024?")
    question = "How do I enable the two-factor login in 2024?"
    found = await explained(client, question)
    assert [one["would_serve"] for one in found["candidates"]].count(True) == 1
    answered = await ask(client, question)
    assert (answered["cache"]["kind"], answered["answer"]) == ("semantic", agreed["answer"])
    assert (found["decision"], answered["cache"]["status"]) == ("semantic_hit", "hit")


async def test_why_there_is_no_hit(serve: Service) -> None:
    client = await serve()
    assert (await explained(client, QUESTION))["reason"] == "Nothing is cached in this scope."
    await ask(client, QUESTION)
    far = await explained(client, "Where is the canteen?")
    assert (far["decision"], far["candidates"][0]["verdict"]) == ("miss", "below_threshold")
    history = [{"role": "user", "content": "Hello"}]
    assert "history" in (await explained(client, QUESTION, history=history))["reason"]
    assert "bytes" in (await explained(client, "long " * 200))["reason"]


async def test_it_counts_and_stores_nothing(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    await explained(client, QUESTION)
    metrics = (await client.get("/api/semantic-cache/metrics")).json()
    assert (metrics["hits"], metrics["misses"], metrics["cache_size"]) == (0, 0, 0)
    assert "/api/chat" not in stub.stats["requests"]


async def test_a_tenant_sees_its_own_questions_only(serve: Service) -> None:
    client = await serve(access={"api_keys": "one=k1,two=k2", "admin_keys": "root"}, cache=NEAR)
    await ask(client, QUESTION, headers={"Authorization": "Bearer k1"})
    body = {"question": QUESTION}
    path = "/api/semantic-cache/explain"
    mine = await client.post(path, json=body, headers={"Authorization": "Bearer k1"})
    theirs = await client.post(path, json=body, headers={"Authorization": "Bearer k2"})
    assert (mine.json()["decision"], theirs.json()["decision"]) == ("exact_hit", "miss")
    assert theirs.json()["candidates"] == []
    assert (
        await client.post(path, json={**body, "tenant": "one"}, headers={"Authorization": "Bearer k2"})
    ).status_code == 403
    assert (await client.post(path, json=body)).status_code == 401


async def test_without_redis_it_is_unavailable(serve: Service, redis_url: str) -> None:
    client = await serve(cache={"enabled": False})
    assert (await client.post("/api/semantic-cache/explain", json={"question": QUESTION})).status_code == 503


async def test_what_each_policy_would_decide(serve: Service) -> None:
    client = await serve(cache=NEAR)
    opposite = (await ask(client, QUESTION))["cache"]["entry"]
    found = await explained(client, OPPOSITE)
    assert found["policy"] == "guarded"
    refused = {"outcome": "refused", "entry": None, "reason": "guard: opposites", "error": None, "limit": None}
    served = {"outcome": "served", "entry": opposite, "reason": None, "error": None, "limit": None}
    assert found["policies"] == {"observe": refused, "fixed": served, "guarded": refused, "verified": refused}
    found = await explained(client, "In 2024, how do I enable two-factor login?")
    would = {**served, "outcome": "would_serve"}
    assert found["policies"] == {"observe": would, "fixed": served, "guarded": served, "verified": served}
    found = await explained(client, QUESTION)
    assert found["policies"] == {"observe": would, "fixed": served, "guarded": served, "verified": served}
    found = await explained(client, "Where is the canteen?")
    assert {one["reason"] for one in found["policies"].values()} == {"threshold"}


async def test_an_expired_answer_is_refused_for_its_age(serve: Service) -> None:
    client = await serve(cache={**NEAR, "ttl": 0.01})
    await ask(client, QUESTION)
    found = await explained(client, "In 2024, how do I enable two-factor login?")
    assert {one["reason"] for one in found["policies"].values()} == {"age"}
    stale = await serve(cache={**NEAR, "ttl": 0.01, "stale_while_revalidate": 60.0})
    found = await explained(stale, "In 2024, how do I enable two-factor login?")
    assert {name: one["outcome"] for name, one in found["policies"].items()} == {
        "observe": "would_serve",
        "fixed": "served",
        "guarded": "served",
        "verified": "served",
    }
    assert found["decision"] == "stale"


async def test_the_labels_of_an_entry(serve: Service) -> None:
    client = await serve(cache=NEAR)
    await ask(client, QUESTION)
    question = "In 2024, how do I enable two-factor login?"
    hit = await ask(client, question)
    vote = {"request_id": hit["request_id"], "verdict": "good"}
    assert (await client.post("/feedback", json=vote)).status_code == 202
    found = await explained(client, question)
    assert found["candidates"][0]["labels"] == {"same": 1, "different": 0, "unsure": 0}
    assert found["candidates"][0]["verifier"] is None
    found = await explained(client, QUESTION)
    assert found["exact"]["labels"] == {"same": 1, "different": 0, "unsure": 0}


async def test_the_labels_of_an_entry_that_is_not_compared_by_meaning(serve: Service) -> None:
    client = await serve()
    question = "Where is it? " * 200
    await ask(client, question)
    hit = await ask(client, question)
    vote = {"request_id": hit["request_id"], "verdict": "good"}
    assert (await client.post("/feedback", json=vote)).status_code == 202
    found = await explained(client, question)
    assert (found["decision"], found["candidates"]) == ("exact_hit", [])
    assert found["exact"]["labels"] == {"same": 1, "different": 0, "unsure": 0}


async def test_why_there_is_nothing_to_decide_about(serve: Service) -> None:
    client = await serve()

    async def reasons(question: str) -> set[str]:
        found = await explained(client, question)
        assert (found["level"], found["learned"]) == (0, False)
        return {one["reason"] for one in found["policies"].values()}

    assert await reasons(QUESTION) == {"no candidates"}
    assert await reasons("long " * 200) == {"exact only"}
    await ask(client, "Where is the canteen?")
    assert await reasons(QUESTION) == {"threshold"}
    german = await serve(embedder={"embed_languages": "en"})
    found = await explained(german, "Wie hoch ist der Turm in der Stadt Paris?")
    assert found["foreign_language"] == "de"
    assert {one["reason"] for one in found["policies"].values()} == {"language"}


async def test_explaining_asks_the_verifier_behind_users(
    serve: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    async def scores(_: OnnxVerifier, question: str, candidates: Sequence[str], *, background: bool) -> list[float]:
        asked.append(background)
        return [1.0] * len(candidates)

    monkeypatch.setattr(OnnxVerifier, "_scores", scores)
    client = await serve(cache={"similarity_threshold": 0.5, "verifier_path": write_cross_encoder(tmp_path)})
    question = "Where is the canteen?"
    await ask(client, question)
    found = await explained(client, "Where is the new canteen?")
    assert found["candidates"][0]["verifier"]["score"] == 1.0
    same = await explained(client, question)
    assert (same["decision"], same["candidates"][0]["verifier"]) == ("exact_hit", None), "an equal question needs none"
    assert asked
    assert all(asked), "explaining costs no user a score"
