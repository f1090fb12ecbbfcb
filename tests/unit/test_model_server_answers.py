"""The model server without a model: the queue, stopping, and answers that fail in the middle."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from api.embedded.model_server.app import create_app
from api.embedded.model_server.bodies import OllamaFault, sampling
from api.embedded.model_server.engine import Engine, Finished, ServerState, Task, TextModel
from api.embedded.model_server.generation import GenerationReply

END = Finished("stop", prompt_tokens=3, prompt_duration=10, tokens=2, duration=20)


class FakeEngine:
    """Generates its task's words, then waits for `gate` or to be stopped."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.gate = threading.Event()

    def generate(self, task: Task, on_text: Callable[[str], None], is_stopped: Callable[[], bool]) -> Finished | None:
        name = task.fields["prompt"]
        self.events.append(f"start {name}")
        on_text(name)
        while not self.gate.wait(0.01):
            if is_stopped():
                self.events.append(f"stop {name}")
                return None
        self.events.append(f"end {name}")
        return END


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def model(engine: FakeEngine) -> AsyncIterator[TextModel]:
    thread = ThreadPoolExecutor(max_workers=1)
    yield TextModel(cast("Engine", engine), thread)
    engine.gate.set()
    await asyncio.to_thread(thread.shutdown)


def task(name: str) -> Task:
    return Task(False, {"prompt": name})


async def collect(answer: AsyncGenerator[str | Finished, None]) -> list[str | Finished]:
    return [piece async for piece in answer]


async def test_tasks_are_served_one_at_a_time_in_order(model: TextModel, engine: FakeEngine) -> None:
    first = model.answer(task("a"))
    assert await anext(first) == "a"
    others = [asyncio.create_task(collect(model.answer(task(name)))) for name in "bc"]
    await asyncio.sleep(0)
    engine.gate.set()
    assert await anext(first) == END
    assert await asyncio.gather(*others) == [["b", END], ["c", END]]
    assert engine.events == [f"{what} {name}" for name in "abc" for what in ("start", "end")]


async def test_closing_an_answer_stops_the_engine(model: TextModel, engine: FakeEngine) -> None:
    first = model.answer(task("a"))
    assert await anext(first) == "a"
    await first.aclose()
    second = model.answer(task("b"))
    assert await anext(second) == "b"
    assert engine.events == ["start a", "stop a", "start b"]
    await second.aclose()


async def test_a_cancelled_task_in_the_queue_never_reaches_the_engine(model: TextModel, engine: FakeEngine) -> None:
    first = model.answer(task("a"))
    assert await anext(first) == "a"
    queued = asyncio.create_task(collect(model.answer(task("queued"))))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    engine.gate.set()
    assert await anext(first) == END
    assert await collect(model.answer(task("b"))) == ["b", END]
    assert "start queued" not in engine.events


async def send_reply(answer: AsyncGenerator[str | Finished, None], *, stream: bool) -> tuple[int, list[dict[str, Any]]]:
    """Returns the status and JSON lines that a connected client receives."""
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    reply = GenerationReply("m", answer, lambda text: {"response": text}, stream=stream, started=0)
    await reply({"type": "http"}, receive, send)
    body = b"".join(message["body"] for message in sent[1:])
    return sent[0]["status"], [json.loads(line) for line in body.splitlines()]


async def fails_after(*pieces: str) -> AsyncGenerator[str | Finished, None]:
    for piece in pieces:
        yield piece
    raise OllamaFault(500, "the model is gone")


async def test_an_error_during_the_stream_is_a_line() -> None:
    status, lines = await send_reply(fails_after("a", "b"), stream=True)
    assert status == 200
    assert [line.get("response") for line in lines] == ["a", "b", None]
    assert lines[-1] == {"error": "the model is gone"}


async def test_an_error_before_the_first_token_is_a_status() -> None:
    assert await send_reply(fails_after(), stream=True) == (500, [{"error": "the model is gone"}])
    assert await send_reply(fails_after("a"), stream=False) == (500, [{"error": "the model is gone"}])


async def test_a_disconnect_closes_the_answer() -> None:
    closed = asyncio.Event()
    waiting = asyncio.Event()

    async def endless() -> AsyncGenerator[str | Finished, None]:
        try:
            yield "a"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def receive() -> Any:
        await waiting.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    reply = GenerationReply("m", endless(), lambda text: {"response": text}, stream=False, started=0)
    await asyncio.wait_for(reply({"type": "http"}, receive, send), 10)
    assert closed.is_set()


def test_options_map_to_llama_cpp() -> None:
    fields = sampling({"num_predict": 5, "stop": ["x"], "seed": 1.0, "num_ctx": 2048, "unknown": "ignored"})
    assert (fields["max_tokens"], fields["stop"], fields["seed"]) == (5, ["x"], 1)
    assert "num_ctx" not in fields
    assert sampling({})["max_tokens"] == 256
    assert sampling({"num_predict": -2})["max_tokens"] == -1


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("temperature", "hot", "float32"),
        ("num_ctx", "big", "integer"),
        ("seed", True, "integer"),
        ("stop", "word", "array"),
        ("use_mmap", 1, "boolean"),
    ],
)
def test_an_option_of_a_wrong_type_returns_500_like_ollama(name: str, value: Any, kind: str) -> None:
    with pytest.raises(OllamaFault, match=f'option "{name}" must be of type {kind}') as caught:
        sampling({name: value})
    assert caught.value.status == 500


async def test_a_disconnect_during_the_body_is_no_error() -> None:
    came = iter(({"type": "http.request", "body": b'{"mod', "more_body": True}, {"type": "http.disconnect"}))
    sent: list[Any] = []

    async def receive() -> Any:
        return next(came)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/chat", "query_string": b"", "headers": []}
    await create_app(cast("ServerState", None))(scope, receive, send)
    assert sent[0]["status"] == 499
