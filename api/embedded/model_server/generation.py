"""`POST /api/chat` and `POST /api/generate`: streams an answer as NDJSON, or sends one document.

If the client disconnects, the generation stops.

Prompts with passages are answered by quoting the sentences nearest to the question, with the numbers of their passages.
A model with 135 million parameters cannot read passages and invents their content. Newcomers should see true answers,
so sentences are quoted. This works for prompts in the form of Ragherd's own template; other prompts go to the model.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from api.cancellation import log_failure
from api.embedded.model_server.bodies import ChatInput, GenerateInput, GenerationInput, OllamaFault, read_body
from api.embedded.model_server.engine import Finished, ServerState, Task, chat_task, generate_task, state_of
from api.errors import EmbeddingUnavailable
from api.ports.inference import Embedder
from api.values import NO_TENANT

NO_ANSWER: Final = "The passages do not say."
MIN_COSINE: Final = 0.3
"""Minimum cosine of a quoted sentence."""
SECOND_SHARE: Final = 0.85
"""A second sentence needs at least this share of the best cosine."""
MAX_SENTENCES: Final = 48
"""Compared with the question. Embedding each takes a few milliseconds."""
_PASSAGE: Final = re.compile(r'<passage number="(\d+)"[^>]*>\n(.*?)\n</passage>', re.DOTALL)
_QUESTION: Final = re.compile(r"^Question: (.+)\Z", re.DOTALL | re.MULTILINE)
_CODE: Final = re.compile(r"^(```|~~~).*?(?:^\1|\Z)", re.DOTALL | re.MULTILINE)
_BLOCK_MARK: Final = re.compile(r"^\s*(?:[-*+]|\d+\.|>|#{1,6})\s+", re.MULTILINE)
_RULE: Final = re.compile(r"[\s|:-]+")
_LINK: Final = re.compile(r"\[([^\[\]]*)\]\([^()]*\)")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence with the number of its passage."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Passages:
    """The question of a prompt, and the sentences that may answer it."""

    question: str
    sentences: tuple[Sentence, ...]


def parse_passages(body: ChatInput) -> Passages | None:
    """Returns None unless the last message consists of passages and a question."""
    last = body.messages[-1] if body.messages else None
    if last is None or last.role != "user" or body.format or body.tools:
        return None
    passages, asked = _PASSAGE.findall(last.content), _QUESTION.search(last.content)
    if not passages or asked is None:
        return None
    found = [Sentence(int(number), sentence) for number, text in passages for sentence in sentences(text)]
    return Passages(asked[1].strip(), tuple(found[:MAX_SENTENCES]))


def sentences(text: str) -> list[str]:
    """Returns the sentences of a passage's prose, lists and table rows, without code, headings and
    truncated sentences.
    """
    found: list[str] = []
    for block in re.split(r"\n\s*\n", _CODE.sub("\n\n", text)):
        if block.lstrip().startswith("|"):
            found += _rows(block.splitlines())
        elif not block.lstrip().startswith("#"):
            found += _SENTENCE.split(_plain(block))
    return [one for one in found if one.endswith((".", "!", "?")) and " " in one]


def _plain(block: str) -> str:
    return " ".join(_LINK.sub(r"\1", _BLOCK_MARK.sub("", block)).replace("**", "").split())


def _rows(lines: Sequence[str]) -> list[str]:
    """Returns the rows below the header rule of a table, or all rows if the header was cut off."""
    rule = next((place for place, line in enumerate(lines) if _RULE.fullmatch(line)), -1)
    return [_row(line) for line in lines[rule + 1 :]]


def _row(line: str) -> str:
    """Returns a row as a sentence: `name: its meaning.`"""
    cells = [_plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
    words = ": ".join(cell for cell in cells if cell)
    return words if words.endswith((".", "!", "?")) else f"{words}."


async def quote(read: Passages, embedder: Embedder) -> AsyncGenerator[str | Finished, None]:
    """Yields pieces of text, then `Finished`, like `TextModel.answer`. Raises `OllamaFault`."""
    began = time.perf_counter_ns()
    try:
        texts = [read.question, *(sentence.text for sentence in read.sentences)]
        embeddings = await embedder.embed(texts, tenant=NO_TENANT)
    except EmbeddingUnavailable as error:
        raise OllamaFault(500, str(error)) from error
    read_ns = time.perf_counter_ns() - began
    asked, *others = (np.frombuffer(embedding.vector, dtype="<f4") for embedding in embeddings)
    words = answer(read.sentences, [float(one @ asked) for one in others]).split(" ")
    for place, word in enumerate(words):
        yield word if place == 0 else f" {word}"
    prompt_words = sum(len(sentence.text.split()) for sentence in read.sentences)
    yield Finished("stop", prompt_words, read_ns, len(words), time.perf_counter_ns() - began - read_ns)


def answer(among: Sequence[Sentence], cosines: Sequence[float]) -> str:
    """Returns the nearest sentence, and the second if it is nearly as near, in their original order."""
    ranked = sorted(range(len(among)), key=lambda place: -cosines[place])
    least = max(MIN_COSINE, SECOND_SHARE * cosines[ranked[0]]) if ranked else MIN_COSINE
    chosen = sorted(place for place in ranked[:2] if cosines[place] >= least)
    if not chosen:
        return NO_ANSWER
    unique = dict.fromkeys((among[place].text, among[place].number) for place in chosen)
    return " ".join(f"{text[:-1]} [{number}]{text[-1]}" for text, number in unique)


Answer = AsyncGenerator[str | Finished, None]
Content = Callable[[str], dict[str, Any]]
"""Wraps a text for an endpoint: chat in `message`, generate in `response`."""


class GenerationReply:
    """An ASGI response. `started` is `time.perf_counter_ns()` when the request arrived."""

    def __init__(self, model: str, answer: Answer, content: Content, *, stream: bool, started: int) -> None:
        self._model = model
        self._answer = answer
        self._content = content
        self._stream = stream
        self._started = started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer unless the client disconnects first. Frees the model in both cases."""
        async with aclosing(self._answer):
            send_it = self._send_lines(send) if self._stream else self._send_buffered(scope, receive, send)
            await _cancel_on_disconnect(receive, send_it)

    async def _send_buffered(self, scope: Scope, receive: Receive, send: Send) -> None:
        texts: list[str] = []
        fields: dict[str, Any] = {}
        try:
            async for piece in self._answer:
                if isinstance(piece, Finished):
                    fields = self._end("".join(texts), piece)
                else:
                    texts.append(piece)
        except OllamaFault as fault:
            await JSONResponse({"error": fault.message}, fault.status)(scope, receive, send)
        else:
            await JSONResponse(fields)(scope, receive, send)

    async def _send_lines(self, send: Send) -> None:
        """Delays the status until the first piece, like Ollama, so that an earlier fault can set the status."""
        is_begun = False
        try:
            async for piece in self._answer:
                if not is_begun:
                    is_begun = True
                    await _begin(send, 200, b"application/x-ndjson")
                line = self._end("", piece) if isinstance(piece, Finished) else self._part(piece)
                await _send_line(send, line)
        except OllamaFault as fault:
            if not is_begun:
                await _begin(send, fault.status, b"application/json")
            await _send_line(send, {"error": fault.message})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _part(self, text: str) -> dict[str, Any]:
        return {"model": self._model, "created_at": now(), **self._content(text), "done": False}

    def _end(self, text: str, finished: Finished) -> dict[str, Any]:
        return {
            **self._part(text),
            "done": True,
            "done_reason": finished.reason,
            "total_duration": time.perf_counter_ns() - self._started,
            "load_duration": 0,
            "prompt_eval_count": finished.prompt_tokens,
            "prompt_eval_duration": finished.prompt_duration,
            "eval_count": finished.tokens,
            "eval_duration": finished.duration,
        }


