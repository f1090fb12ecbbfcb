"""Runs the text model with llama.cpp (xllamacpp), one generation at a time, in a thread.

`chat_task` and `generate_task` translate a body to a llama.cpp request. `Engine` runs a request and passes the text to
a callback. `TextModel` queues requests in order. `ServerState` holds what the endpoints share.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request

from api.cancellation import log_failure
from api.embedded.model_server.bodies import ChatInput, GenerateInput, OllamaFault, sampling
from api.embedded.model_server.catalog import CONTEXT_TOKENS, NOT_INSTALLED, Catalog, describe, text_weights
from api.embedders.minilm import model_files
from api.embedders.onnx import OnnxEmbedder
from api.errors import SettingsError
from api.ports.inference import Embedder

PLACEHOLDER: Final = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Task:
    """One generation. `fields` is the body of llama.cpp's chat completion or completion."""

    is_chat: bool
    fields: dict[str, Any]


def chat_task(body: ChatInput) -> Task | None:
    """Returns None if the caller only wants the model loaded. Raises `OllamaFault`."""
    if body.tools:
        raise OllamaFault(400, f'"{body.model}" does not support tools')
    if any(message.images for message in body.messages):
        raise OllamaFault(400, f'"{body.model}" does not support images')
    if not body.messages:
        return None
    turns = [{"role": message.role, "content": message.content} for message in body.messages]
    return Task(True, {"messages": turns, **sampling(body.options), **_answer_format(body.format)})


def generate_task(body: GenerateInput) -> Task | None:
    """Returns None if the caller only wants the model loaded. Raises `OllamaFault`."""
    for refused, what in ((body.suffix, "insert"), (body.images, "images")):
        if refused:
            raise OllamaFault(400, f'"{body.model}" does not support {what}')
    if not body.prompt:
        return None
    fields = {**sampling(body.options), **_answer_format(body.format)}
    if body.raw:
        return Task(False, {"prompt": body.prompt, **fields})
    if body.template:
        return Task(False, {"prompt": _fill(body.template, body.prompt, body.system), **fields})
    turns = [{"role": "system", "content": body.system}] if body.system else []
    return Task(True, {"messages": [*turns, {"role": "user", "content": body.prompt}], **fields})


def _fill(template: str, prompt: str, system: str) -> str:
    """Supports the two placeholders of Ollama's template language that single-turn templates use."""
    values = {".Prompt": prompt, ".System": system, ".Response": ""}

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise OllamaFault(
                400, f"template: only {{{{ .System }}}} and {{{{ .Prompt }}}} are supported, not {match[0]}"
            )
        return values[match[1]]

    return PLACEHOLDER.sub(value, template)


