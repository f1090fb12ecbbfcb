"""Experiments on a real Redis: what the API accepts, how variants answer, and what is counted for each."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.once(reason="arithmetic and keys are the same on every version")

PATH = "/api/experiments"
HEADER = "X-Ragherd-Variant"
CLIENT = "X-Ragherd-Client"
TEMPLATE = """
version = "pirate-1"
nothing_relevant = "Nothing."
[plain]
system = "Answer like a pirate."
[grounded]
system = "Answer like a pirate from the passages."
passage = "[$number] $text"
user = "$passages $question"
"""


def halves(name: str = "trial", settings: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    variants = [{"name": "control", "share": 50}, {"name": "other", "share": 50, "settings": settings or {}}]
    return {"name": name, "variants": variants, **more}


def all_of_it(settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Returns an experiment in which almost every client gets the settings."""
    variants = [{"name": "control", "share": 0.01}, {"name": "other", "share": 99.99, "settings": settings}]
    return {"name": "trial", "variants": variants, **more}


async def started(client: httpx.AsyncClient, body: dict[str, Any], status: int = 201) -> Any:
    response = await client.post(PATH, json=body)
    assert response.status_code == status, response.text
    return response.json()


async def report(client: httpx.AsyncClient, name: str = "trial") -> Any:
    return (await client.get(f"{PATH}/{name}")).raise_for_status().json()


async def runs(client: httpx.AsyncClient) -> str | None:
    running: str | None = (await client.get(PATH)).raise_for_status().json()["running"]
    return running


async def variant_of(client: httpx.AsyncClient, user: str, question: str = "What is a breaker?") -> str:
    response = await client.post("/query", json={"question": question}, headers={CLIENT: user})
    assert response.status_code == 200, response.text
    assert response.json()["cache"].get("variant", "") == response.headers.get(HEADER, "")
    return str(response.headers.get(HEADER, ""))


# -- starting and stopping --------------------------------------------------------------------------------------------


async def test_every_worker_assigns_alike_and_stops_at_once(serve: Service) -> None:
    one, other = await serve(), await serve()
    shown = await started(one, halves())
    assert (shown["state"], shown["unit"], [v["share"] for v in shown["variants"]]) == ("running", "client", [50, 50])

    async def follows() -> bool:
        return await variant_of(other, "ann") != ""

    await wait_until_async(follows)
    users = [f"user-{number}" for number in range(40)]
    first = [await variant_of(one, user) for user in users]
    assert first == [await variant_of(other, user, "Something else?") for user in users]
    assert set(first) == {"trial/control", "trial/other"}
    stopped = (await other.delete(PATH)).raise_for_status().json()
    assert (stopped["name"], stopped["state"]) == ("trial", "stopped")
    assert await variant_of(other, "ann") == ""

    async def is_over() -> bool:
        return await variant_of(one, "ann") == ""

    await wait_until_async(is_over)
    assert await runs(one) is None
    assert (await one.delete(PATH)).status_code == 404


async def test_without_an_experiment_nothing_shows(serve: Service, redis: Redis) -> None:
    client = await serve()
    response = await client.post("/query", json={"question": "What is a breaker?"}, headers={CLIENT: "ann"})
    assert HEADER not in response.headers
    assert "variant" not in response.json()["cache"]
    assert "ragherd_variant" not in "\n".join(
        line for line in (await client.get("/metrics")).text.splitlines() if not line.startswith("#")
    )
    assert [key async for key in redis.scan_iter("rag:experiment*")] == []


async def test_only_one_runs_and_only_its_shares_change(serve: Service) -> None:
    client = await serve()
    await started(client, halves())
    busy = await client.post(PATH, json=halves("second"))
    assert (busy.status_code, busy.json()["type"]) == (409, "urn:ragherd:problem:experiment-conflict")
    assert "trial is running. Only one can: stop it first." in busy.json()["detail"]
    changed = await client.post(PATH, json=halves(settings={"TOP_K": 2}))
    assert (changed.status_code, "running with other settings" in changed.json()["detail"]) == (409, True)
    users = [f"user-{number}" for number in range(60)]
    before = {user: await variant_of(client, user) for user in users}
    shares = halves()
    shares["variants"][0]["share"], shares["variants"][1]["share"] = 70, 30
    again = await started(client, shares, status=200)
    assert [one["share"] for one in again["variants"]] == [70, 30]
    after = {user: await variant_of(client, user) for user in users}
    assert {(before[user], after[user]) for user in users if before[user] != after[user]} == {
        ("trial/other", "trial/control")
    }


