"""The embedder's threads: batching, deadlines, cancellation. Most tests use an encoder that waits."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from api.embedders.onnx import BATCH_TEXTS, MAX_TEXTS_PER_CALL, MicroBatcher, OnnxEmbedder, open_onnx
from api.errors import EmbeddingUnavailable, SettingsError
from api.values import EmbedderIdentity, Embedding

pytestmark = pytest.mark.slow


def encoded(*texts: str) -> list[Embedding]:
    return [Embedding(text.encode()) for text in texts]


class GatedEncoder:
    """Encodes a text as its bytes, one batch each time `gate` is set. `turns` has the texts of each batch."""

    def __init__(self) -> None:
        self.turns: list[list[str]] = []
        self.gate = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._busy = asyncio.Event()

    def __call__(self, texts: Sequence[str]) -> list[Embedding]:
        self.turns.append(list(texts))
        self._loop.call_soon_threadsafe(self._busy.set)
        assert self.gate.wait(10)
        if "fail" in texts:
            raise RuntimeError("out of memory")
        return encoded(*texts)

    async def is_busy(self) -> None:
        """Returns once the thread is in its first batch."""
        await asyncio.wait_for(self._busy.wait(), 10)


@pytest.fixture
async def encoder() -> AsyncIterator[GatedEncoder]:
    encoder = GatedEncoder()
    yield encoder
    encoder.gate.set()


@pytest.fixture
async def batcher(encoder: GatedEncoder) -> AsyncIterator[MicroBatcher[Embedding]]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        batcher = MicroBatcher(encoder, thread)
        yield batcher
        encoder.gate.set()
        await batcher.close()


async def started(*calls: asyncio.Task[list[Embedding]]) -> None:
    """Lets new tasks run until they wait."""
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls)


async def test_waiting_texts_are_embedded_in_one_batch(batcher: MicroBatcher[Embedding], encoder: GatedEncoder) -> None:
    first = asyncio.create_task(batcher.encode(["first"]))
    await encoder.is_busy()
    others = [asyncio.create_task(batcher.encode([f"{n}", f"{n}b"])) for n in range(3)]
    await started(*others)
    encoder.gate.set()
    assert await first == encoded("first")
    assert await asyncio.gather(*others) == [encoded("0", "0b"), encoded("1", "1b"), encoded("2", "2b")]
    assert encoder.turns == [["first"], ["0", "0b", "1", "1b", "2", "2b"]]


async def test_a_question_waits_for_one_batch_of_a_document_at_most(
    batcher: MicroBatcher[Embedding], encoder: GatedEncoder
) -> None:
    document = [f"passage {n}" for n in range(3 * MAX_TEXTS_PER_CALL)]
    ingestion = asyncio.create_task(batcher.encode(document))
    await encoder.is_busy()
    question = asyncio.create_task(batcher.encode(["question"]))
    await started(question)
    encoder.gate.set()
    assert await ingestion == encoded(*document)
    assert await question == encoded("question")
    assert ["question" in turn for turn in encoder.turns] == [False, True, False]


async def test_a_batch_is_bounded(batcher: MicroBatcher[Embedding], encoder: GatedEncoder) -> None:
    first = asyncio.create_task(batcher.encode(["first"]))
    await encoder.is_busy()
    others = [asyncio.create_task(batcher.encode([f"{n}"])) for n in range(BATCH_TEXTS + 3)]
    await started(*others)
    encoder.gate.set()
    await asyncio.gather(first, *others)
    assert [len(turn) for turn in encoder.turns] == [1, BATCH_TEXTS, 3]


async def test_a_cancelled_caller_does_not_affect_others(
    batcher: MicroBatcher[Embedding], encoder: GatedEncoder
) -> None:
    computing = asyncio.create_task(batcher.encode(["computing"]))
    await encoder.is_busy()
    waiting = asyncio.create_task(batcher.encode(["waiting"]))
    other = asyncio.create_task(batcher.encode(["other"]))
    await started(waiting, other)
    computing.cancel()
    waiting.cancel()
    encoder.gate.set()
    assert await other == encoded("other")
    assert computing.cancelled()
    assert waiting.cancelled()
    assert encoder.turns == [["computing"], ["other"]]


async def test_an_error_reaches_only_the_callers_of_its_batch(
    batcher: MicroBatcher[Embedding], encoder: GatedEncoder
) -> None:
    encoder.gate.set()
    with pytest.raises(EmbeddingUnavailable, match="out of memory"):
        await batcher.encode(["fail"])
    assert await batcher.encode(["next"]) == encoded("next")


async def test_closing_fails_waiting_callers(batcher: MicroBatcher[Embedding], encoder: GatedEncoder) -> None:
    computing = asyncio.create_task(batcher.encode(["computing"]))
    await encoder.is_busy()
    waiting = asyncio.create_task(batcher.encode(["waiting"]))
    await started(waiting)
    await batcher.close()
    for call in (computing, waiting, batcher.encode(["late"])):
        with pytest.raises(EmbeddingUnavailable, match="closed"):
            await call


async def test_an_embedding_past_its_deadline_is_unavailable(
    batcher: MicroBatcher[Embedding], encoder: GatedEncoder
) -> None:
    embedder = OnnxEmbedder(EmbedderIdentity("slow", 384, "0" * 10), batcher, timeout=0.01)
    with pytest.raises(EmbeddingUnavailable, match=r"longer than 0\.01 s"):
        await embedder.embed(["never in time"], tenant="t")
    encoder.gate.set()
    patient = OnnxEmbedder(EmbedderIdentity("slow", 384, "0" * 10), batcher, timeout=10)
    assert await patient.embed(["in time"], tenant="t") == encoded("in time")


async def test_the_real_model_embeds_and_reports_its_identity() -> None:
    async with OnnxEmbedder.open(None, timeout=30) as embedder:
        identity = await embedder.identity()
        assert (identity.name, identity.dimension) == ("all-MiniLM-L6-v2-int8", 384)
        assert len(identity.fingerprint) == 10
        assert int(identity.fingerprint, 16) >= 0
        assert await embedder.embed([], tenant="t") == []
        one, two = await embedder.embed(["How do I reset my password?", "How can I change my password?"], tenant="t")
        assert np.frombuffer(one.vector, "<f4") @ np.frombuffer(two.vector, "<f4") > 0.8
    with pytest.raises(EmbeddingUnavailable, match="closed"):
        await embedder.embed(["too late"], tenant="t")


async def test_a_missing_model_fails_the_startup() -> None:
    with pytest.raises(SettingsError, match="EMBED_MODEL_PATH"):
        async with OnnxEmbedder.open("no/such/folder", timeout=1):
            pass


async def test_questions_precede_documents() -> None:
    async with open_onnx(None, timeout=30) as onnx:
        document = asyncio.create_task(
            onnx.documents.embed([f"A passage, {n}, of the document." for n in range(64)], tenant="t")
        )
        await started(document)
        question = await onnx.questions.embed(["A question"], tenant="t")
        assert not document.done()
        assert len(await document) == 64
        assert await onnx.documents.embed(["A question"], tenant="t") == question
        assert await onnx.documents.identity() == await onnx.questions.identity()
