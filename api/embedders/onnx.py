"""The embedder inside the worker's own process (EMBEDDER=onnx): MiniLM in threads beside the event loop.

One thread embeds questions, another, which gives way, documents.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from api.embedders.background import BackgroundEmbedder, give_way
from api.embedders.micro_batch import MicroBatcher
from api.embedders.minilm import MiniLM, model_files
from api.embedders.onnx_files import ModelFiles
from api.errors import EmbeddingUnavailable
from api.lag_timeout import LagTimeout
from api.model import EmbedderIdentity, Embedding
from api.ports.models import CurrentIdentity


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