async def test_an_experiment_ends_by_itself(serve: Service) -> None:
    client = await serve()
    await started(client, halves(hours=0.0005))  # 1.8 s

    async def is_over() -> bool:
        return await variant_of(client, "ann") == ""

    await wait_until_async(is_over, timeout=10)
    assert (await report(client))["state"] == "ended"
    await started(client, halves("second"))


async def test_an_experiment_whose_definition_is_lost_starts_over(serve: Service, redis: Redis) -> None:
    client = await serve()
    await started(client, halves())
    await redis.delete("rag:experiment:trial")
    assert (await started(client, halves()))["state"] == "running"
    assert await variant_of(client, "ann") != ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (halves(settings={"SEMANTIC_CACHE_TTL": 5}), "variants.1.settings.SEMANTIC_CACHE_TTL: cannot vary"),
        (halves(settings={"SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 2}), "SIMILARITY_THRESHOLD: Input should be less"),
        (halves(settings={"PROMPT_TEMPLATE": "version = 1"}), "variants.1.settings.PROMPT_TEMPLATE: version: Input"),
        (halves(settings={"NO_SUCH": 1}), "variants.1.settings.NO_SUCH: no such setting; a variant may set"),
        (halves(settings={"TOP_K": 2}, share_answers=True), "share_answers: variants.1 sets TOP_K"),
        (halves(unit="tenant"), "unit: Input should be 'client' or 'question'"),
        (halves(hours=721), "hours: Input should be less than or equal to 720"),
        (halves("With Space"), "name: String should match pattern"),
        ({"name": "trial", "variants": [{"name": "only", "share": 50}]}, "variants: List should have at least 2"),
        ({"name": "trial", "variants": [{"name": "a", "share": 50}] * 2}, "variants: two variants have the same name"),
        (
            {"name": "trial", "variants": [{"name": "a", "share": 60}, {"name": "b", "share": 60}]},
            "variants: the shares add up to more than 100",
        ),
        (
            {"name": "trial", "variants": [{"name": "a", "share": 0.005}, {"name": "b", "share": 60}]},
            "variants.0.share: must be a multiple of 0.01",
        ),
        (halves(more=1), "more: unknown field"),
    ],
)
async def test_a_wrong_experiment_is_refused_by_name(serve: Service, body: dict[str, Any], message: str) -> None:
    client = await serve()
    response = await client.post(PATH, json=body)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert message in response.json()["detail"]
    assert await runs(client) is None


async def test_operators_read_and_only_admins_write(serve: Service) -> None:
    client = await serve(access={"admin_keys": "boss", "api_keys": "acme=user"})
    admin, user = {"Authorization": "Bearer boss"}, {"Authorization": "Bearer user"}
    body = halves(settings={"PROMPT_TEMPLATE": TEMPLATE})
    assert (await client.post(PATH, json=body)).status_code == 401
    assert (await client.post(PATH, json=body, headers=user)).status_code == 403
    assert (await client.post(PATH, json=body, headers=admin)).status_code == 201
    assert (await client.delete(PATH, headers=user)).status_code == 403
    for_all = (await client.get(f"{PATH}/trial")).json()["variants"][1]["settings"]
    assert for_all == {"PROMPT_TEMPLATE": "(for admins only)"}
    for_admins = (await client.get(f"{PATH}/trial", headers=admin)).json()["variants"][1]["settings"]
    assert for_admins == {"PROMPT_TEMPLATE": TEMPLATE}
    assert (await client.get(f"{PATH}/unknown")).status_code == 404


# -- answers ----------------------------------------------------------------------------------------------------------


async def users_of(client: httpx.AsyncClient) -> dict[str, str]:
    """Returns a user of each variant."""
    found: dict[str, str] = {}
    for number in range(40):
        response = await client.post(
            "/api/semantic-cache/explain", json={"question": "Whose?"}, headers={CLIENT: f"user-{number}"}
        )
        found.setdefault(response.raise_for_status().json()["variant"], f"user-{number}")
    return found


async def status(client: httpx.AsyncClient, user: str, question: str) -> str:
    found: str = (await ask(client, question, headers={CLIENT: user}))["cache"]["status"]
    return found


async def test_variants_do_not_share_answers(serve: Service) -> None:
    client = await serve()
    await ask(client, "What is a breaker?")
    await started(client, halves())
    users = await users_of(client)
    for user in (users["trial/control"], users["trial/other"]):
        assert [await status(client, user, "What is a breaker?") for _ in range(2)] == ["miss", "hit"]
    await client.delete(PATH)
    assert await status(client, "ann", "What is a breaker?") == "hit"


async def test_variants_share_answers_where_they_may(serve: Service) -> None:
    client = await serve()
    await ask(client, "What is a breaker?")
    await started(client, halves(settings={"SEMANTIC_CACHE_POLICY": "fixed"}, share_answers=True))
    users = await users_of(client)
    assert await status(client, users["trial/control"], "What is a breaker?") == "hit"
    assert await status(client, users["trial/other"], "What is a breaker?") == "hit"


async def test_a_variant_without_the_cache_calls_ollama_each_time(serve: Service) -> None:
    client = await serve()
    await started(client, all_of_it({"SEMANTIC_CACHE_ENABLED": False}))
    assert [await status(client, "ann", "What is a breaker?") for _ in range(2)] == ["bypass", "bypass"]
    explained = await client.post("/api/semantic-cache/explain", json={"question": "What is a breaker?"})
    assert explained.json()["reason"] == "The variant of the experiment does not use the cache."


async def test_a_variant_changes_model_and_prompt(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    stub.behaviour(models=["llama3.2:latest", "mistral:latest", "nomic-embed-text:latest"])
    await started(client, all_of_it({"LLM_MODEL": "mistral", "PROMPT_TEMPLATE": TEMPLATE}))
    answer = await ask(client, "What is a breaker?", headers={CLIENT: "ann"})
    assert answer["model"].startswith("mistral")
    sent = stub.last_bodies["/api/chat"]
    assert (sent["model"], sent["messages"][0]["content"]) == ("mistral", "Answer like a pirate.")


async def test_a_variant_has_its_own_threshold_and_policy(serve: Service) -> None:
    client = await serve()
    asked, near = "What is the capital of France?", "What is the capital of France, please?"
    await started(client, all_of_it({"SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 1.0}))
    await ask(client, asked, headers={CLIENT: "ann"})
    assert await status(client, "ann", near) == "miss"
    explained = await client.post("/api/semantic-cache/explain", json={"question": near}, headers={CLIENT: "ann"})
    assert (explained.json()["threshold"], explained.json()["variant"]) == (1.0, "trial/other")
    await client.delete(PATH)
    await started(client, all_of_it({"SEMANTIC_CACHE_POLICY": "observe"}))
    assert [await status(client, "ann", asked) for _ in range(2)] == ["miss", "miss"]
    await client.delete(PATH)
    await started(client, all_of_it({"SEMANTIC_CACHE_POLICY": "fixed", "SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 0.5}))
    assert [await status(client, "ann", text) for text in (asked, near)] == ["miss", "hit"]


# -- figures ----------------------------------------------------------------------------------------------------------


async def test_the_figures_of_each_variant_are_what_its_clients_saw(serve: Service) -> None:
    one, other = await serve(), await serve()
    await started(one, halves())

    async def follows() -> bool:
        return set(await users_of(other)) == {"trial/control", "trial/other"}

    await wait_until_async(follows)
    seen: Counter[tuple[str, str]] = Counter()
    votes: Counter[tuple[str, str]] = Counter()
    for number in range(60):
        client = (one, other)[number % 2]
        body = {"question": f"What is question {number // 2 % 7}?"}
        response = await client.post("/query", json=body, headers={CLIENT: f"user-{number % 30}"})
        name = response.headers[HEADER].partition("/")[2]
        seen[name, response.json()["cache"]["status"]] += 1
        if number % 5 == 0:
            verdict = "good"
            vote = {"request_id": response.json()["request_id"], "verdict": verdict}
            assert (await other.post("/feedback", json=vote)).status_code == 202
            votes[name, verdict] += 1
    found: dict[str, Any] = {}

    async def counted() -> bool:
        nonlocal found
        found = await report(other)
        return bool(sum(variant["requests"] for variant in found["variants"]) >= seen.total())

    await wait_until_async(counted)
    for now in found["variants"]:
        own = {status: count for (name, status), count in seen.items() if name == now["name"]}
        assert +Counter(now["queries"]) == own
        assert now["requests"] == sum(own.values())
        assert now["feedback"]["good"] == votes[now["name"], "good"]
        assert now["hit_rate"]["samples"] == now["queries"]["hit"] + now["queries"]["miss"]
        assert now["latency_ms"]["p95"] > 0
    assert found["comparisons"][0]["verdict"] == "too early"
    history = (await one.get("/api/history")).json()["points"]
    for variant in found["variants"]:
        sums: Counter[str] = Counter()
        for point in history:
            sums.update(point.get("variants", {}).get(f"trial/{variant['name']}", {}).get("queries", {}))
        assert +sums == +Counter(variant["queries"])
    metrics = (await one.get("/metrics")).text
    assert 'ragherd_variant_queries_total{experiment="trial",kind="exact",status="hit",variant="control"}' in metrics


async def test_on_a_cluster_experiments_work_as_on_one_redis(cluster_serve: Service) -> None:
    client = await cluster_serve()
    await started(client, halves())
    names = [(await variant_of(client, f"user-{number}")).partition("/")[2] for number in range(20)]

    async def counted() -> bool:
        found = {one["name"]: one["requests"] for one in (await report(client))["variants"]}
        return found == {"control": 0, "other": 0} | Counter(names)

    await wait_until_async(counted)
    assert (await client.delete(PATH, params={"name": "trial"})).json()["state"] == "stopped"
    assert await runs(client) is None


async def test_the_oldest_of_more_than_20_experiments_is_dropped(serve: Service, redis: Redis) -> None:
    client = await serve()
    for number in range(22):
        await started(client, halves(f"trial-{number}"))
        assert (await client.delete(PATH)).is_success
    kept = [one["name"] for one in (await client.get(PATH)).json()["experiments"]]
    assert kept == [f"trial-{number}" for number in range(21, 1, -1)]
    assert not await redis.exists("rag:experiment:trial-0")
    assert all([await redis.pttl(key) > 0 async for key in redis.scan_iter("rag:experiment*")])


async def test_a_worker_without_redis_keeps_the_experiment(serve: Service, redis: Redis) -> None:
    client = await serve()
    await started(client, all_of_it({}))
    assert await variant_of(client, "ann") == "trial/other"
    await redis.config_set("maxclients", 1)  # the worker's open connections stay; they are killed next
    try:
        await redis.client_kill_filter(_type="normal", skipme=True)

        async def is_lost() -> bool:
            response = await client.post("/query", json={"question": "Lost?"}, headers={CLIENT: "ann"})
            assert response.headers[HEADER] == "trial/other"
            return bool(response.json()["cache"]["status"] == "bypass")

        await wait_until_async(is_lost, timeout=10)
    finally:
        await redis.config_set("maxclients", 10_000)


async def test_errors_count_for_the_variant_and_say_which(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    await started(client, all_of_it({}))
    stub.behaviour("status", status=404, message="model 'absent' not found", path="/api/chat")
    response = await client.post("/query", json={"question": "Why?"}, headers={CLIENT: "ann"})
    assert (response.status_code, response.headers[HEADER]) == (404, "trial/other")

    async def counted() -> bool:
        return bool((await report(client))["variants"][1]["queries"]["error"] == 1)

    await wait_until_async(counted)
    assert (await report(client))["variants"][1]["error_rate"]["estimate"] == 1.0


async def test_callers_who_share_a_failed_call_each_get_their_variant(serve: Service, stub: StubOllama) -> None:
    client = await serve()
    body = halves(share_answers=True)
    body["variants"][0]["share"] = body["variants"][1]["share"] = 40
    await started(client, body)
    users = await users_of(client)
    stub.behaviour("status", status=404, message="model 'absent' not found", path="/api/chat", delay=1.0)
    asked = {"question": "Why?"}
    responses = await asyncio.gather(
        *(client.post("/query", json=asked, headers={CLIENT: user}) for user in users.values())
    )
    assert [response.status_code for response in responses] == [404] * 3
    assert stub.stats["requests"]["/api/chat"] == 1
    assert [response.headers.get(HEADER) for response in responses] == list(users)


async def test_a_stream_says_its_variant(serve: Service) -> None:
    client = await serve()
    await started(client, all_of_it({}))
    response = await client.post("/query", json={"question": "Why?", "stream": True}, headers={CLIENT: "ann"})
    assert response.headers[HEADER] == "trial/other"
    assert '"variant":"trial/other"' in response.text


async def test_labels_of_a_variant_give_its_false_hit_rate(serve: Service) -> None:
    client = await serve(cache={"shadow_rate": 1.0})
    await started(client, all_of_it({"SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 0.9}))
    for _ in range(4):
        await ask(client, "What is a breaker?", headers={CLIENT: "ann"})

    async def labelled() -> bool:
        found = (await report(client))["variants"][1]
        rate = (await client.get("/api/semantic-cache/quality")).json().get("by_variant", {}).get("trial/other")
        return bool(found["labels"]["same"] >= 2 and found["false_hits"] is not None and rate is not None)

    await wait_until_async(labelled, timeout=20)


# -- a fleet ----------------------------------------------------------------------------------------------------------

SERIES = re.compile(
    r'^ragherd_variant_queries_total\{experiment="trial",kind="\w+",status="(\w+)",variant="(\w+)"\} (\S+)$',
    re.MULTILINE,
)


class Seen:
    """What the clients of four workers saw: statuses by variant, and by user or variant what must not mix."""

    def __init__(self) -> None:
        self.statuses: Counter[tuple[str, str]] = Counter()
        self.variants: defaultdict[str, set[str]] = defaultdict(set)
        self.workers: defaultdict[str, set[str]] = defaultdict(set)
        self.entries: defaultdict[str, set[str]] = defaultdict(set)

    async def ask(self, workers: Sequence[httpx.AsyncClient], requests: int) -> None:
        """Asks 40 users' questions, ten requests at a time, each user on every worker."""
        numbers = iter(range(requests))

        async def ask_on() -> None:
            for number in numbers:
                user, worker = f"user-{number // 4 % 40}", workers[number % 4]
                body = {"question": f"What is the answer to question {number // 7 % 6}?"}
                response = await worker.post("/query", json=body, headers={CLIENT: user})
                assert response.status_code == 200, response.text
                label, cache = response.headers.get(HEADER, ""), response.json()["cache"]
                self.statuses[label.partition("/")[2], cache["status"]] += 1
                self.variants[user].add(label)
                self.workers[label].add(response.headers["X-Worker"])
                self.entries[label].add(cache["entry"])

        await asyncio.gather(*(ask_on() for _ in range(10)))


async def explained(worker: httpx.AsyncClient) -> set[str | None]:
    """Returns the variants that a worker gives to 40 users."""
    body, found = {"question": "Whose?"}, set()
    for number in range(40):
        headers = {CLIENT: f"user-{number}"}
        response = await worker.post("/api/semantic-cache/explain", json=body, headers=headers)
        found.add(response.json()["variant"])
    return found


async def test_four_workers_assign_alike_count_what_clients_saw_and_stop_together(serve: Service) -> None:
    workers = [await serve() for _ in range(4)]
    body = halves(settings={"SEMANTIC_CACHE_SIMILARITY_THRESHOLD": 0.88})
    body["variants"][0]["share"] = body["variants"][1]["share"] = 40
    await started(workers[0], body)

    async def all_follow() -> bool:
        return all([await explained(one) == {"trial/control", "trial/other", None} for one in workers])

    await wait_until_async(all_follow, timeout=10)
    seen = Seen()
    await seen.ask(workers, 400)
    assert {len(variants) for variants in seen.variants.values()} == {1}, "a user keeps one variant on every worker"
    assert {label: len(of) for label, of in seen.workers.items()} == {"": 4, "trial/control": 4, "trial/other": 4}
    apart = [seen.entries[label] for label in ("", "trial/control", "trial/other")]
    assert sum(map(len, apart)) == len(set.union(*apart)), "variants share no answer"
    expected = Counter({place: count for place, count in seen.statuses.items() if place[0]})
    assert min(expected["control", "hit"], expected["other", "hit"]) > 0

    async def is_counted() -> bool:
        variants = (await report(workers[3]))["variants"]
        found = Counter({(one["name"], status): count for one in variants for status, count in one["queries"].items()})
        return +found == expected

    await wait_until_async(is_counted, timeout=10)
    in_history: Counter[tuple[str, str]] = Counter()
    for point in (await workers[1].get("/api/history")).json()["points"]:
        for label, figures in point.get("variants", {}).items():
            in_history.update({(label.partition("/")[2], one): count for one, count in figures["queries"].items()})
    in_prometheus: Counter[tuple[str, str]] = Counter()
    for worker in workers:
        for found, variant, value in SERIES.findall((await worker.get("/metrics")).text):
            in_prometheus[variant, found] += int(float(value))
    assert +in_history == +in_prometheus == expected
    assert (await workers[2].delete(PATH)).json()["state"] == "stopped"

    async def all_stopped() -> bool:
        return all([await explained(one) == {None} for one in workers])

    await wait_until_async(all_stopped, timeout=10)
    after = Seen()
    await after.ask(workers, 40)
    assert set(after.workers) == {""}