def _answer_format(answer_format: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(answer_format, dict):
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": answer_format}}}
    if answer_format == "json":
        return {"response_format": {"type": "json_object"}}
    if answer_format:
        raise OllamaFault(500, f'invalid format: "{answer_format}"; expected "json" or a JSON Schema object')
    return {}


PROMPT_BATCH_TOKENS: Final = 128
"""A generation can be stopped between two batches of a prompt: about once per second."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a generation. Durations are in nanoseconds."""

    reason: str
    prompt_tokens: int
    prompt_duration: int
    tokens: int
    duration: int


class Engine:
    """The loaded text model."""

    def __init__(self, weights: Path, threads: int) -> None:
        """Loads the model (half a second). Raises `SettingsError` without xllamacpp or for an invalid file."""
        try:
            import xllamacpp
        except ImportError as error:
            raise SettingsError(NOT_INSTALLED) from error
        try:
            self._server = xllamacpp.Server(_parameters(xllamacpp.CommonParams(), weights, threads))
        except (RuntimeError, ValueError) as error:
            raise SettingsError(f"the model server cannot load {weights.name}: {error}") from error

    def generate(self, task: Task, on_text: Callable[[str], None], is_stopped: Callable[[], bool]) -> Finished | None:
        """Blocks until the answer is complete. Returns None if it was stopped.

        Calls `is_stopped` at every token and at every batch of the prompt. Raises `OllamaFault`.
        """
        reading = _ChunkReader(on_text, is_stopped)
        complete = self._server.handle_chat_completions if task.is_chat else self._server.handle_completions
        try:
            complete({**task.fields, "stream": True, "return_progress": True}, reading)
        except ValueError as error:
            raise OllamaFault(400, str(error)) from error
        except RuntimeError as error:
            raise OllamaFault(500, str(error)) from error
        return reading.finished()


class _ChunkReader:
    """Receives llama.cpp's chunks of one answer. The callback ends the generation by returning True."""

    def __init__(self, on_text: Callable[[str], None], is_stopped: Callable[[], bool]) -> None:
        self._on_text = on_text
        self._is_stopped = is_stopped
        self._stopped = False
        self._reason = "stop"
        self._timings: dict[str, Any] | None = None
        self._fault: Exception | None = None

    def __call__(self, chunk: dict[str, Any]) -> bool:
        # The library would swallow an exception, so `finished` raises it later.
        try:
            self._read(chunk)
        except Exception as error:  # noqa: BLE001 - raised by `finished` in another thread
            self._fault = error
        self._stopped = self._stopped or self._is_stopped()
        return self._stopped or self._fault is not None

    def _read(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            raise _fault_of(chunk["error"])
        for choice in chunk.get("choices", ()):
            text = choice.get("text") or choice.get("delta", {}).get("content")
            if text:
                self._on_text(text)
            self._reason = choice.get("finish_reason") or self._reason
        self._timings = chunk.get("timings") or self._timings

    def finished(self) -> Finished | None:
        """Returns the end of the generation once the call has returned. Raises its error."""
        if self._fault is not None:
            try:
                raise self._fault
            finally:
                self._fault = None  # it refers to this frame
        if self._timings is None:
            if self._stopped:
                return None
            raise OllamaFault(500, "the model ended the answer early")
        timings = self._timings
        return Finished(
            reason=self._reason,
            prompt_tokens=timings["cache_n"] + timings["prompt_n"],
            prompt_duration=round(timings["prompt_ms"] * 1e6),
            tokens=timings["predicted_n"],
            duration=round(timings["predicted_ms"] * 1e6),
        )


def _fault_of(error: dict[str, Any]) -> OllamaFault:
    if error.get("type") == "exceed_context_size_error":
        return OllamaFault(400, f"the input length exceeds the context length of {CONTEXT_TOKENS} tokens")
    return OllamaFault(int(error.get("code", 500)), str(error.get("message", error)))


def _parameters(params: Any, weights: Path, threads: int) -> Any:
    params.model.path = str(weights)
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = PROMPT_BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.fit_params = False
    params.cache_ram_mib = 0  # otherwise old prompts may fill gigabytes
    params.verbosity = -1  # silence llama.cpp
    # xllamacpp also opens llama.cpp's server on a free loopback port. A random key locks it.
    params.ui = False
    params.n_threads_http = 1
    params.api_keys = [secrets.token_urlsafe()]
    return params


class TextModel:
    """Runs one task at a time; others wait in order. Use `TextModel.open`."""

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
        """Yields pieces of text, then one `Finished`. Raises `OllamaFault`.

        Closing the generator removes the task from the queue or stops the model at its next token.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        stop = threading.Event()

        def put(piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def generate() -> Finished | None:
            try:
                return self._engine.generate(task, put, stop.is_set)
            finally:
                put(None)

        generation = loop.run_in_executor(self._thread, generate)
        log_failure(generation)  # not awaited after a disconnect
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            finished = await generation
            assert finished is not None, "only this generator stops it"
            yield finished
        finally:
            stop.set()
            generation.cancel()
            del generation  # it holds its error, which refers to this frame


EMBED_SECONDS: Final = 300.0
"""Ollama has no deadline. This one is for a computation that hangs."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """The loaded models."""

    catalog: Catalog
    text_model: TextModel
    embedder: Embedder


@asynccontextmanager
async def open_models(threads: int, embed_model_path: str | None) -> AsyncIterator[ServerState]:
    """Loads both models (two seconds). Raises `SettingsError` if one is missing.

    `threads` is the number for text generation; `embed_model_path` is EMBED_MODEL_PATH.
    """
    async with AsyncExitStack() as stack:
        weights = text_weights()
        catalog = await asyncio.to_thread(describe, weights, model_files(embed_model_path).weights)
        embedder = await stack.enter_async_context(OnnxEmbedder.open(embed_model_path, EMBED_SECONDS))
        text_model = await stack.enter_async_context(TextModel.open(weights, threads))
        yield ServerState(catalog, text_model, embedder)


def state_of(request: Request) -> ServerState:
    """Returns the state of the server that handles this request."""
    state: ServerState = request.app.state.server
    return state