async def _begin(send: Send, status: int, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})


async def _send_line(send: Send, fields: dict[str, Any]) -> None:
    body = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Awaits `work`, and cancels it when the client disconnects. Read the request's body before."""
    task = asyncio.ensure_future(work)

    async def watch(task: asyncio.Task[None]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watching = asyncio.create_task(watch(task))
    log_failure(watching)
    try:
        await task
    except asyncio.CancelledError:
        if not watching.done():  # not the client: the server is stopping
            raise
    finally:
        watching.cancel()
        del task  # it holds its error, which refers to this frame


def now() -> str:
    """Returns the current time as RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


async def chat(request: Request) -> GenerationReply | JSONResponse:
    """Answers the last message of a conversation."""
    state = state_of(request)
    body = await read_body(request, ChatInput)
    state.catalog.find_capable(body.model, "completion", "chat")
    read = parse_passages(body)
    if read is not None:
        return _stream_reply(body, quote(read, state.embedder), _message)
    return _reply(state, body, chat_task(body), _message)


async def generate(request: Request) -> GenerationReply | JSONResponse:
    """Answers one prompt."""
    state = state_of(request)
    body = await read_body(request, GenerateInput)
    state.catalog.find_capable(body.model, "completion", "generate")
    return _reply(state, body, generate_task(body), lambda text: {"response": text})


def _reply(
    state: ServerState, body: GenerationInput, task: Task | None, content: Content
) -> GenerationReply | JSONResponse:
    if task is None:
        return JSONResponse(_load_response(body, content))
    return _stream_reply(body, state.text_model.answer(task), content)


def _stream_reply(body: GenerationInput, answer: Answer, content: Content) -> GenerationReply:
    return GenerationReply(body.model, answer, content, stream=body.stream, started=time.perf_counter_ns())


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _load_response(body: GenerationInput, content: Content) -> dict[str, Any]:
    """Returns Ollama's response to a request that only loads or unloads. Here the model always stays loaded."""
    reason = "unload" if body.unloads else "load"
    return {"model": body.model, "created_at": now(), **content(""), "done": True, "done_reason": reason}
