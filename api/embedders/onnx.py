"""The embedder in the worker's process (EMBEDDER=onnx): MiniLM in threads, so that the event loop stays responsive.

One thread embeds questions. A second thread with lower priority embeds documents, so questions do not wait for them.
Texts that arrive while a thread is busy are computed together in its next batch.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from api.cancellation import LagTimeout
from api.embedders.minilm import MiniLM, ModelFiles, model_files
from api.errors import EmbeddingUnavailable
from api.ports.inference import CurrentIdentity
from api.values import EmbedderIdentity, Embedding

Encoded = TypeVar("Encoded")
"""The result of `encode` for a text."""

BATCH_TEXTS: Final = 32
"""Texts in one batch."""
MAX_TEXTS_PER_CALL: Final = 8
"""Texts of one caller in one batch. A question waits for a part of another caller's document, not for all of it."""


@dataclass(eq=False, slots=True)
class _EncodeCall(Generic[Encoded]):
    texts: Sequence[str]
    result: asyncio.Future[list[Encoded]]
    encoded: list[Encoded] = field(default_factory=list)

    def part(self, limit: int) -> list[str]:
        """Returns up to `limit` of the next texts that are not encoded yet."""
        start = len(self.encoded)
        return list(self.texts[start : start + limit])


_Batch = list[tuple[_EncodeCall[Encoded], list[str]]]


class MicroBatcher(Generic[Encoded]):
    """Runs `encode` in `thread`, one batch at a time. Cancelling a caller removes only its own texts."""

    def __init__(self, encode: Callable[[Sequence[str]], list[Encoded]], thread: Executor) -> None:
        self._encode = encode
        self._thread = thread
        self._waiting: deque[_EncodeCall[Encoded]] = deque()
        self._batches: asyncio.Task[None] | None = None
        self._closed = False

    async def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Returns the results in order. Raises `EmbeddingUnavailable` if the encoder fails or is closed."""
        if self._closed:
            raise EmbeddingUnavailable("the embedder is closed")
        if not texts:
            return []
        call: _EncodeCall[Encoded] = _EncodeCall(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._batches is None or self._batches.done():
            self._batches = asyncio.create_task(self._run_batches())
        return await call.result

    async def close(self) -> None:
        """Fails the waiting callers. A running batch finishes in the thread, and its result is dropped."""
        self._closed = True
        if self._batches is not None:
            self._batches.cancel()
            await asyncio.wait([self._batches])
        _fail(self._waiting, EmbeddingUnavailable("the embedder is closed"))

    async def _run_batches(self) -> None:
        while batch := self._next_batch():
            await self._run_batch(batch)

    def _next_batch(self) -> _Batch[Encoded]:
        batch: _Batch[Encoded] = []
        room = BATCH_TEXTS
        while room and self._waiting:
            call = self._waiting.popleft()
            if call.result.done():  # its caller was cancelled or timed out
                continue
            part = call.part(min(room, MAX_TEXTS_PER_CALL))
            room -= len(part)
            batch.append((call, part))
        return batch

    async def _run_batch(self, batch: _Batch[Encoded]) -> None:
        texts = [text for _, part in batch for text in part]
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, texts)
        except asyncio.CancelledError:
            _fail([call for call, _ in batch], EmbeddingUnavailable("the embedder is closed"))
            raise
        except Exception as error:  # noqa: BLE001 - the runtime's errors have no common base; callers need each
            _fail([call for call, _ in batch], EmbeddingUnavailable(f"the embedder failed: {error}"))
        else:
            self._distribute(batch, encoded)

    def _distribute(self, batch: _Batch[Encoded], encoded: list[Encoded]) -> None:
        """Hands out results. A call with texts left goes to the end of the queue."""
        start = 0
        for call, part in batch:
            call.encoded += encoded[start : start + len(part)]
            start += len(part)
            if len(call.encoded) < len(call.texts):
                self._waiting.append(call)
            elif not call.result.done():
                call.result.set_result(call.encoded)


def _fail(calls: Sequence[_EncodeCall[Encoded]] | deque[_EncodeCall[Encoded]], error: EmbeddingUnavailable) -> None:
    for call in calls:
        if not call.result.done():
            call.result.set_exception(error)


BACKGROUND_NICENESS: Final = 5
"""Gives the thread about a third of another thread's share of a busy processor."""


