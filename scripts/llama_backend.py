"""A llama.cpp server with several slots that speaks as much of Ollama's API as Ragherd needs to generate.

    .venv/bin/python -m scripts.llama_backend

Used by bench_prefix_affinity. Unlike `api.embedded.model_server` it answers several prompts at once, and keeps the
state of as many (`n_parallel`, as `OLLAMA_NUM_PARALLEL` in Ollama). It counts the tokens of prompts that it read, and
those that a slot had. Needs the extra `embedded`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import typer
import uvicorn
import xllamacpp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from api.embedded.model_server.catalog import text_weights

MODEL: Final = "smollm2:latest"
CONTEXT: Final = 2048
"""Tokens of one slot."""


class Slots:
    """The loaded model. Each slot generates in a thread."""

    def __init__(self, layers: int, slots: int, threads: int) -> None:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            file.write(shortened(text_weights().read_bytes(), layers))
            file.flush()
            self._server = xllamacpp.Server(_parameters(Path(file.name), slots, threads))
        self._threads = ThreadPoolExecutor(max_workers=slots)
        self.tokens: Counter[str] = Counter()

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yields the lines of Ollama's `/api/chat`."""
        loop, chunks = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()
        options = body.get("options") or {}
        asked = {
            "messages": body["messages"],
            "max_tokens": options.get("num_predict", 16),
            "temperature": 0,
            "cache_prompt": True,
            "stream": True,
        }

        def generate() -> None:
            self._server.handle_chat_completions(asked, lambda chunk: _put(loop, chunks, chunk))
            _put(loop, chunks, None)

        running = loop.run_in_executor(self._threads, generate)
        timings: dict[str, Any] = {}
        while (chunk := await chunks.get()) is not None:
            timings = chunk.get("timings") or timings
            for choice in chunk.get("choices", ()):
                if text := choice.get("delta", {}).get("content"):
                    yield {"model": MODEL, "message": {"role": "assistant", "content": text}, "done": False}
        await running
        self.tokens.update(calls=1, read=timings["prompt_n"], kept=timings["cache_n"], answered=timings["predicted_n"])
        yield _end(timings)

    def close(self) -> None:
        """Waits for the threads."""
        self._threads.shutdown(cancel_futures=True)


def _put(loop: asyncio.AbstractEventLoop, chunks: asyncio.Queue[Any], chunk: dict[str, Any] | None) -> bool:
    loop.call_soon_threadsafe(chunks.put_nowait, chunk)
    return False


def _end(timings: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": MODEL,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": timings["prompt_n"] + timings["cache_n"],
        "prompt_eval_duration": round(timings["prompt_ms"] * 1e6),
        "eval_count": timings["predicted_n"],
        "eval_duration": round(timings["predicted_ms"] * 1e6),
    }


LAYERS: Final = b"llama.block_count"
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of GGUF's types, except texts (8) and arrays (9)."""


class Gguf:
    """Reads a GGUF file from its beginning."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def number(self, code: str) -> int:
        """Reads a little-endian number."""
        (value,) = struct.unpack_from(f"<{code}", self.content, self.at)
        self.at += struct.calcsize(code)
        return int(value)

    def text(self) -> bytes:
        """Reads a text."""
        length = self.number("Q")
        self.at += length
        return self.content[self.at - length : self.at]

    def skip(self, kind: int) -> None:
        """Skips a value."""
        if kind == 8:
            self.text()
        elif kind == 9:
            of, count = self.number("I"), self.number("Q")
            for _ in range(count):
                self.skip(of)
        else:
            self.at += _SIZES[kind]


def shortened(weights: bytes, layers: int) -> bytes:
    """Returns a GGUF model of the llama architecture with only its first layers. It reads fast, and talks nonsense."""
    gguf = Gguf(weights)
    gguf.at = 8
    tensors, fields = gguf.number("Q"), gguf.number("Q")
    head = bytearray()
    for _ in range(fields):
        start, name, kind = gguf.at, gguf.text(), gguf.number("I")
        value = gguf.at
        gguf.skip(kind)
        head += weights[start:value] + (struct.pack("<I", layers) if name == LAYERS else weights[value : gguf.at])
    infos = []
    for _ in range(tensors):
        start, name = gguf.at, gguf.text()
        dimensions = gguf.number("I")
        gguf.at += 8 * dimensions + 4
        infos.append((name, weights[start : gguf.at], gguf.number("Q")))
    return _written(weights, head, fields, infos, data=_aligned(gguf.at), layers=layers)


def _written(
    weights: bytes, head: bytearray, fields: int, infos: list[tuple[bytes, bytes, int]], *, data: int, layers: int
) -> bytes:
    ends = [offset for _, _, offset in infos[1:]] + [len(weights) - data]
    table, content = bytearray(), bytearray()
    kept = 0
    for (name, info, offset), end in zip(infos, ends, strict=True):
        layer = re.match(rb"blk\.(\d+)\.", name)
        if layer is None or int(layer[1]) < layers:
            table += info + struct.pack("<Q", len(content))
            content += weights[data + offset : data + end]
            content += bytes(_aligned(len(content)) - len(content))
            kept += 1
    before = weights[:8] + struct.pack("<QQ", kept, fields) + head + table
    return before + bytes(_aligned(len(before)) - len(before)) + content


def _aligned(place: int) -> int:
    return -(-place // 32) * 32


def _parameters(weights: Path, slots: int, threads: int) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.n_parallel, params.n_ctx = slots, slots * CONTEXT
    params.kv_unified = False
    params.slot_prompt_similarity = 0.7  # like Ollama, a new conversation takes no slot of another that begins alike
    params.n_batch = params.n_ubatch = 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.fit_params = False
    params.cache_ram_mib = 0  # each slot keeps one prompt, as in Ollama
    params.verbosity = -1
    params.ui = False
    params.n_threads_http = 1
    return params


def application(slots: Slots) -> Starlette:
    """Returns the endpoints: chat, lists of models, version, and `/stats` with the counts of tokens."""

    async def chat(request: Request) -> Response:
        body = await request.json()
        lines = (orjson.dumps(line) + b"\n" async for line in slots.answer(body))
        return StreamingResponse(lines, media_type="application/x-ndjson")

    def models(_: Request) -> Response:
        row = {"name": MODEL, "model": MODEL, "size": 1, "digest": "d", "expires_at": "2100-01-01T00:00:00Z"}
        return JSONResponse({"models": [row]})

    def version(_: Request) -> Response:
        return JSONResponse({"version": "0.0.0-llama.cpp"})

    def stats(_: Request) -> Response:
        return JSONResponse(dict(slots.tokens))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        slots.close()

    routes = [
        Route("/api/chat", chat, methods=["POST"]),
        *(Route(path, models) for path in ("/api/tags", "/api/ps")),
        Route("/api/version", version),
        Route("/stats", stats),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def main(port: int = 0, layers: int = 4, slots: int = 4, threads: int = 1) -> None:
    """Serves on `port` (0: any free one) and prints the URL."""
    loaded = Slots(layers, slots, threads)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        print(f"ready on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(application(loaded), log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    typer.run(main)
