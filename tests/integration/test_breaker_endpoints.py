"""The breaker over HTTP with two workers: figures, history, overrides."""

from __future__ import annotations

from datetime import UTC, datetime

from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

METRICS = "/api/circuit-breaker/metrics"
AT_REST = {
    "state": "CLOSED",
    "failure_count": 0,
    "success_count": 0,
    "total_calls": 0,
    "last_failure_time": None,
    "rejected_calls": 0,
    "slow_calls": 0,
    "failure_rate": 0.0,
    "opened_at": None,
    "retry_after_seconds": 0,
    "forced": None,
    "store": "shared",
}


async def test_at_rest_it_is_closed_and_all_counts_are_zero(serve: Service) -> None:
    metrics = (await (await serve()).get(METRICS)).json()
    assert {name: metrics[name] for name in AT_REST} == AT_REST
    assert set(metrics["breakers"]) == {"ollama", "ollama-embed"}


async def test_overrides_are_fleet_wide_and_in_the_history(serve: Service) -> None:
    one, other = await serve(), await serve()
    assert (await one.post("/api/circuit-breaker/force-open")).json()["forced"] == "OPEN"

    async def rejected_elsewhere() -> bool:
        return (await other.post("/query", json={"question": "Now?"})).status_code == 503

    await wait_until_async(rejected_elsewhere, timeout=2)
    rejected = await other.post("/query", json={"question": "Now?"})
    assert int(rejected.headers["Retry-After"]) == 60
    assert (await other.post("/api/circuit-breaker/force-close")).json()["state"] == "CLOSED"
    assert (await ask(other, "Now?"))["answer"] == "echo: Now?"
    assert (await one.post("/api/circuit-breaker/reset")).json()["forced"] is None
    history = (await other.get("/api/circuit-breaker/history")).json()["transitions"]
    assert [entry["reason"] for entry in history] == ["reset", "forced_close", "forced_open"]
    assert (await other.get("/api/circuit-breaker/history", params={"limit": 1})).json()["transitions"] == history[:1]
    later = {"since": datetime.now(UTC).isoformat()}
    assert (await other.get("/api/circuit-breaker/history", params=later)).json()["transitions"] == []


async def test_any_time_is_one_to_count_from(serve: Service) -> None:
    client = await serve()
    for since in ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59"):
        assert (await client.get("/api/circuit-breaker/history", params={"since": since})).status_code == 200


async def test_bad_parameters_are_422(serve: Service) -> None:
    client = await serve()
    for params in ({"limit": 0}, {"limit": "x"}, {"since": "yesterday"}):
        assert (await client.get("/api/circuit-breaker/history", params=params)).status_code == 422


async def test_it_recovers_by_itself(serve: Service, stub: StubOllama) -> None:
    client = await serve(breaker={"failure_threshold": 1, "timeout": 0.3, "half_open_max_calls": 2})
    stub.behaviour("status", status=500, path="/api/chat")
    assert (await client.post("/query", json={"question": "Broken?"})).status_code == 502
    metrics = (await client.get(METRICS)).json()
    assert metrics["state"] == "OPEN"
    assert metrics["last_failure_time"].endswith("Z")
    assert metrics["opened_at"].endswith("Z")
    assert (await client.get("/health")).json()["status"] == "degraded"
    stub.behaviour()

    async def closed() -> bool:
        await client.post("/query", json={"question": "Better?"}, headers={"Cache-Control": "no-store"})
        return bool((await client.get(METRICS)).json()["state"] == "CLOSED")

    await wait_until_async(closed)
    history = (await client.get("/api/circuit-breaker/history")).json()["transitions"]
    assert [(entry["from"], entry["to"]) for entry in history] == [
        ("HALF_OPEN", "CLOSED"),
        ("OPEN", "HALF_OPEN"),
        ("CLOSED", "OPEN"),
    ]
    recovery = (await client.get("/api/circuit-breaker/recovery")).json()
    (outage,) = recovery["outages"]
    assert outage["probes"] >= 2
    assert outage["seconds"] == recovery["mean_seconds"] == recovery["longest_seconds"] >= 0.3
    assert 0 < recovery["availability_24h"] < 1


async def test_an_unknown_breaker_is_404(serve: Service) -> None:
    client = await serve()
    for path in ("history", "recovery"):
        assert (await client.get(f"/api/circuit-breaker/{path}", params={"breaker": "x"})).status_code == 404


async def test_switched_off_it_counts_and_never_opens(serve: Service, stub: StubOllama) -> None:
    client = await serve(breaker={"enabled": False, "failure_threshold": 1})
    stub.behaviour("status", status=500, path="/api/chat")
    for _ in range(3):
        assert (await client.post("/query", json={"question": "Broken?"})).status_code == 502
    metrics = (await client.get(METRICS)).json()
    assert (metrics["state"], metrics["failure_count"], metrics["enabled"]) == ("CLOSED", 3, False)


async def test_health_ignores_the_state_of_a_breaker_that_is_disabled(serve: Service, redis: Redis) -> None:
    await redis.hset("rag:cb:{ollama}", mapping={"state": "OPEN", "epoch": "5", "forced": "OPEN"})
    client = await serve(breaker={"enabled": False})
    health = (await client.get("/health")).json()
    assert (health["status"], health["circuit_breaker"]) == ("healthy", "CLOSED")
    metrics = (await client.get("/api/circuit-breaker/metrics")).json()
    assert (metrics["state"], metrics["forced"], metrics["enabled"]) == ("OPEN", "OPEN", False)
