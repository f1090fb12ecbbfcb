"""The embedder inside the worker's own process (EMBEDDER=onnx): MiniLM in threads beside the event loop.

One thread embeds questions, another, which gives way, documents.

Many callers, one computing thread: texts that wait while it is busy are computed together in its next turn.

Embeds what nobody waits for, such as documents: in a thread of its own that gives way to all others.

A question is embedded in another thread meanwhile: it waits for no passage, and the system prefers it.
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
from api.ports.models import CurrentIdentity
from api.values import EmbedderIdentity, Embedding

Encoded = TypeVar("Encoded")
"""What `encode` makes of a text."""

TURN_TEXTS: Final = 32
"""Texts in one turn of the thread."""
SHARE_TEXTS: Final = 8
"""Texts of one caller in one turn: a question waits for a slice of somebody's document, not for all of it."""


@dataclass(eq=False, slots=True)
class _Call(Generic[Encoded]):
    texts: Sequence[str]
    result: asyncio.Future[list[Encoded]]
    encoded: list[Encoded] = field(default_factory=list)

    def part(self, limit: int) -> list[str]:
        """The next texts that are not encoded, `limit` at most."""
        start = len(self.encoded)
        return list(self.texts[start : start + limit])


_Turn = list[tuple[_Call[Encoded], list[str]]]


class MicroBatcher(Generic[Encoded]):
    """Runs `encode` in `thread`, a turn at a time. A caller that is cancelled takes only its own texts away."""

    def __init__(self, encode: Callable[[Sequence[str]], list[Encoded]], thread: Executor) -> None:
        self._encode = encode
        self._thread = thread
        self._waiting: deque[_Call[Encoded]] = deque()
        self._turns: asyncio.Task[None] | None = None
        self._closed = False

    async def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """What was made of each text, in order. Raises `EmbeddingUnavailable` when the encoder fails or is closed."""
        if self._closed:
            raise EmbeddingUnavailable("the embedder is closed")
        if not texts:
            return []
        call: _Call[Encoded] = _Call(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())
        return await call.result

    async def close(self) -> None:
        """Fails who still waits; a turn that runs in the thread ends there, its result unused."""
        self._closed = True
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.wait([self._turns])
        _fail(self._waiting, EmbeddingUnavailable("the embedder is closed"))

    async def _take_turns(self) -> None:
        while turn := self._next_turn():
            await self._take(turn)

    def _next_turn(self) -> _Turn[Encoded]:
        turn: _Turn[Encoded] = []
        room = TURN_TEXTS
        while room and self._waiting:
            call = self._waiting.popleft()
            if call.result.done():  # its caller was cancelled or ran out of time
                continue
            part = call.part(min(room, SHARE_TEXTS))
            room -= len(part)
            turn.append((call, part))
        return turn

    async def _take(self, turn: _Turn[Encoded]) -> None:
        texts = [text for _, part in turn for text in part]
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, texts)
        except asyncio.CancelledError:
            _fail([call for call, _ in turn], EmbeddingUnavailable("the embedder is closed"))
            raise
        except Exception as error:  # noqa: BLE001 - the runtime's errors share no base; the callers must hear of each
            _fail([call for call, _ in turn], EmbeddingUnavailable(f"the embedder failed: {error}"))
        else:
            self._deal(turn, encoded)

    def _deal(self, turn: _Turn[Encoded], encoded: list[Encoded]) -> None:
        """Hands out what was encoded; a call with texts left goes to the end of the queue."""
        start = 0
        for call, part in turn:
            call.encoded += encoded[start : start + len(part)]
            start += len(part)
            if len(call.encoded) < len(call.texts):
                self._waiting.append(call)
            elif not call.result.done():
                call.result.set_result(call.encoded)


def _fail(calls: Sequence[_Call[Encoded]] | deque[_Call[Encoded]], error: EmbeddingUnavailable) -> None:
    for call in calls:
        if not call.result.done():
            call.result.set_exception(error)


NICE: Final = 5
"""What the thread's share of a busy processor is: about a third of another's."""


class BackgroundEmbedder:
    """Implements `ports.Embedder`. Without a deadline: who asks has time, and half the work would be for nothing."""

    def __init__(self, identity: EmbedderIdentity, batcher: MicroBatcher[Embedding]) -> None:
        self.current = CurrentIdentity(identity)
        self._identity = identity
        self._batcher = batcher

    async def identity(self) -> EmbedderIdentity:
        """Who embeds: known from the start."""
        return self._identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """One embedding for each text, in order. Raises `EmbeddingUnavailable` on a fault."""
        return await self._batcher.encode(texts)


def give_way() -> None:
    """The calling thread, from now on. On Linux only: elsewhere a thread has no priority of its own."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


class OnnxEmbedder:
    """Implements `ports.Embedder`. Made by `OnnxEmbedder.open`."""

    def __init__(self, identity: EmbedderIdentity, batcher: MicroBatcher[Embedding], timeout: float) -> None:
        self.current = CurrentIdentity(identity)
        self._identity = identity
        self._batcher = batcher
        self._timeout = timeout

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | None, timeout: float) -> AsyncIterator[OnnxEmbedder]:  # noqa: ASYNC109 - of `embed`
        """Of `open_onnx`, the one for questions alone."""
        async with open_onnx(path, timeout) as opened:
            yield opened.questions

    async def identity(self) -> EmbedderIdentity:
        """Who embeds: known from the start."""
        return self._identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """One embedding for each text, in order. Raises `EmbeddingUnavailable` past the deadline or on a fault."""
        try:
            with LagTimeout(self._timeout):
                return await self._batcher.encode(texts)
        except TimeoutError as error:
            raise EmbeddingUnavailable(f"the embedder took longer than {self._timeout:g} s") from error


@dataclass(frozen=True, slots=True)
class OpenOnnx:
    """One model, loaded once: for `questions`, and for `documents`, which nobody waits for."""

    questions: OnnxEmbedder
    documents: BackgroundEmbedder
    model: MiniLM


@asynccontextmanager
async def open_onnx(path: str | None, timeout: float) -> AsyncIterator[OpenOnnx]:  # noqa: ASYNC109 - of `embed`
    """Loads the model in its thread and closes it on exit.

    `path` is EMBED_MODEL_PATH, `timeout` the seconds that a question may take, waiting included.
    Raises `SettingsError` when the model is not to be had.
    """
    files = model_files(path)
    async with AsyncExitStack() as stack:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minilm")
        stack.push_async_callback(asyncio.to_thread, thread.shutdown)
        model, identity = await asyncio.get_running_loop().run_in_executor(thread, _load, files)
        slow = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minilm-documents", initializer=give_way)
        stack.push_async_callback(asyncio.to_thread, slow.shutdown)
        batchers = [MicroBatcher(model.embed, thread), MicroBatcher(model.embed, slow)]
        for batcher in batchers:
            stack.push_async_callback(batcher.close)
        questions = OnnxEmbedder(identity, batchers[0], timeout)
        yield OpenOnnx(questions, BackgroundEmbedder(identity, batchers[1]), model)


def _load(files: ModelFiles) -> tuple[MiniLM, EmbedderIdentity]:
    model = MiniLM(files)
    material = f"{model.name}\n{model.dimension}\n{model.digest}"
    fingerprint = hashlib.sha256(material.encode()).hexdigest()[:10]
    return model, EmbedderIdentity(model.name, model.dimension, fingerprint)
