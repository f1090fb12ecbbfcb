"""A recording goes to Ollama as it came, through the key, the bulkhead, the breaker and the failover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.endpoints import forwarded_api
from api.endpoints.forwarded_api import RecordingForm
from api.endpoints.middleware import FORM_BYTES
from api.errors import InvalidRequest
from tests.stub_ollama import StubOllama, running_stub
from tests.support.service import Service
from tests.support.waiting import wait_until_async

PATH = "/v1/audio/transcriptions"
SOUND = b"RIFF\x00\xff" * 100_000


async def transcribed(client: httpx.AsyncClient, sound: bytes = SOUND, **fields: str) -> httpx.Response:
    return await client.post(
        PATH, files={"file": ("speech.wav", sound, "audio/wav")}, data={"model": "llama3.2", **fields}
    )


async def test_the_answer_is_ollama_s_own_and_never_cached(serve: Service, stub: StubOllama) -> None:
    service = await serve()
    for _ in range(2):
        answer = await transcribed(service, language="en")
        assert (answer.status_code, answer.json()) == (200, {"text": "a recording of 600000 bytes"})
        assert answer.headers["cache-status"] == "ragherd; fwd=bypass; detail=form"
    assert stub.last_bodies[PATH] == {"file": 600_000, "model": "llama3.2", "language": "en"}
    assert stub.stats["requests"][PATH] == 2


async def test_text_stays_text(serve: Service) -> None:
    answer = await transcribed(await serve(), response_format="text")
    assert answer.text == "a recording of 600000 bytes"
    assert answer.headers["content-type"].startswith("text/plain")


async def test_a_refusal_of_ollama_s_comes_back(serve: Service) -> None:
    answer = await (await serve()).post(PATH, files={"model": (None, "llama3.2"), "language": (None, "en")})
    assert answer.status_code == 400
    assert "file is required" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"{}", "application/json", "Send a form"),
        (b"no form", "multipart/form-data; boundary=b", "cannot be read"),
        (
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            "model",
        ),
    ],
)
async def test_what_is_no_form_with_a_model_is_refused(
    serve: Service, stub: StubOllama, content: bytes, kind: str, message: str
) -> None:
    answer = await (await serve()).post(PATH, content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert PATH not in stub.stats["requests"]


async def test_a_recording_has_its_own_limit(serve: Service, stub: StubOllama) -> None:
    service = await serve(server={"max_audio_bytes": 1000, "max_body_bytes": 2000})
    assert (await transcribed(service, SOUND[:900])).status_code == 200
    declared = await transcribed(service, b"x" * (1000 + FORM_BYTES + 1))
    assert declared.status_code == 413

    async def undeclared() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b"x" * 1000

    chunked = await service.post(
        PATH, content=undeclared(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert chunked.status_code in {400, 413}
    assert stub.stats["requests"][PATH] == 1


async def test_a_key_is_needed_before_a_byte_is_read(serve: Service) -> None:
    service = await serve(access={"api_keys": "team=secret"})
    assert (await transcribed(service)).status_code == 401
    service.headers["Authorization"] = "Bearer secret"
    assert (await transcribed(service)).status_code == 200


async def test_an_older_ollama_is_named(serve: Service, stub: StubOllama) -> None:
    stub.behaviour(lacks=(PATH,))
    answer = await transcribed(await serve())
    assert answer.status_code == 404
    assert "came with Ollama 0.20.0" in answer.json()["error"]["message"]


async def test_an_unknown_model_is_not_found(serve: Service, stub: StubOllama) -> None:
    stub.behaviour(models=("llama3.2:latest",))
    answer = await transcribed(await serve(), model="nope")
    assert answer.status_code == 404
    assert "model 'nope' not found" in answer.json()["error"]["message"]


async def test_another_backend_gets_the_whole_recording(serve: Service, stub: StubOllama) -> None:
    async with running_stub() as other:
        service = await serve(ollama={"ollama_base_url": f"{stub.base_url},{other.base_url}"})
        stub.behaviour("close", path=PATH)
        other.behaviour("close", path=PATH, times=1)
        answers = [await transcribed(service) for _ in range(2)]
    assert 200 in [answer.status_code for answer in answers]
    assert other.last_bodies[PATH]["file"] == 600_000


async def test_failures_open_the_breaker(serve: Service, stub: StubOllama) -> None:
    stub.behaviour("status", status=500, path=PATH)
    service = await serve(breaker={"failure_threshold": 2})
    answers = [await transcribed(service) for _ in range(4)]
    assert answers[-1].status_code == 503
    assert answers[-1].json()["error"]["code"] == "circuit-breaker-open"


async def test_a_fifth_recording_waits_for_room(
    serve: Service, stub: StubOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarded_api, "WAIT_FOR_ROOM", 0.2)
    stub.behaviour("hang", path=PATH)
    service = await serve()
    waiting = [asyncio.create_task(transcribed(service)) for _ in range(4)]
    try:
        await wait_until_async(lambda: _is_sent(stub, 4))
        full = await transcribed(service)
        assert full.status_code == 503
        assert full.json()["error"]["code"] == "bulkhead-full"
        assert int(full.headers["retry-after"]) >= 1
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _is_sent(stub: StubOllama, count: int) -> bool:
    return bool(stub.stats["requests"].get(PATH) == count)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_model_is_read_however_the_form_is_cut(size: int) -> None:
    request: Any = httpx.Request(
        "POST", "http://x", files={"file": ("a.wav", SOUND[:3000]), "model": (None, "whisper:1")}
    )
    body, form = request.read(), RecordingForm(request.headers["content-type"])
    for start in range(0, len(body), size):
        form.feed(body[start : start + size])
    assert (form.model, form.body()) == ("whisper:1", body)


def test_a_name_without_end_is_refused() -> None:
    form = RecordingForm("multipart/form-data; boundary=b")
    form.feed(b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n')
    with pytest.raises(InvalidRequest):
        form.feed(b"x" * 5000)
