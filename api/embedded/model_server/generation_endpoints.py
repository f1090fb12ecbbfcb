"""`POST /api/chat` and `POST /api/generate`."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from api.embedded.model_server.bodies import ChatBody, GenerateBody, GenerationBody, read_body
from api.embedded.model_server.generation_reply import Answer, Content, GenerationReply, now
from api.embedded.model_server.prompts import Task, chat_task, generate_task
from api.embedded.model_server.quoting import quoted, reading
from api.embedded.model_server.state import ServerState, state_of


async def chat(request: Request) -> GenerationReply | JSONResponse:
    """Answers the last turn of a conversation."""
    state = state_of(request)
    body = await read_body(request, ChatBody)
    state.catalog.find_able(body.model, "completion", "chat")
    read = reading(body)
    if read is not None:
        return _told(body, quoted(read, state.embedder), _message)
    return _reply(state, body, chat_task(body), _message)


async def generate(request: Request) -> GenerationReply | JSONResponse:
    """Answers one prompt."""
    state = state_of(request)
    body = await read_body(request, GenerateBody)
    state.catalog.find_able(body.model, "completion", "generate")
    return _reply(state, body, generate_task(body), lambda text: {"response": text})


def _reply(
    state: ServerState, body: GenerationBody, task: Task | None, content: Content
) -> GenerationReply | JSONResponse:
    if task is None:
        return JSONResponse(_nothing_to_answer(body, content))
    return _told(body, state.text_model.answer(task), content)


def _told(body: GenerationBody, answer: Answer, content: Content) -> GenerationReply:
    return GenerationReply(body.model, answer, content, stream=body.stream, started=time.perf_counter_ns())


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _nothing_to_answer(body: GenerationBody, content: Content) -> dict[str, Any]:
    """What Ollama says to a request that only loads or unloads. Here the model always stays loaded."""
    reason = "unload" if body.unloads else "load"
    return {"model": body.model, "created_at": now(), **content(""), "done": True, "done_reason": reason}
