"""An admin changes Ollama's models through Ragherd, on every backend; nobody else does."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.service import Service
from tests.support.waiting import eventually

KEYS = {"api_keys": "acme=a-key", "admin_keys": "the-admin-key"}
ADMIN = {"Authorization": "Bearer the-admin-key"}
BLOB = bytes(range(256)) * 8192  # two MiB: more than MAX_BODY_BYTES
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


class ModelHost:
    """The part of Ollama that changes its models."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.models: list[str] = []
        self.uploading = 0
        self.blobs: dict[str, bytes] = {}
        routes = [
            Route("/api/pull", self.pull, methods=["POST"]),
            Route("/api/delete", self.delete, methods=["DELETE"]),
            Route("/api/blobs/{digest}", self.blob, methods=["HEAD", "POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def pull(self, request: Request) -> Response:
        fields = await request.json()
        name = fields["model"]
        if self.refuses:
            return JSONResponse({"error": "pull model manifest: file does not exist"}, 500)
        if fields.get("stream") is False:
            self.models.append(name)
            return JSONResponse({"status": "success"})

        async def lines() -> AsyncIterator[bytes]:
            yield b'{"status":"pulling manifest"}\n'
            self.models.append(name)
            yield b'{"status":"success"}\n'

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def delete(self, request: Request) -> Response:
        name = (await request.json())["model"]
        if name not in self.models:
            return JSONResponse({"error": f"model '{name}' not found"}, 404)
        self.models.remove(name)
        return Response()

    async def blob(self, request: Request) -> Response:
        digest = request.path_params["digest"]
        if request.method == "HEAD":
            return Response(status_code=200 if digest in self.blobs else 404)
        if self.refuses:
            return JSONResponse({"error": "no space left on device"}, 500)
        self.uploading += 1
        try:
            self.blobs[digest] = await request.body()
        finally:
            self.uploading -= 1
        return Response(status_code=201)


@asynccontextmanager
async def running(host: ModelHost) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(host.app, port=0, log_config=None))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


def settings(*urls: str, **more: Any) -> dict[str, Any]:
    ollama = {"ollama_base_url": ",".join(urls), "ollama_admin_passthrough": True, **more}
    return {"ollama": ollama, "access": KEYS}


async def test_it_is_off_unless_it_is_switched_on(serve: Service) -> None:
    service = await serve(access=KEYS)
    for method, path in (("POST", "/api/pull"), ("DELETE", "/api/delete"), ("POST", f"/api/blobs/{DIGEST}")):
        answer = await service.request(method, path, json={"model": "m"}, headers=ADMIN)
        assert answer.status_code == 403
        assert "OLLAMA_ADMIN_PASSTHROUGH" in answer.json()["error"]


async def test_every_backend_pulls_and_deletes(serve: Service) -> None:
    one, two = ModelHost(), ModelHost()
    async with running(one) as first, running(two) as second:
        service = await serve(**settings(first, second))
        pulled = await service.post("/api/pull", json={"model": "m"}, headers=ADMIN)
        assert pulled.text.splitlines() == [
            '{"status":"ollama:"}',
            '{"status":"pulling manifest"}',
            '{"status":"success"}',
            '{"status":"ollama-2:"}',
            '{"status":"pulling manifest"}',
            '{"status":"success"}',
        ]
        assert (one.models, two.models) == (["m"], ["m"])
        two.models.clear()
        missing = await service.request("DELETE", "/api/delete", json={"model": "m"}, headers=ADMIN)
        assert (missing.status_code, missing.json()) == (404, {"error": "model 'm' not found"}), "on one of them"
        assert one.models == []


async def test_an_admin_s_key_is_needed(serve: Service) -> None:
    host = ModelHost()
    async with running(host) as url:
        service = await serve(**settings(url))
        for headers, status in (({}, 401), ({"Authorization": "Bearer a-key"}, 403)):
            refused = await service.post("/api/pull", json={"model": "m"}, headers=headers)
            assert refused.status_code == status
        assert host.models == []


async def test_a_blob_goes_to_every_backend(serve: Service) -> None:
    one, two = ModelHost(), ModelHost()
    async with running(one) as first, running(two) as second:
        service = await serve(**settings(first, second))
        path = f"/api/blobs/{DIGEST}"
        assert (await service.head(path, headers=ADMIN)).status_code == 404
        sent = await service.post(path, content=BLOB, headers=ADMIN)
        assert sent.status_code == 201
        assert (one.blobs[DIGEST], two.blobs[DIGEST]) == (BLOB, BLOB)
        assert (await service.head(path, headers=ADMIN)).status_code == 200


async def test_a_backend_that_refuses_an_upload_stops_nothing(serve: Service) -> None:
    one, two = ModelHost(refuses=True), ModelHost()
    async with running(one) as first, running(two) as second:
        service = await serve(**settings(first, second))
        sent = await service.post(f"/api/blobs/{DIGEST}", content=BLOB, headers=ADMIN)
        assert (sent.status_code, sent.json()) == (500, {"error": "no space left on device"})
        assert two.blobs[DIGEST] == BLOB


async def test_an_error_comes_last_and_stops_no_other_backend(serve: Service) -> None:
    one, two = ModelHost(refuses=True), ModelHost()
    async with running(one) as first, running(two) as second:
        service = await serve(**settings(first, second))
        pulled = await service.post("/api/pull", json={"model": "m"}, headers=ADMIN)
        assert pulled.text.splitlines()[-2:] == [
            '{"status":"success"}',
            '{"error":"ollama: pull model manifest: file does not exist"}',
        ]
        assert two.models == ["m"]


async def test_without_a_stream_the_answer_is_that_of_the_backend_that_fared_worst(serve: Service) -> None:
    one, two = ModelHost(refuses=True), ModelHost()
    async with running(one) as first, running(two) as second:
        body = {"model": "m", "stream": False}
        service = await serve(**settings(first, second))
        pulled = await service.post("/api/pull", json=body, headers=ADMIN)
        assert (pulled.status_code, pulled.json()) == (500, {"error": "pull model manifest: file does not exist"})
        one.refuses = False
        pulled = await service.post("/api/pull", json=body, headers=ADMIN)
        assert (pulled.status_code, pulled.json()) == (200, {"status": "success"})


async def test_an_upload_ends_when_its_client_leaves_though_one_backend_is_down(serve: Service) -> None:
    host = ModelHost()
    async with running(host) as url:
        service = await serve(**settings("http://127.0.0.1:9", url))
        begun = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield BLOB[:100_000]
            begun.set()
            await asyncio.Event().wait()

        upload = asyncio.create_task(service.post(f"/api/blobs/{DIGEST}", content=slow(), headers=ADMIN))
        await begun.wait()
        await eventually(lambda: host.uploading == 1)
        upload.cancel()
        await eventually(lambda: host.uploading == 0)
        assert host.blobs == {}


async def test_a_backend_that_is_down_is_named(serve: Service) -> None:
    host = ModelHost()
    async with running(host) as url:
        service = await serve(**settings(url, "http://127.0.0.1:9"))
        pulled = await service.post("/api/pull", json={"model": "m"}, headers=ADMIN)
        assert pulled.text.splitlines()[-1].startswith('{"error":"ollama-2: Ollama cannot be reached')


@pytest.mark.parametrize(("prompt", "length"), [("a text", 16), ("", 0)])
async def test_the_older_embeddings(serve: Service, prompt: str, length: int) -> None:
    service = await serve()
    answer = await service.post("/api/embeddings", json={"model": "nomic-embed-text", "prompt": prompt})
    found = httpx.Response(200, content=answer.content).json()["embedding"]
    assert len(found) == length
