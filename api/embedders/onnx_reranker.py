"""The re-ranker inside the worker's own process (RERANK_MODEL_PATH): a cross-encoder in one thread beside the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from api.embedders.cross_encoder import SETTING, CrossEncoder, Pair
from api.embedders.judging import JudgingLine
from api.embedders.onnx_files import ModelFiles, files_at


class OnnxReranker:
    """Implements `ports.Reranker`. Made by `OnnxReranker.open`."""

    def __init__(self, fingerprint: str, line: JudgingLine, timeout: float) -> None:
        self.fingerprint = fingerprint
        self._line = line
        self._timeout = timeout

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str, timeout: float) -> AsyncIterator[OnnxReranker]:  # noqa: ASYNC109 - of `scores`
        """Loads the model in its thread and closes it on exit.

        `path` is RERANK_MODEL_PATH, `timeout` the seconds that one `scores` may take, waiting included.
        Raises `SettingsError` when the model is not to be had, or is no cross-encoder.
        """
        files = files_at(path, SETTING)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reranker")
        try:
            model, fingerprint = await asyncio.get_running_loop().run_in_executor(thread, _load, files)
            line = JudgingLine(model.judge, thread)
            try:
                yield cls(fingerprint, line, timeout)
            finally:
                await line.close()
        finally:
            await asyncio.to_thread(thread.shutdown)

    async def scores(self, question: str, texts: Sequence[str], *, background: bool = False) -> list[float]:
        """See `ports.Reranker`."""
        return await self._line.judged([Pair(question, text) for text in texts], self._timeout, background=background)


def _load(files: ModelFiles) -> tuple[CrossEncoder, str]:
    model = CrossEncoder(files)
    return model, model.digest