class BackgroundEmbedder:
    """An embedder for documents. It has no deadline, because nobody waits and partial work would be wasted."""

    def __init__(self, identity: EmbedderIdentity, batcher: MicroBatcher[Embedding]) -> None:
        self.current = CurrentIdentity(identity)
        self._identity = identity
        self._batcher = batcher

    async def identity(self) -> EmbedderIdentity:
        """Known from the start."""
        return self._identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """Returns one embedding per text, in order. Raises `EmbeddingUnavailable` on a fault."""
        return await self._batcher.encode(texts)


def lower_priority() -> None:
    """Lowers the calling thread's priority. Linux only: on other systems threads have no priority."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)


class OnnxEmbedder:
    """An embedder for questions. Use `OnnxEmbedder.open`."""

    def __init__(self, identity: EmbedderIdentity, batcher: MicroBatcher[Embedding], timeout: float) -> None:
        self.current = CurrentIdentity(identity)
        self._identity = identity
        self._batcher = batcher
        self._timeout = timeout

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | None, timeout: float) -> AsyncIterator[OnnxEmbedder]:  # noqa: ASYNC109 - of `embed`
        """Opens only the embedder for questions."""
        async with open_onnx(path, timeout) as opened:
            yield opened.questions

    async def identity(self) -> EmbedderIdentity:
        """Known from the start."""
        return self._identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """Returns one embedding per text, in order. Raises `EmbeddingUnavailable` after the deadline or on a fault."""
        try:
            with LagTimeout(self._timeout):
                return await self._batcher.encode(texts)
        except TimeoutError as error:
            raise EmbeddingUnavailable(f"the embedder took longer than {self._timeout:g} s") from error


@dataclass(frozen=True, slots=True)
class OpenOnnx:
    """One loaded model with an embedder for questions and one for documents."""

    questions: OnnxEmbedder
    documents: BackgroundEmbedder
    model: MiniLM


@asynccontextmanager
async def open_onnx(path: str | None, timeout: float) -> AsyncIterator[OpenOnnx]:  # noqa: ASYNC109 - of `embed`
    """Loads the model in its thread and closes it on exit.

    `path` is EMBED_MODEL_PATH. `timeout` is the time in seconds for a question, including its wait. Raises
    `SettingsError` if the model cannot be loaded.
    """
    files = model_files(path)
    async with AsyncExitStack() as stack:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minilm")
        stack.push_async_callback(asyncio.to_thread, thread.shutdown)
        model, identity = await asyncio.get_running_loop().run_in_executor(thread, _load, files)
        slow = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minilm-documents", initializer=lower_priority)
        stack.push_async_callback(asyncio.to_thread, slow.shutdown)
        batchers = [MicroBatcher(model.embed, thread), MicroBatcher(model.embed, slow)]
        for batcher in batchers:
            stack.push_async_callback(batcher.close)
        questions = OnnxEmbedder(identity, batchers[0], timeout)
        yield OpenOnnx(questions, BackgroundEmbedder(identity, batchers[1]), model)


def _load(files: ModelFiles) -> tuple[MiniLM, EmbedderIdentity]:
    model = MiniLM(files)
    return model, identity_of(model)


def identity_of(model: MiniLM) -> EmbedderIdentity:
    """Returns what makes the model's vectors comparable."""
    material = f"{model.name}\n{model.dimension}\n{model.digest}"
    fingerprint = hashlib.sha256(material.encode()).hexdigest()[:10]
    return EmbedderIdentity(model.name, model.dimension, fingerprint)
