"""The audit log: which actions it records, who did them, and what breaks its chain of hashes."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from api.app import create_app
from api.endpoints.routes import role_of
from api.ports.audit import FIRST
from api.settings import Settings
from api.values import owner_of
from ragherd.commands import commands
from tests.support.redis_cluster import Cluster
from tests.support.service import Service

KEY = "the-admin-key-for-tests"
ADMIN = {"Authorization": f"Bearer {KEY}"}
KEYS = {"access": {"api_keys": "acme=acme-key-for-tests", "admin_keys": KEY}, "server": {"log_level": "error"}}
UNRECORDED = {"post_document", "delete_document"}
"""Documents are data: their change is in the history of the document, and a sync would fill the log."""


async def entries(client: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    response = await client.get("/api/audit", params=params, headers=ADMIN)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["entries"]
    return found


async def act(client: httpx.AsyncClient, method: str, path: str, expected: int = 200, **more: Any) -> httpx.Response:
    response = await client.request(method, path, headers=ADMIN, **more)
    assert response.status_code == expected, response.text
    return response


async def verified(client: httpx.AsyncClient, *arguments: str) -> Result:
    called = ["audit", "--verify", "--url", str(client.base_url), *arguments]
    return await asyncio.to_thread(
        partial(CliRunner().invoke, commands, called, env={"RAGHERD_API_KEY": KEY, "COLUMNS": "250"})
    )


def test_every_endpoint_that_changes_something_for_an_admin_records_it() -> None:
    app = create_app(Settings())
    endpoints = {
        route.endpoint
        for route in iter_route_contexts(app.routes)
        if route.endpoint is not None and set(route.methods or ()) - {"GET", "HEAD"}
    }
    admins = {endpoint for endpoint in endpoints if role_of(endpoint) == "admin"}
    assert len(admins) >= 10
    silent = {endpoint.__name__ for endpoint in admins if not _records(endpoint)}
    assert silent == UNRECORDED


def _records(endpoint: Any) -> bool:
    """Whether the endpoint, or a function of its module that it calls, calls `audited`."""
    module = inspect.getmodule(endpoint)
    for name in _called(endpoint):
        helper = getattr(module, name, None)
        if name == "audited" or (inspect.isfunction(helper) and "audited" in _called(helper)):
            return True
    return False


def _called(function: Any) -> set[str]:
    tree = ast.parse(inspect.getsource(function))
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


async def test_each_action_is_recorded_with_who_what_and_when(serve: Service) -> None:
    client = await serve(**KEYS)
    await act(client, "POST", "/api/circuit-breaker/force-open", params={"breaker": "ollama"})
    await act(client, "POST", "/api/circuit-breaker/reset")
    await act(client, "POST", "/api/backends/ollama/drain", params={"force": "true"})
    await act(client, "POST", "/api/backends/ollama/resume")
    await act(client, "DELETE", "/api/semantic-cache", params={"question": "Where is the zebrafish?", "tenant": "acme"})
    job = (await act(client, "POST", "/api/semantic-cache/warm", 202, json={"questions": ["Zebrafish?"]})).json()["id"]
    await act(client, "DELETE", f"/api/semantic-cache/warm/{job}")
    variants = [{"name": "control", "share": 50}, {"name": "other", "share": 50}]
    await act(client, "POST", "/api/experiments", 201, json={"name": "trial", "variants": variants})
    await act(client, "DELETE", "/api/experiments")
    found = await entries(client)
    assert [(one["action"], one["details"]) for one in reversed(found)] == [
        ("breaker.force-open", {"breaker": "ollama"}),
        ("breaker.reset", {}),
        ("backend.drain", {"backend": "ollama", "force": "true"}),
        ("backend.resume", {"backend": "ollama"}),
        ("cache.invalidate", {"kind": "question", "tenant_hash": owner_of("acme")}),
        ("cache.warm-up", {"questions": "1"}),
        ("cache.cancel-warm-up", {"job": job}),
        ("experiment.start", {"experiment": "trial"}),
        ("experiment.stop", {}),
    ]
    [by] = {one["by"] for one in found}
    assert by.startswith("key-")
    assert "zebrafish" not in json.dumps(found).lower()
    assert KEY not in json.dumps(found)
    assert await entries(client, before=found[-2]["id"]) == found[-1:]
    assert await entries(client, before="0-0") == []
    assert found[-1]["previous"] == FIRST


async def test_what_changes_nothing_is_not_recorded(serve: Service) -> None:
    client = await serve(**KEYS)
    await act(client, "DELETE", "/api/semantic-cache", params={"all": "true", "dry_run": "true"})
    await act(client, "POST", "/api/circuit-breaker/reset", 404, params={"breaker": "none"})
    await act(client, "DELETE", "/api/semantic-cache", 422)
    refused = await client.post("/api/circuit-breaker/reset", headers={"Authorization": "Bearer acme-key-for-tests"})
    assert refused.status_code == 403
    assert (await client.get("/api/audit")).status_code == 401
    assert await entries(client) == []


async def test_commands_that_write_to_redis_are_recorded(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(commands, [*arguments, str(tmp_path / "backup")], env={"REDIS_URL": redis_url})

    for arguments in (("backup",), ("restore", "--dry-run"), ("restore",)):
        result = await asyncio.to_thread(run, *arguments)
        assert result.exit_code == 0, result.output
    found: Any = await redis.xrange("rag:audit")
    assert [(fields[b"action"], fields[b"by"]) for _, fields in found] == [(b"restore", b"command-line")]


async def test_workers_share_one_chain(serve: Service) -> None:
    fleet = [await serve(**KEYS) for _ in range(2)]
    await asyncio.gather(*(act(fleet[n % 2], "POST", "/api/circuit-breaker/reset") for n in range(12)))
    assert [one["number"] for one in await entries(fleet[0])] == list(range(12, 0, -1))
    result = await verified(fleet[1], "--json", "--limit", "2")
    assert (result.exit_code, json.loads(result.stdout)["kept"]) == (0, 12)
    assert len(json.loads(result.stdout)["entries"]) == 2
    pages = await entries(fleet[0], limit=5, before=(await entries(fleet[0], limit=5))[-1]["id"])
    assert [one["number"] for one in pages] == [7, 6, 5, 4, 3]


async def chain_of(serve: Service, number: int) -> httpx.AsyncClient:
    client = await serve(**KEYS)
    for _ in range(number):
        await act(client, "POST", "/api/circuit-breaker/reset")
    return client


async def test_trimming_leaves_the_chain_whole(serve: Service, redis: Redis) -> None:
    client = await chain_of(serve, 5)
    known = [one["hash"] for one in await entries(client)]
    await redis.xtrim("rag:audit", maxlen=3, approximate=False)
    result = await verified(client, "--hash", known[1])
    assert result.exit_code == 0, result.output
    assert "The chain is whole: entries 3 to 5" in result.output
    assert (await verified(client, "--hash", known[3])).exit_code == 0, "the first that is kept names it"
    assert (await verified(client, "--hash", known[4])).exit_code == 1


@pytest.mark.parametrize("harm", ["changed", "removed", "replaced"])
async def test_a_broken_chain_is_reported(serve: Service, redis: Redis, harm: str) -> None:
    client = await chain_of(serve, 4)
    known = (await entries(client))[0]["hash"]
    stored: Any = await redis.xrange("rag:audit")
    if harm == "changed":
        await redis.delete("rag:audit")
        for name, fields in stored:
            fields |= {b"by": b"somebody"} if name == stored[1][0] else {}
            await redis.xadd("rag:audit", fields, name)
        fault = "Entry 2 was changed."
    elif harm == "removed":
        await redis.xdel("rag:audit", stored[2][0])
        fault = "Entry 4 does not follow entry 2."
    else:
        await redis.delete("rag:audit")
        await act(client, "POST", "/api/circuit-breaker/reset")
        assert (await verified(client)).exit_code == 0, "a new chain is whole"
        fault = "The chain lacks the given hash"
    result = await verified(client, "--hash", known)
    assert result.exit_code == 1
    assert fault in result.output


async def test_on_a_cluster_there_is_one_chain_too(cluster_serve: Service, cluster: Cluster) -> None:
    fleet = [await cluster_serve(**KEYS) for _ in range(2)]
    await asyncio.gather(*(act(fleet[n % 2], "POST", "/api/circuit-breaker/reset") for n in range(4)))
    assert (await verified(fleet[0])).exit_code == 0
    assert len(await entries(fleet[1])) == 4
