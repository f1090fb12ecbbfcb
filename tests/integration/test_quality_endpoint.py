"""The false-hit rate has the same figures wherever it is shown."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest

from api.ports.answer_quality import FalseHitRate, PolicyName, QualityEvent, QualityState, SimilarityBand, Versions
from ragherd.quality import service_text
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

PATH = "/api/semantic-cache/quality"
RATE = FalseHitRate(0.0123456789, 0.005, 0.03, 420, 9000.0)
SHOWN = {"estimate": 0.012346, "low": 0.005, "high": 0.03, "samples": 420}
UNKNOWN = {"estimate": None, "low": None, "high": None, "samples": 0}
STATE = QualityState(
    epoch=7,
    at_ms=1_795_867_200_000,
    policy=PolicyName.VERIFIED,
    versions=Versions("abcdef0123", "f00d", "facts+judge llama3.2-01-4be1a52c07"),
    level=1,
    threshold=0.94,
    target_error=0.015,
    learned=True,
    rate=RATE,
    by_kind={"semantic": RATE, "stale": FalseHitRate()},
    by_policy={"verified": RATE},
    by_tenant={"acme": RATE},
    by_similarity=(SimilarityBand(0.92, 0.94, 100, 3, RATE),),
    labels={"shadow": 420, "miss": 1000},
    unsure=17,
    history=(QualityEvent(1_795_867_100_000, "tightened", 1, RATE, "above the target"),),
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers know the figures above."""
    monkeypatch.setattr("api.quality.keeper.QualityView.state", lambda _: STATE)


async def figures(client: httpx.AsyncClient, **headers: str) -> dict[str, Any]:
    response = await client.get(PATH, headers=headers)
    assert response.status_code == 200, response.text
    shown: dict[str, Any] = response.json()
    return shown


async def test_before_the_first_label_nothing_is_claimed(serve: Service) -> None:
    client = await serve(cache={"similarity_threshold": 0.9})
    shown = await figures(client)
    assert (shown["policy"], shown["threshold"], shown["target_error"]) == ("guarded", 0.9, 0.02)
    assert shown["false_hit_rate"] == UNKNOWN
    assert shown["labels"] == {"shadow": 0, "miss": 0, "feedback": 0}
    assert shown["comparator"]["name"] == "facts"
    assert shown["comparator"]["version"]
    assert (shown["tightened"], shown["history"], shown["by_similarity"], shown["at"]) == (False, [], [], None)


@pytest.mark.usefixtures("measured")
async def test_the_figures_are_shown_in_full(serve: Service) -> None:
    shown = await figures(await serve())
    assert shown == {
        "policy": "verified",
        "threshold": 0.94,
        "target_error": 0.015,
        "false_hit_rate": SHOWN,
        "would_serve": UNKNOWN,
        "by_kind": {"semantic": SHOWN, "stale": UNKNOWN},
        "by_policy": {"verified": SHOWN},
        "by_tenant": {"acme": SHOWN},
        "by_similarity": [{"from": 0.92, "to": 0.94, "labels": 100, "wrong": 3, "low": 0.005, "high": 0.03}],
        "labels": {"shadow": 420, "miss": 1000, "feedback": 0},
        "unsure": 17,
        "comparator": {"name": "facts+judge llama3.2-01", "version": "4be1a52c07"},
        "embedder": "abcdef0123",
        "verifier": "f00d",
        "learned": True,
        "tightened": True,
        "level": 1,
        "at": "2026-11-28T12:00:00.000Z",
        "history": [
            {
                "at": "2026-11-28T11:58:20.000Z",
                "change": "tightened",
                "level": 1,
                "false_hit_rate": SHOWN,
                "reason": "above the target",
            }
        ],
    }


@pytest.mark.usefixtures("measured")
async def test_only_admins_see_tenants(serve: Service) -> None:
    client = await serve(access={"api_keys": "acme=a-key", "admin_keys": "root"})
    assert "by_tenant" not in await figures(client)
    assert "by_tenant" not in await figures(client, Authorization="Bearer a-key")
    assert "by_tenant" in await figures(client, Authorization="Bearer root")
    assert "acme" not in (await client.get("/metrics")).text


