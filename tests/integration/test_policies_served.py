"""What the service does under each policy, and no request can change it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from api.embedders.minilm import files_at
from api.embedders.reranker import CrossEncoder, TextPair
from api.embedders.verifier import OnnxVerifier
from api.ports.answer_quality import Evidence, Label, PolicyName, Verdict, Versions
from api.quality.keeper import QualityKeeper
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.label_store import RedisLabels
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.small_cross_encoder import write_cross_encoder
from tests.support.waiting import wait_until_async

QUESTION = "How do I enable two-factor login in 2024?"
OPPOSITE = "How do I disable two-factor login in 2024?"
SIMILAR = "How do I enable the two-factor login in 2024?"
NEAR = 0.5
"""The stub's embeddings know words, not meanings."""


async def decisions(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    name = "ragherd_cache_policy_decisions_total"
    found = [line.rsplit(" ", 1) for line in lines if line.startswith(f"{name}{{")]
    return {series.removeprefix(name): float(count) for series, count in found if float(count)}


async def quality(client: httpx.AsyncClient) -> Any:
    return (await client.get("/api/semantic-cache/quality")).json()


async def test_fixed_serves_what_a_guard_would_reject(serve: Service) -> None:
    client = await serve(cache={"similarity_threshold": NEAR, "policy": "fixed"})
    await ask(client, QUESTION)
    answered = await ask(client, OPPOSITE)
    assert (answered["cache"]["status"], answered["cache"]["kind"]) == ("hit", "semantic")
    assert await decisions(client) == {
        '{outcome="refused",policy="fixed"}': 1,
        '{outcome="served",policy="fixed"}': 1,
    }


async def test_observe_counts_what_it_would_serve_and_serves_nothing(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache={"similarity_threshold": NEAR, "policy": "observe"})
    asked = [await ask(client, question) for question in (QUESTION, QUESTION, SIMILAR, OPPOSITE)]
    statuses = [one["cache"]["status"] for one in asked]
    assert statuses == ["miss"] * 4
    assert stub.stats["requests"]["/api/chat"] == 4
    found = await decisions(client)
    assert found['{outcome="would_serve",policy="observe"}'] == 2, "the same question, and the similar one"
    only = await client.post("/query", json={"question": QUESTION}, headers={"Cache-Control": "only-if-cached"})
    assert only.status_code == 504


async def test_observe_serves_no_expired_answer_in_an_outage(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache={"policy": "observe", "ttl": 0.001})
    await ask(client, QUESTION)
    stub.behaviour("status", status=500, path="/api/chat")
    assert (await client.post("/query", json={"question": QUESTION})).status_code >= 500


async def test_a_question_that_is_served_an_expired_answer_counts_once(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache={"similarity_threshold": NEAR, "policy": "fixed", "ttl": 0.001})
    await ask(client, QUESTION)
    stub.behaviour("status", status=500, path="/api/chat")
    assert (await ask(client, SIMILAR))["cache"]["status"] == "stale"
    found = await decisions(client)
    assert found == {'{outcome="refused",policy="fixed"}': 2}, "each question misses"


async def test_a_guard_counts_once_for_a_question_in_an_outage(serve: Service, stub: StubOllama) -> None:
    client = await serve(cache={"similarity_threshold": NEAR})
    await ask(client, QUESTION)
    stub.behaviour("status", status=500, path="/api/chat")
    assert (await client.post("/query", json={"question": OPPOSITE})).status_code == 502
    lines = (await client.get("/metrics")).text.splitlines()
    counts = [float(line.split()[-1]) for line in lines if line.startswith("ragherd_cache_guard_rejections_total{")]
    assert sum(counts) == 1


def evidence(random: np.random.Generator, score: float | None) -> tuple[Evidence, Verdict]:
    """The nearer, the more often right; always from a cosine of .75 up. `score`: the verifier's."""
    similarity = float(random.uniform(0.62, 1.0))
    right = random.random() < (similarity - 0.62) * 8
    return Evidence(similarity, similarity - 0.1, verifier=score), Verdict.SAME if right else Verdict.DIFFERENT


async def learned(
    redis: BatchingRedis, client: httpx.AsyncClient, verifier: str = "", score: float | None = None
) -> None:
    """Writes labels as workers do, and waits until this one has learned from them."""
    gate = HealthGatedRedis(redis, 8)
    assert await gate.check()

    async def knows_its_embedder() -> bool:
        return bool((await client.get("/api/semantic-cache/metrics")).json()["embedder"])

    await wait_until_async(knows_its_embedder)
    (entry,) = [name.decode() async for name in redis.scan_iter("rag:cache:*")][:1]
    scope = entry.split(":")[2]
    comparator = (await quality(client))["comparator"]
    versions = Versions(scope.partition("-")[0], verifier, f"{comparator['name']}-{comparator['version']}")
    random = np.random.default_rng(1)
    made = [
        Label(found, verdict, "miss", False, "semantic", PolicyName.VERIFIED, versions)
        for found, verdict in (evidence(random, score) for _ in range(600))
    ]
    labels = RedisLabels(gate, Keys())
    await asyncio.gather(*(labels.append(scope, "default", one) for one in made))

    async def has_learned() -> bool:
        return bool((await quality(client))["learned"])

    await wait_until_async(has_learned, timeout=30)


async def test_verified_serves_below_the_threshold_what_it_has_learned(serve: Service, redis: BatchingRedis) -> None:
    client = await serve(cache={"similarity_threshold": 0.99, "policy": "verified"})
    first = await ask(client, QUESTION)
    before = await ask(client, "How do I now enable two-factor login in 2024?")
    assert before["cache"]["status"] == "miss", "until then it decides as guarded"
    await learned(redis, client)
    words = ("for", "within", "during")
    found = [await ask(client, f"How do I enable two-factor login {word} 2024?") for word in words]
    served = [one for one in found if one["cache"]["kind"] == "semantic"]
    assert served, "one in ten may be explored"
    answers = {one["answer"] for one in (first, before, *found) if one["cache"]["kind"] is None}
    assert {one["answer"] for one in served} <= answers
    assert all(one["cache"]["similarity"] < 0.99 for one in served)
    assert (await ask(client, OPPOSITE))["cache"]["status"] == "miss", "guards veto, however near"
    assert (await ask(client, "Where is the canteen?"))["cache"]["status"] == "miss"
    found_decisions = await decisions(client)
    assert found_decisions['{outcome="served",policy="verified"}'] == len(served)


async def test_explain_says_what_it_has_learned_and_what_each_policy_would_do(
    serve: Service, redis: BatchingRedis
) -> None:
    cache = {"similarity_threshold": 0.99}
    client = await serve(cache={**cache, "policy": "verified"})
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    await learned(redis, client)

    async def explained(question: str) -> Any:
        return (await client.post("/api/semantic-cache/explain", json={"question": question})).json()

    found = await explained("How do I enable two-factor login for 2024?")
    assert (found["policy"], found["learned"], found["level"], found["decision"]) == (
        "verified", True, 0, "semantic_hit",
    )  # fmt: skip
    policies = found["policies"]
    assert (policies["verified"]["outcome"], policies["verified"]["entry"]) == ("served", entry)
    assert 0 < policies["verified"]["error"] <= policies["verified"]["limit"] < 0.5
    for name in ("observe", "fixed", "guarded"):
        assert policies[name] == {
            "outcome": "refused", "entry": None, "reason": "threshold", "error": None, "limit": None,
        }  # fmt: skip
    opposite = await explained(OPPOSITE)
    assert opposite["policies"]["verified"]["reason"] == "guard: opposites"
    watching = await serve(cache={**cache, "policy": "observe"})
    same = await explained(QUESTION)
    assert same["policies"]["observe"]["outcome"] == "would_serve"
    body = {"question": QUESTION}
    watched = (await watching.post("/api/semantic-cache/explain", json=body)).json()
    assert (watched["decision"], watched["hit"], watched["policies"]["observe"]["outcome"]) == (
        "miss", False, "would_serve",
    )  # fmt: skip


async def test_verified_serves_with_the_shipped_verifier_before_there_are_labels(serve: Service) -> None:
    cache = {"policy": "verified", "similarity_threshold": 0.999, "verifier_path": "builtin", "verifier_timeout": 30.0}
    client = await serve(embedder={"embedder": "onnx"}, cache=cache)
    first = await ask(client, "How do I cancel my subscription?")

    async def served(question: str) -> Any:
        only = {"Cache-Control": "only-if-cached"}  # stores nothing, so that it can be asked again
        found = await client.post("/query", json={"question": question}, headers=only)
        assert found.status_code in (200, 504)
        return found.json().get("answer")

    async def serves() -> bool:
        return bool(await served("What do I need to do to cancel my subscription?") == first["answer"])

    await wait_until_async(serves, timeout=30)
    assert not (await quality(client))["learned"]
    for other in ("How do I cancel my order?", "How much is my subscription?", "Why do I need a subscription?"):
        assert await served(other) is None, other


async def test_verified_serves_nothing_that_the_verifier_cannot_score(
    serve: Service, redis: BatchingRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"similarity_threshold": 0.99, "policy": "verified", "verifier_path": write_cross_encoder(tmp_path)}
    client = await serve(cache={**cache, "verifier_timeout": 30.0})
    await ask(client, QUESTION)
    digest = CrossEncoder(files_at(str(tmp_path), "test")).digest
    await learned(redis, client, digest, 0.0)  # the score of a pair without the words that the model knows
    words = ("for", "within", "during", "in")
    found = [await ask(client, f"How do I now enable two-factor login {word} 2024?") for word in words]
    assert "semantic" in {one["cache"]["kind"] for one in found}, "one in ten may be explored"

    def broken(model: CrossEncoder, pairs: Sequence[TextPair]) -> list[float]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(CrossEncoder, "logits", broken)
    found = [await ask(client, f"How do I then enable two-factor login {word} 2024?") for word in words]
    assert {one["cache"]["status"] for one in found} == {"miss"}
    lines = (await client.get("/metrics")).text.splitlines()
    (failed,) = [one for one in lines if one.startswith('ragherd_verifier_duration_seconds_count{outcome="failed"}')]
    assert float(failed.rpartition(" ")[2]) >= len(words)


async def test_verified_serves_nothing_that_another_verifier_has_scored(
    serve: Service, redis: BatchingRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"similarity_threshold": 0.99, "policy": "verified", "verifier_path": write_cross_encoder(tmp_path)}
    client = await serve(cache={**cache, "verifier_timeout": 30.0})
    await ask(client, QUESTION)
    await learned(redis, client, CrossEncoder(files_at(str(tmp_path), "test")).digest, 0.0)
    monkeypatch.setattr(QualityKeeper, "follow", _not_yet)
    words = ("for", "within", "during", "in")
    found = [await ask(client, f"How do I now enable two-factor login {word} 2024?") for word in words]
    assert "semantic" in {one["cache"]["kind"] for one in found}, "one in ten may be explored"
    monkeypatch.setattr(OnnxVerifier, "digest", "another")
    found = [await ask(client, f"How do I then enable two-factor login {word} 2024?") for word in words]
    assert {one["cache"]["status"] for one in found} == {"miss"}


async def _not_yet(keeper: QualityKeeper) -> None:
    """Stands for a worker that has loaded another verifier, and not heard yet that nothing is learned for it."""


async def test_after_flushall_verified_is_guarded_again(serve: Service, redis: BatchingRedis) -> None:
    client = await serve(cache={"similarity_threshold": 0.99, "policy": "verified"})
    await ask(client, QUESTION)
    await learned(redis, client)
    await redis.flushall()

    async def has_forgotten() -> bool:
        return not (await quality(client))["learned"]

    await wait_until_async(has_forgotten, timeout=30)
    await ask(client, QUESTION)
    assert (await ask(client, SIMILAR))["cache"]["status"] == "miss"


@pytest.mark.parametrize(
    "sent",
    [
        {"headers": {"X-Ragherd-Policy": "fixed", "Cache-Control": "max-stale=100000, similarity=0.1"}},
        {"json": {"options": {"policy": "fixed", "similarity_threshold": 0.1}}},
        {"json": {"policy": "fixed", "threshold": 0.1, "similarity_threshold": 0.1}},
    ],
)
async def test_no_request_can_loosen_the_policy(serve: Service, sent: dict[str, Any]) -> None:
    client = await serve(cache={"similarity_threshold": NEAR})
    await ask(client, QUESTION)
    body = {"question": OPPOSITE, **sent.get("json", {})}
    response = await client.post("/query", json=body, headers=sent.get("headers"))
    assert response.status_code in (200, 422)
    assert response.status_code == 422 or response.json()["cache"]["status"] == "miss"
