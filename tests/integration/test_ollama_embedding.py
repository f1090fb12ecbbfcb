"""The Ollama embedder with a stub: unit vectors, a stable identity, and errors that the breaker can classify."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from api.errors import EmbeddingUnavailable, StoreUnavailable, UpstreamError, UpstreamFault
from api.ollama.embedding import PROBES, OllamaEmbedder
from api.ollama.pool import OllamaPool, PoolLimits, open_pool
from api.values import EmbedderIdentity, Vector
from tests.stub_ollama import StubOllama, running_stub
from tests.support.waiting import wait_until_async

MODEL = "nomic-embed-text"
REMEMBERED = EmbedderIdentity(MODEL, 16, "0123456789")


@pytest.fixture
async def stub() -> AsyncIterator[StubOllama]:
    async with running_stub() as stub:
        yield stub


@pytest.fixture
async def pool(stub: StubOllama) -> AsyncIterator[OllamaPool]:
    async with open_pool(stub.base_url, PoolLimits(min_size=1, connect_timeout=0.2)) as pool:
        yield pool


@pytest.fixture
async def embedder(pool: OllamaPool) -> AsyncIterator[OllamaEmbedder]:
    async with OllamaEmbedder.open(pool, MODEL, 0.3, resolve_pause=0.0) as embedder:
        yield embedder


def floats(vector: Vector) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(vector, dtype="<f4")


async def unavailable(embedder: OllamaEmbedder) -> UpstreamFault:
    with pytest.raises(EmbeddingUnavailable) as caught:
        await embedder.embed(["goat"], tenant="t")
    assert isinstance(caught.value.__cause__, UpstreamError)
    return caught.value.__cause__.fault


async def test_vectors_are_of_unit_length_and_in_order(embedder: OllamaEmbedder, stub: StubOllama) -> None:
    stub.behaviour(scale=7.5, dimension=32)
    both = [one.vector for one in await embedder.embed(["a goat", "a ship"], tenant="t")]
    assert [len(vector) for vector in both] == [32 * 4] * 2
    assert [float(np.linalg.norm(floats(vector))) for vector in both] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert [one.vector for one in await embedder.embed(["a ship", "a goat"], tenant="t")] == both[::-1]
    assert both[0] != both[1]


async def test_no_texts_no_call(embedder: OllamaEmbedder, stub: StubOllama) -> None:
    assert await embedder.embed([], tenant="t") == []
    assert "/api/embed" not in stub.stats["requests"]


async def test_a_text_that_is_not_valid_unicode_is_embedded(embedder: OllamaEmbedder) -> None:
    assert len(await embedder.embed(["half a pair: \ud83d"], tenant="t")) == 1


async def test_the_identity_is_the_models_name_weights_and_dimension(pool: OllamaPool, stub: StubOllama) -> None:
    seen = set()
    changes: list[dict[str, Any]] = [{}, {}, {"digest": "sha256:other"}, {"dimension": 8}]
    for fields in changes:
        stub.behaviour(**fields)
        async with OllamaEmbedder.open(pool, MODEL, 1.0) as embedder:
            identity = await embedder.identity()
        assert identity == EmbedderIdentity(MODEL, fields.get("dimension", 16), identity.fingerprint)
        assert len(identity.fingerprint) == 10
        assert int(identity.fingerprint, 16) >= 0
        seen.add(identity.fingerprint)
    assert len(seen) == 3


async def test_the_identity_is_asked_for_once(embedder: OllamaEmbedder, stub: StubOllama) -> None:
    identities = await asyncio.gather(*(embedder.identity() for _ in range(10)))
    await stub.refuse()
    assert {await embedder.identity(), *identities} == {identities[0]}
    assert stub.stats["requests"]["/api/tags"] == 1


async def test_the_identity_is_unknown_while_ollama_was_never_seen(embedder: OllamaEmbedder, stub: StubOllama) -> None:
    await stub.refuse()
    with pytest.raises(EmbeddingUnavailable) as caught:
        await embedder.identity()
    assert isinstance(caught.value.__cause__, UpstreamError)
    await stub.listen()
    assert (await embedder.identity()).dimension == 16


async def test_the_remembered_identity_stands_in_until_ollama_answers(pool: OllamaPool, stub: StubOllama) -> None:
    told: list[EmbedderIdentity] = []

    async def tell(identity: EmbedderIdentity) -> None:
        told.append(identity)
        raise StoreUnavailable("Redis is down")

    await stub.refuse()
    async with OllamaEmbedder.open(
        pool, MODEL, 0.3, remembered=REMEMBERED, on_identity=tell, resolve_pause=0.0
    ) as embedder:
        assert await embedder.identity() == REMEMBERED
        assert told == []
        await stub.listen()
        resolved = await embedder.identity()
    assert resolved != REMEMBERED
    assert told == [resolved]


async def test_a_failing_ollama_is_not_asked_again_at_once(pool: OllamaPool, stub: StubOllama) -> None:
    stub.behaviour("status", status=503, path="/api/tags")
    async with OllamaEmbedder.open(pool, MODEL, 0.3, remembered=REMEMBERED, resolve_pause=60) as embedder:
        assert [await embedder.identity() for _ in range(5)] == [REMEMBERED] * 5
    assert stub.stats["requests"]["/api/tags"] == 1


async def test_a_failed_probe_leaves_a_script_unread_and_fails_no_text(
    pool: OllamaPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with OllamaEmbedder.open(pool, MODEL, 1.0, resolve_pause=0.0) as embedder:
        embedded = embedder._embedded

        async def failing(texts: Sequence[str], *more: Any) -> Any:
            if tuple(texts) == PROBES["CYRILLIC"]:
                raise EmbeddingUnavailable("not now")
            return await embedded(texts, *more)

        monkeypatch.setattr(embedder, "_embedded", failing)
        assert (await embedder.embed(["Кто там?"], tenant="t"))[0].unread == ("кто", "там")
        monkeypatch.undo()
        assert (await embedder.embed(["Кто там?"], tenant="t"))[0].unread == ()


async def test_another_dimension_is_refused_and_learned(embedder: OllamaEmbedder, stub: StubOllama) -> None:
    before = await embedder.identity()
    stub.behaviour(dimension=8)
    with pytest.raises(EmbeddingUnavailable):
        await embedder.embed(["goat"], tenant="t")
    after = await embedder.identity()
    assert (before.dimension, after.dimension) == (16, 8)
    assert [len(one.vector) for one in await embedder.embed(["goat"], tenant="t")] == [8 * 4]


@pytest.mark.parametrize(
    ("mode", "fields", "fault"),
    [
        ("status", {"status": 400, "message": "EOF"}, UpstreamFault.EMBED_FAILED),
        ("status", {"status": 400, "message": "invalid input type"}, UpstreamFault.REQUEST_REJECTED),
        ("status", {"status": 404}, UpstreamFault.MODEL_NOT_FOUND),
        ("status", {"status": 500}, UpstreamFault.SERVER_ERROR),
        ("status", {"status": 503}, UpstreamFault.BUSY),
        ("hang", {}, UpstreamFault.TOTAL_TIMEOUT),
        ("ok", {"scale": 0.0}, UpstreamFault.INVALID_RESPONSE),
    ],
)
@pytest.mark.timed
async def test_the_fault_is_the_cause(
    embedder: OllamaEmbedder, stub: StubOllama, mode: str, fields: dict[str, Any], fault: UpstreamFault
) -> None:
    stub.behaviour(mode, **fields)
    began = time.monotonic()
    assert await unavailable(embedder) is fault
    assert time.monotonic() - began < 0.3 + 0.6


async def test_one_retry_is_not_seen(embedder: OllamaEmbedder, stub: StubOllama) -> None:
    stub.behaviour("status", status=500, times=1)
    assert len(await embedder.embed(["goat"], tenant="t")) == 1
    assert stub.stats["requests"]["/api/embed"] == 2


async def test_one_call_outlives_its_deadline_so_that_the_model_gets_loaded(
    embedder: OllamaEmbedder, pool: OllamaPool, stub: StubOllama
) -> None:
    stub.behaviour("hang")
    assert [await unavailable(embedder) for _ in range(3)] == [UpstreamFault.TOTAL_TIMEOUT] * 3
    await wait_until_async(lambda: _in_flight(stub, 1))
    assert stub.stats["cancelled"] == 2
    assert pool.snapshot().active == 1


async def test_closing_ends_the_call_that_outlived_its_deadline(pool: OllamaPool, stub: StubOllama) -> None:
    stub.behaviour("hang")
    async with OllamaEmbedder.open(pool, MODEL, 0.05) as embedder:
        await unavailable(embedder)
        assert pool.snapshot().active == 1
    assert pool.snapshot().active == 0
    await wait_until_async(lambda: _in_flight(stub, 0))


async def test_a_caller_that_leaves_frees_the_slot(pool: OllamaPool, stub: StubOllama) -> None:
    stub.behaviour("hang")
    async with OllamaEmbedder.open(pool, MODEL, 30.0) as embedder:
        task = asyncio.create_task(embedder.embed(["goat"], tenant="t"))
        await wait_until_async(lambda: _in_flight(stub, 1))
        task.cancel()
        await asyncio.wait([task])
        await wait_until_async(lambda: _in_flight(stub, 0))
        assert pool.snapshot().active == 0


async def _in_flight(stub: StubOllama, count: int) -> bool:
    return bool(stub.stats["in_flight"] == count)