@pytest.mark.usefixtures("measured")
async def test_the_cache_report_and_prometheus_have_the_same_figure(serve: Service) -> None:
    client = await serve()
    assert (await client.get("/api/semantic-cache/metrics")).json()["false_hit_rate"] == SHOWN

    async def is_exposed() -> bool:
        return 'ragherd_cache_false_hit_rate{bound="estimate"' in (await client.get("/metrics")).text

    await wait_until_async(is_exposed)
    lines = (await client.get("/metrics")).text.splitlines()
    series = dict(line.rsplit(" ", 1) for line in lines if line.startswith("ragherd_cache_"))
    for bound in ("estimate", "low", "high"):
        for kind in ("all", "semantic"):
            exposed = float(series[f'ragherd_cache_false_hit_rate{{bound="{bound}",kind="{kind}"}}'])
            assert exposed == pytest.approx(SHOWN[bound], abs=1e-6)
        assert math.isnan(float(series[f'ragherd_cache_false_hit_rate{{bound="{bound}",kind="stale"}}']))
    assert float(series['ragherd_cache_false_hit_samples{kind="all"}']) == 420
    assert float(series["ragherd_cache_target_error"]) == 0.015
    assert float(series["ragherd_cache_tightened"]) == 1


async def test_it_needs_no_redis(serve: Service, redis_server: Any) -> None:
    client = await serve()
    await ask(client, "Who approves my holiday?")
    redis_server.kill()
    try:
        assert (await figures(client))["false_hit_rate"] == UNKNOWN
    finally:
        redis_server.start()


async def test_wrong_hits_show_on_every_worker(serve: Service, stub: StubOllama) -> None:
    sampled = {"shadow_rate": 1.0, "shadow_per_minute": 1000}
    one, other = await serve(cache=sampled), await serve(cache=sampled)
    stub.behaviour(answer="A ticket costs 5 euros.", path="/api/chat")
    await ask(one, "What does a ticket cost?")
    stub.behaviour(answer="A ticket costs 9 euros.", path="/api/chat")
    hits = [await ask(client, "What does a ticket cost?") for client in (one, other) * 20]
    assert {hit["cache"]["kind"] for hit in hits} == {"exact"}
    vote = {"request_id": hits[0]["request_id"], "verdict": "good"}
    assert (await one.post("/feedback", json=vote)).status_code == 202
    shown: list[dict[str, Any]] = []

    async def is_measured() -> bool:
        shown[:] = [await figures(client) for client in (one, other)]
        labels = shown[0]["labels"]
        return shown[0] == shown[1] and labels["shadow"] >= 20 and labels["feedback"] == 1

    await wait_until_async(is_measured, timeout=60)
    rate, samples = shown[0]["false_hit_rate"], shown[0]["labels"]["shadow"]
    assert rate["samples"] == samples, "feedback does not count in the rate"
    assert 0.5 < rate["low"] <= rate["estimate"] <= rate["high"] <= 1
    assert shown[0]["by_kind"]["exact"]["samples"] == samples
    assert shown[0]["by_tenant"]["default"]["samples"] == samples
    report = (await other.get("/api/semantic-cache/metrics")).json()
    assert report["false_hit_rate"]["samples"] >= samples


# -- The command line --------------------------------------------------------------------------------------------------


async def test_the_command_says_that_nothing_is_known_yet(serve: Service) -> None:
    shown = await figures(await serve(cache={"similarity_threshold": 0.9}))
    assert service_text(shown).splitlines() == [
        "policy: guarded, threshold 0.9, target 2 %",
        "wrong hits: not known yet",
        "labels: 0 shadow, 0 miss, 0 feedback",
        "tightened: no",
    ]


@pytest.mark.usefixtures("measured")
async def test_the_command_shows_the_rate_with_its_interval(serve: Service) -> None:
    text = service_text(await figures(await serve()))
    assert "wrong hits: 1.23 % (0.50 to 3.00) from 420 labels" in text
    assert "tightened: yes, to level 1 (above the target)" in text
