"""Malformed request heads as raw bytes, and `ALLOWED_HOSTS`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from tests.support.service import Service


async def answer(client: httpx.AsyncClient, path: str, *fields: str, version: str = "1.1") -> tuple[int, Any]:
    """Returns the status and document of `GET path` with exactly these header lines."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        lines: Sequence[str] = (f"GET {path} HTTP/{version}", *fields, "Connection: close", "", "")
        writer.write("\r\n".join(lines).encode("latin-1"))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "fields",
    [
        ["Host: a", "Host: a"],
        ["Host: a", "Host: evil.example"],
        ["Host: a", "Authorization: Bearer one", "Authorization: Bearer two"],
        ["Host: a", "authorization: Bearer one", "AUTHORIZATION: Bearer one"],
        [],
        ["Host: a b"],
        ["Host: user@a"],
        ["Host: a/b"],
        ["Host: a:port"],
        ["Host: a, b"],
        ["Host: \xff"],
    ],
)
@pytest.mark.parametrize("path", ["/query", "/health/live", "/nowhere"])
async def test_an_ambiguous_head_is_400(serve: Service, path: str, fields: list[str]) -> None:
    status, document = await answer(await serve(), path, *fields)
    assert (status, document["type"]) == (400, "urn:ragherd:problem:malformed-head")


async def test_it_is_400_in_the_form_of_the_api_that_is_spoken(serve: Service) -> None:
    client = await serve()
    assert await answer(client, "/api/tags") == (400, {"error": "The request has no Host header."})
    status, document = await answer(client, "/v1/models", "Host: a", "Host: b")
    assert (status, document["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("host", ["a", "a:8001", "A.example", "127.0.0.1:1", "[::1]:8001", "[::1]", "", "a."])
async def test_a_host_is_any_host_unless_hosts_are_listed(serve: Service, host: str) -> None:
    assert (await answer(await serve(), "/api/workers", f"Host: {host}"))[0] == 200


async def test_http_1_0_has_no_host(serve: Service) -> None:
    assert (await answer(await serve(), "/health/live", version="1.0"))[0] == 200


LISTED = {"access": {"allowed_hosts": "rag.example,*.cluster.local,::1"}}


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("rag.example", True),
        ("RAG.example:8001", True),
        ("rag.example.", True),
        ("a.cluster.local", True),
        ("a.b.cluster.local:80", True),
        ("[::1]:8001", True),
        ("cluster.local", False),
        ("evilcluster.local", False),
        ("rag.example.evil.example", False),
        ("evil.example", False),
        ("127.0.0.1", False),
        ("", False),
    ],
)
async def test_only_listed_hosts_are_served(serve: Service, host: str, *, allowed: bool) -> None:
    status, document = await answer(await serve(**LISTED), "/api/workers", f"Host: {host}")
    assert status == (200 if allowed else 400)
    assert allowed or document["type"] == "urn:ragherd:problem:host-not-allowed"


async def test_probes_may_call_a_pod_by_its_address(serve: Service) -> None:
    client = await serve(**LISTED)
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await answer(client, path, "Host: 10.1.2.3:8001"))[0] == 200
    assert (await answer(client, "/healthy", "Host: 10.1.2.3:8001"))[0] == 400
