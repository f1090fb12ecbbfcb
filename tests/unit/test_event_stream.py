"""Event streams: content negotiation, backpressure, and errors inside a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from api.endpoints.problems import ClientDisconnected
from api.endpoints.streaming import CancelOnDisconnect, EventStream, Streaming, accepted
from api.ports.question import AnswerEvent, AnswerFinished, AnswerStarted, CacheControl, Timings
from api.values import CacheStatus, Token

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/query",
    "query_string": b"",
    "headers": [],
    "server": ("x", 80),
    "scheme": "http",
    "state": {"request_id": "r"},
}


class Pipe:
    """An ASGI server that records what is sent, blocks while `full`, and can lose its client."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.room = asyncio.Event()
        self.room.set()
        self.gone = asyncio.Event()

    async def send(self, message: Any) -> None:
        await self.room.wait()
        self.sent.append(message)

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


def stream(answer: AsyncGenerator[AnswerEvent, None], streaming: Streaming | None = None) -> EventStream:
    return EventStream(Request(SCOPE), aclosing(answer), CacheControl(), streaming or Streaming())


async def turns(count: int = 20) -> None:
    """Lets all tasks run until they wait."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("application/json, text/event-stream;q=0.5", True),
        ("text/event-stream;q=0.05", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream; q = 0.00", False),
        ("text/event-streams", False),
        ("text/*", False),
        ("*/*", False),
        ("", False),
        (",;", False),
    ],
)
def test_which_accept_headers_request_an_event_stream(accept: str, streams: bool) -> None:
    assert accepted(Headers({"accept": accept})) is streams


async def test_no_more_is_generated_than_the_client_reads() -> None:
    asked_for = 0

    async def answer() -> AsyncGenerator[AnswerEvent, None]:
        nonlocal asked_for
        yield AnswerStarted(CacheStatus.MISS)
        for asked_for in range(1, 11):  # noqa: B007 - counts
            yield Token("x")
        yield AnswerFinished("x" * 10, "m", CacheStatus.MISS, Timings())

    pipe = Pipe()
    pipe.room.clear()
    sending = asyncio.create_task(stream(answer())(SCOPE, pipe.receive, pipe.send))
    await turns()
    assert asked_for == 0
    pipe.room.set()
    await sending
    assert asked_for == 10
    assert pipe.text.count("event: token") == 10


async def test_a_client_that_reads_nothing_counts_as_disconnected() -> None:
    ended = False

    async def answer() -> AsyncGenerator[AnswerEvent, None]:
        nonlocal ended
        try:
            yield AnswerStarted(CacheStatus.MISS)
            yield Token("x")
        finally:
            ended = True

    pipe = Pipe()
    pipe.room.clear()
    await stream(answer(), Streaming(heartbeat=0.01, stall=0.05))(SCOPE, pipe.receive, pipe.send)
    assert ended
    assert pipe.sent == []


async def test_an_internal_error_is_sent_and_raised() -> None:
    async def answer() -> AsyncGenerator[AnswerEvent, None]:
        yield AnswerStarted(CacheStatus.MISS)
        raise ValueError("secret")

    pipe = Pipe()
    with pytest.raises(ValueError, match="secret"):
        await stream(answer())(SCOPE, pipe.receive, pipe.send)
    name, data = pipe.text.split("\n\n")[1].split("\n")
    assert name == "event: error"
    problem = json.loads(data.removeprefix("data: "))
    assert (problem["status"], problem["request_id"]) == (500, "r")
    assert "secret" not in data
    assert pipe.sent[-1]["more_body"] is True  # the response stays visibly incomplete


async def test_a_disconnect_ends_the_answer_where_it_is() -> None:
    ended: list[str] = []

    async def answer() -> AsyncGenerator[AnswerEvent, None]:
        try:
            yield AnswerStarted(CacheStatus.MISS)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    pipe = Pipe()
    sending = asyncio.create_task(stream(answer())(SCOPE, pipe.receive, pipe.send))
    await turns()
    pipe.gone.set()
    await sending
    assert ended == ["cancelled"]
    assert pipe.sent[-1]["more_body"] is True


async def test_a_disconnect_at_the_end_leaves_no_cancellation_behind() -> None:
    pipe = Pipe()
    with CancelOnDisconnect(pipe.receive):
        await asyncio.sleep(0)
        pipe.gone.set()
    await turns()  # a pending cancellation would be raised here


async def test_a_cancellation_of_the_request_propagates() -> None:
    pipe = Pipe()

    async def work() -> None:
        with CancelOnDisconnect(pipe.receive):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_deadline_inside_is_not_mistaken_for_a_disconnect() -> None:
    pipe = Pipe()
    with pytest.raises(TimeoutError), CancelOnDisconnect(pipe.receive):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    pipe.gone.set()
    with pytest.raises(ClientDisconnected), CancelOnDisconnect(pipe.receive):
        await asyncio.Event().wait()
