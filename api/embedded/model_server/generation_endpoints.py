"""`POST /api/chat` and `POST /api/generate`."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from api.embedded.model_server.bodies import ChatBody, GenerateBody, GenerationBody, read_body
from api.embedded.model_server.generation_reply import Content, GenerationReply, now
from api.embedded.model_server.prompts import Task, chat_task, generate_task
from api.embedded.model_server.state import ServerState, state_of


async def chat(request: Request) -> GenerationReply | JSONResponse:
    """Answers the last turn of a conversation."""
    state = state_of(request)
    body = await read_body(request, ChatBody)
    state.catalog.find_able(body.model, "completion", "chat")
    return _reply(state, body, chat_task(body), lambda text: {"message": {"role": "assistant", "content": text}})


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
    answer = state.text_model.answer(task)
    return GenerationReply(body.model, answer, content, stream=body.stream, started=time.perf_counter_ns())


def _nothing_to_answer(body: GenerationBody, content: Content) -> dict[str, Any]:
    """What Ollama says to a request that only loads or unloads. Here the model always stays loaded."""
    reason = "unload" if body.unloads else "load"
    return {"model": body.model, "created_at": now(), **content(""), "done": True, "done_reason": reason}
