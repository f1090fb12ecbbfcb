"""The stub server: one listener for the service under test, and one for control by the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from tests.stub_ollama import answers, forms
from tests.stub_ollama.behaviour import Behaviour
from tests.stub_ollama.connection import Connection, StubRequest
from tests.stub_ollama.prefix_cache import PrefixCache

TRANSCRIPTIONS = "/v1/audio/transcriptions"
MODEL_CALLS = {"/api/chat", "/api/generate", "/api/embed", TRANSCRIPTIONS, *forms.EVENT_PATHS}
VERSION = "0.0.0-stub"


class StubOllama:
    """Created by `running_stub`."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._behaviour = Behaviour()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._control: asyncio.Server | None = None
        self._requests: Counter[str] = Counter()
        self._figures: Counter[str] = Counter()
        self._reads_until = 0.0
        self.prompts = PrefixCache()
        self.port = 0
        self.last_bodies: dict[str, dict[str, Any]] = {}
        """By path, the JSON of the last request."""
        self._traceparents: dict[str, str] = {}

    @property
    def base_url(self) -> str:
        """The URL of the stubbed Ollama API."""
        return f"http://{self._host}:{self.port}"

    @property
    def control_url(self) -> str:
        """The URL for control requests. It always answers."""
        assert self._control is not None
        return f"http://{self._host}:{self._control.sockets[0].getsockname()[1]}"

    @property
    def stats(self) -> dict[str, Any]:
        """Counts since the start: requests by path, generations in flight, finished and cancelled, connections.

        `max_texts`: the most texts in one call of /api/embed. `traceparents`: by path, the last request's header.
        `prompt_tokens`: those that were read, and those that a slot had.
        """
        names = ("in_flight", "max_in_flight", "finished", "cancelled", "connections_accepted", "max_texts")
        figures = {name: self._figures[name] for name in names}
        return {
            "requests": dict(self._requests),
            "connections_open": len(self._connections),
            "traceparents": dict(self._traceparents),
            "prompt_tokens": {"evaluated": self.prompts.evaluated, "cached": self.prompts.cached},
            **figures,
        }

    @property
    def mode(self) -> str:
        """The current mode."""
        return self._behaviour.mode

    def behaviour(self, mode: str = "ok", **fields: Any) -> None:
        """Sets the behavior. The fields are those of `Behaviour`. For "refuse", call `refuse` instead."""
        self._behaviour = Behaviour(mode, **fields)

    async def refuse(self) -> None:
        """Stops listening and breaks every connection, like a killed Ollama."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
            self.break_connections()

    async def listen(self) -> None:
        """Listens on the same port again. Does nothing if it already listens."""
        if self._server is None:
            self._server = await self._listener(self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def break_connections(self) -> None:
        """Closes every open connection. The listener stays open."""
        for connection in list(self._connections):
            connection.abort()

    async def start(self, port: int = 0) -> None:
        """Listens on `port`, or on any free port if it is 0."""
        self.port = port
        await self.listen()
        loop = asyncio.get_running_loop()
        self._control = await loop.create_server(lambda: Connection(self._wish, set()), self._host, 0)

    async def stop(self) -> None:
        """Stops the stub."""
        await self.refuse()
        if self._control is not None:
            self._control.close()

    async def _listener(self, port: int) -> asyncio.Server:
        def accepted() -> Connection:
            self._figures["connections_accepted"] += 1
            return Connection(self._serve, self._connections)

        loop = asyncio.get_running_loop()
        return await loop.create_server(accepted, self._host, port, reuse_address=True)

    async def _serve(self, request: StubRequest, connection: Connection) -> None:
        if request.path.startswith("/stub/"):
            await self._wish(request, connection)
            return
        self._requests[request.path] += 1
        self.last_bodies[request.path] = request.body
        self._traceparents[request.path] = request.traceparent
        behaviour = self._next_behaviour(request.path)
        if request.path in MODEL_CALLS:
            await self._counted(request, connection, behaviour)
        else:
            await self._answered(request, connection, behaviour)

    async def _wish(self, request: StubRequest, connection: Connection) -> None:
        if request.path == "/stub/behaviour":
            wished = Behaviour.from_json(request.body)
            self._behaviour = wished
            await (self.refuse() if wished.mode == "refuse" else self.listen())
        elif request.path == "/stub/break":
            self.break_connections()
        connection.answer(self.stats)

    def _next_behaviour(self, path: str) -> Behaviour:
        wished = self._behaviour
        meant = {wished.path} if wished.path else MODEL_CALLS
        if path not in meant:
            return replace(wished, mode="ok", delay=0.0)
        if wished.times is not None:
            self._behaviour = replace(wished, times=wished.times - 1) if wished.times > 1 else Behaviour()
        return wished

    async def _counted(self, request: StubRequest, connection: Connection, behaviour: Behaviour) -> None:
        self._figures["in_flight"] += 1
        self._figures["max_in_flight"] = max(self._figures["max_in_flight"], self._figures["in_flight"])
        try:
            await self._answered(request, connection, behaviour)
            self._figures["finished"] += 1
        except asyncio.CancelledError:
            self._figures["cancelled"] += 1
            raise
        finally:
            self._figures["in_flight"] -= 1

    async def _answered(self, request: StubRequest, connection: Connection, behaviour: Behaviour) -> None:
        await asyncio.sleep(behaviour.delay + behaviour.embed_pace * self._texts(request))
        if behaviour.read_pace:
            await self._read(answers.prompt_words(request.body) * behaviour.read_pace)
        if behaviour.mode == "hang":
            await asyncio.Event().wait()
        elif behaviour.mode == "close":
            connection.close()
        elif behaviour.mode == "status" or _has_bad_text(request, behaviour):
            headers = {"Retry-After": behaviour.retry_after} if behaviour.retry_after is not None else {}
            connection.answer(forms.error(request.path, behaviour.message), behaviour.status, headers)
        elif request.path == "/":
            connection.text("Ollama is running")
        elif request.path in behaviour.lacks:
            connection.text("404 page not found", 404)
        elif request.path in MODEL_CALLS and not answers.has_model(request.body, behaviour):
            missing = f"model '{request.body.get('model')}' not found"
            connection.answer(forms.error(request.path, missing), 404)
        elif refusal := forms.refusal(request.body, behaviour):
            connection.answer(forms.error(request.path, refusal), 400)
        elif (loading := forms.loading(request.path, request.body)) is not None:
            connection.answer(loading)
        elif request.path in {"/api/chat", "/api/generate", *forms.EVENT_PATHS}:
            await self._generated(request, connection, behaviour)
        elif request.path == TRANSCRIPTIONS:
            _transcribe(request, connection)
        elif (plain := _plain(request, behaviour)) is not None:
            connection.answer(*plain)
        else:
            connection.text("404 page not found", 404)
        if behaviour.mode == "close_after":
            connection.close()

    async def _read(self, seconds: float) -> None:
        """Reads a prompt after all earlier ones, even if their callers have left."""
        now = asyncio.get_running_loop().time()
        self._reads_until = max(now, self._reads_until) + seconds
        await asyncio.sleep(self._reads_until - now)

    def _texts(self, request: StubRequest) -> int:
        """Returns the number of texts in an /api/embed request and records the maximum."""
        count = len(answers.texts(request.body))
        self._figures["max_texts"] = max(self._figures["max_texts"], count)
        return count

    async def _generated(self, request: StubRequest, connection: Connection, behaviour: Behaviour) -> None:
        model, path = request.body.get("model", ""), request.path
        said = forms.said(request.body, answers.chat_tokens(request.body, behaviour), behaviour)
        self.prompts.read(request.body, said.words, behaviour.slots)
        if path in forms.EVENT_PATHS:
            await self._spoken(request, connection, behaviour, said)
            return
        last = answers.last_line(path, model, request.body, len(said.words), behaviour)
        if request.body.get("stream") is False:
            connection.answer({**last, **forms.ollama_whole(path, said, request.body)})
            return
        connection.begin_stream()
        head = answers.token_line(path, model, "")
        for number, part in enumerate(forms.ollama_parts(path, said, request.body)):
            if number:
                await asyncio.sleep(behaviour.pace)
                if behaviour.mode in BREAKS:
                    break
            connection.line(answers.encoded({**head, **part}))
            await connection.drained()
        if behaviour.mode in BREAKS:
            await _misbehave(connection, behaviour)
            return
        if behaviour.mode != "no_done":
            connection.line(answers.encoded(last))
        if behaviour.mode == "cut_after_done":
            await connection.drained()
            connection.close()
            return
        connection.end_stream()

    async def _spoken(
        self, request: StubRequest, connection: Connection, behaviour: Behaviour, said: forms.Said
    ) -> None:
        """Answers in OpenAI's or Anthropic's form. With mode "no_done" or "cut" the last event does not come."""
        if not request.body.get("stream"):
            connection.answer(forms.document(request.path, said, request.body))
            return
        connection.begin_stream("text/event-stream")
        events = list(forms.events(request.path, said, request.body))
        for event in events[: 1 if behaviour.mode in BREAKS else len(events) - (behaviour.mode == "no_done")]:
            connection.event(event)
            await connection.drained()
            await asyncio.sleep(behaviour.pace)
        if behaviour.mode in BREAKS:
            await _misbehave(connection, behaviour)
            return
        connection.end_stream()


def _transcribe(request: StubRequest, connection: Connection) -> None:
    """Answers a form with a recording as Ollama does: in JSON, or as text."""
    text = f"a recording of {request.body.get('file')} bytes"
    if not isinstance(request.body.get("file"), int):
        connection.answer(forms.error(TRANSCRIPTIONS, "file is required: http: no such file"), 400)
    elif request.body.get("response_format") == "text":
        connection.text(text)
    else:
        connection.answer({"text": text})


def _has_bad_text(request: StubRequest, behaviour: Behaviour) -> bool:
    return behaviour.mode == "bad_text" and any(behaviour.bad_text in text for text in answers.texts(request.body))


BREAKS = {"hang_between", "cut", "error_line", "bad_json"}


async def _misbehave(connection: Connection, behaviour: Behaviour) -> None:
    """Does what the mode does after the first token."""
    if behaviour.mode == "hang_between":
        await asyncio.Event().wait()
    elif behaviour.mode == "cut":
        connection.close()
    else:
        error = behaviour.mode == "error_line"
        connection.line(json.dumps({"error": behaviour.message}).encode() if error else b'{"message": {"content"')
        connection.end_stream()


def _plain(request: StubRequest, behaviour: Behaviour) -> tuple[dict[str, Any], int] | None:
    """Returns the answer and status of a request without a stream; None for an unknown path."""
    match request.path:
        case "/api/embed":
            return answers.embed_answer(request.body, behaviour), 200
        case "/api/embeddings":
            (one,) = answers.embed_answer({**request.body, "input": [request.body["prompt"]]}, behaviour)["embeddings"]
            return {"embedding": one}, 200
        case "/v1/embeddings" if request.body.get("input") in ([], None):
            return forms.error(request.path, "invalid input"), 400
        case "/v1/embeddings":
            return answers.openai_embeddings(request.body, behaviour), 200
        case "/v1/models":
            return answers.openai_models(behaviour), 200
        case "/api/tags":
            return answers.tags_answer(behaviour), 200
        case "/api/ps":
            return answers.ps_answer(behaviour), 200
        case "/api/show" if not answers.has_model(request.body, behaviour):
            return {"error": f"model '{request.body.get('model')}' not found"}, 404
        case "/api/show":
            return answers.show_answer(request.body, behaviour), 200
        case "/api/version":
            return {"version": VERSION}, 200
        case _:
            return None


@contextlib.asynccontextmanager
async def running_stub(port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[StubOllama]:
    """Runs a stub in the current event loop on `port` (0: any free port)."""
    stub = StubOllama(host)
    await stub.start(port)
    try:
        yield stub
    finally:
        await stub.stop()
