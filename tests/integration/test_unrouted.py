"""Requests without a route: `Allow` lists every method of the path, and redirects do not repeat the caller's `Host`."""

from __future__ import annotations

import pytest

from tests.support.service import Service

EVIL = {"Host": "evil.example"}


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/documents", "GET, HEAD, POST"),
        ("/documents/3a755ca3e1488546dc0eacd7", "DELETE, GET, HEAD"),
        ("/api/semantic-cache/warm/1", "DELETE, GET, HEAD"),
        ("/api/semantic-cache/warm", "POST"),
        ("/query", "POST"),
        ("/health", "GET, HEAD"),
        ("/api/chat", "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ],
)
async def test_allow_names_every_method_of_a_path(serve: Service, path: str, methods: str) -> None:
    client = await serve()
    for method in ("PATCH", "PUT", "OPTIONS", "TRACE"):
        refused = await client.request(method, path)
        assert (refused.status_code, refused.headers["Allow"]) == (405, methods), method


@pytest.mark.parametrize("path", ["/documents", "/documents/x", "/health", "/v1/models", "/docs"])
async def test_what_allow_names_is_served(serve: Service, path: str) -> None:
    client = await serve()
    for method in (await client.put(path)).headers["Allow"].split(", "):
        assert (await client.request(method, path)).status_code != 405, method


@pytest.mark.parametrize(
    ("asked", "location"),
    [
        ("/health/", "/health"),
        ("/health///", "/health"),
        ("/docs/", "/docs"),
        ("/documents/?limit=2&tag=a%20b", "/documents?limit=2&tag=a%20b"),
        ("/documents/a%3Fb%0Ac/", "/documents/a%3Fb%0Ac"),
    ],
)
async def test_a_slash_too_many_is_redirected_within_this_host(serve: Service, asked: str, location: str) -> None:
    answer = await (await serve()).get(asked, headers=EVIL)
    assert (answer.status_code, answer.headers["Location"]) == (307, location)


async def test_a_redirected_question_keeps_its_method_and_body(serve: Service) -> None:
    client = await serve()
    answer = await client.post("/query/", json={"question": "Who?"}, follow_redirects=True)
    assert answer.status_code == 200
    assert (await client.get("/query/")).status_code == 404


@pytest.mark.parametrize("path", ["//evil.example/", "//evil.example/docs/", "///health/", "/nowhere/", "/a/b/c/"])
async def test_no_other_path_is_redirected(serve: Service, path: str) -> None:
    client = await serve()
    answer = await client.get(str(client.base_url).rstrip("/") + path, headers=EVIL)
    assert answer.status_code == 404
    assert "Location" not in answer.headers
