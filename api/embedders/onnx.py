"""The embedder inside the worker's own process (EMBEDDER=onnx): MiniLM in one thread beside the event loop."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from api.embedders.micro_batch import MicroBatcher
from api.embedders.minilm import MiniLM, model_files
from api.embedders.onnx_files import ModelFiles
from api.errors import EmbeddingUnavailable
from api.model import EmbedderIdentity, Vector


class OnnxEmbedder:
    """Implements `ports.Embedder`. Made by `OnnxEmbedder.open`."""

    def __init__(
        self, identity: EmbedderIdentity, count_tokens: Callable[[str], int], batcher: MicroBatcher, timeout: float
    ) -> None:
        """`count_tokens`: how many the model makes of a text, however long."""
        self._identity = identity
        self._batcher = batcher
        self.count_tokens = count_tokens
        self._timeout = timeout

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | None, timeout: float) -> AsyncIterator[OnnxEmbedder]:  # noqa: ASYNC109 - of `embed`
        """Loads the model in its thread and closes it on exit.

        `path` is EMBED_MODEL_PATH, `timeout` the seconds that one `embed` may take, waiting included.
        Raises `SettingsError` when the model is not to be had.
        """
        files = model_files(path)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minilm")
        try:
            model, identity = await asyncio.get_running_loop().run_in_executor(thread, _load, files)
            batcher = MicroBatcher(model.encode, thread)
            try:
                yield cls(identity, model.count_tokens, batcher, timeout)
            finally:
                await batcher.close()
        finally:
            await asyncio.to_thread(thread.shutdown)

    async def identity(self) -> EmbedderIdentity:
        """Who embeds: known from the start."""
        return self._identity

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One vector a text, in order. Raises `EmbeddingUnavailable` past the deadline or on a fault."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._batcher.encode(texts)
        except TimeoutError as error:
            raise EmbeddingUnavailable(f"the embedder took longer than {self._timeout:g} s") from error


def _load(files: ModelFiles) -> tuple[MiniLM, EmbedderIdentity]:
    model = MiniLM(files)
    material = f"{model.name}\n{model.dimension}\n{model.digest}"
    fingerprint = hashlib.sha256(material.encode()).hexdigest()[:10]
    return model, EmbedderIdentity(model.name, model.dimension, fingerprint)
