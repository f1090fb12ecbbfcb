"""The text model beside the event loop: a thread of its own, first come first served."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from api.background import let_go
from api.embedded.model_server.engine import Engine, Finished
from api.embedded.model_server.prompts import Task


class TextModel:
    """Answers one task at a time; the others wait in order. Made by `TextModel.open`."""

    def __init__(self, engine: Engine, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread

    @classmethod
    @asynccontextmanager
    async def open(cls, weights: Path, threads: int) -> AsyncIterator[TextModel]:
        """Loads the model in its thread. Raises `SettingsError`."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="text-model")
        try:
            engine = await asyncio.get_running_loop().run_in_executor(thread, Engine, weights, threads)
            yield cls(engine, thread)
        finally:
            await asyncio.to_thread(thread.shutdown, cancel_futures=True)

    async def answer(self, task: Task) -> AsyncGenerator[str | Finished, None]:
        """Pieces of text, then one `Finished`. Raises `OllamaFault`.

        Closing the generator takes the task out of the queue, or stops the model at its next token.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        stop = threading.Event()

        def hand_over(piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def generate() -> Finished | None:
            try:
                return self._engine.generate(task, hand_over, stop.is_set)
            finally:
                hand_over(None)

        generation = loop.run_in_executor(self._thread, generate)
        let_go(generation)  # a client that leaves does not wait for its end
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            finished = await generation
            assert finished is not None, "only this generator stops it"
            yield finished
        finally:
            stop.set()
            generation.cancel()
