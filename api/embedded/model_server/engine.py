"""llama.cpp through xllamacpp: one generation at a time, synchronous, pieces by callback."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from api.embedded.model_server.catalog import CONTEXT_TOKENS, NOT_INSTALLED
from api.embedded.model_server.faults import OllamaFault
from api.embedded.model_server.prompts import Task
from api.errors import SettingsError

PROMPT_BATCH_TOKENS: Final = 128
"""Between two batches of a prompt a generation can be stopped: about a second."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a generation ended. Durations in nanoseconds."""

    reason: str
    prompt_tokens: int
    prompt_duration: int
    tokens: int
    duration: int


class Engine:
    """The loaded text model."""

    def __init__(self, weights: Path, threads: int) -> None:
        """Loads (half a second). Raises `SettingsError` without xllamacpp or for an unusable file."""
        try:
            import xllamacpp
        except ImportError as error:
            raise SettingsError(NOT_INSTALLED) from error
        try:
            self._server = xllamacpp.Server(_parameters(xllamacpp.CommonParams(), weights, threads))
        except (RuntimeError, ValueError) as error:
            raise SettingsError(f"the model server can not load {weights.name}: {error}") from error

    def generate(self, task: Task, on_text: Callable[[str], None], is_stopped: Callable[[], bool]) -> Finished | None:
        """Blocks until the answer is complete; None when it was stopped before.

        `is_stopped` is asked at every token and at every batch of the prompt. Raises `OllamaFault`.
        """
        reading = _Reading(on_text, is_stopped)
        complete = self._server.handle_chat_completions if task.is_chat else self._server.handle_completions
        try:
            complete({**task.fields, "stream": True, "return_progress": True}, reading)
        except ValueError as error:
            raise OllamaFault(400, str(error)) from error
        except RuntimeError as error:
            raise OllamaFault(500, str(error)) from error
        return reading.result()


class _Reading:
    """Takes llama.cpp's chunks of one answer. To return True from the callback ends the generation."""

    def __init__(self, on_text: Callable[[str], None], is_stopped: Callable[[], bool]) -> None:
        self._on_text = on_text
        self._is_stopped = is_stopped
        self._stopped = False
        self._reason = "stop"
        self._timings: dict[str, Any] | None = None
        self._fault: Exception | None = None

    def __call__(self, chunk: dict[str, Any]) -> bool:
        # What is raised in here would be swallowed by the library: it is kept and raised by `result`.
        try:
            self._read(chunk)
        except Exception as error:  # noqa: BLE001 - in the model's thread: whoever waits for the tokens raises it
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

    def result(self) -> Finished | None:
        """The end, once the call has returned. Raises what went wrong."""
        if self._fault is not None:
            raise self._fault
        if self._timings is None:
            if self._stopped:
                return None
            raise OllamaFault(500, "the model ended its answer early")
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
    params.cache_ram_mib = 0  # else prompts of the past may fill gigabytes
    params.verbosity = -1  # llama.cpp's chatter
    # xllamacpp always opens llama.cpp's own server on a free loopback port as well: nobody holds the key to it.
    params.ui = False
    params.n_threads_http = 1
    params.api_keys = [secrets.token_urlsafe()]
    return params
