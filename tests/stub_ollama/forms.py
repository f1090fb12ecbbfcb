"""What the stub says to tools, schemas, images and thinking, in the forms of Ollama, OpenAI and Anthropic.

It behaves as Ollama 0.24 was seen to: a model that can think does so unless told otherwise, a request without a
question loads or unloads, and `/api/generate` answers with `context`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.stub_ollama.behaviour import Behaviour

EVENT_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
THOUGHT = "Let me think."


@dataclass(frozen=True, slots=True)
class Said:
    """One answer, before it has a form."""

    words: list[str]
    thoughts: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)


def said(request: dict[str, Any], words: list[str], behaviour: Behaviour) -> Said:
    """Returns what the model says: a call of the first tool after a user's turn, JSON for a schema, else `words`."""
    tools, turns = request.get("tools") or [], request.get("messages") or []
    thoughts = THOUGHT if _thinks(request, behaviour) else ""
    if tools and turns and turns[-1]["role"] == "user":
        tool = tools[0].get("function", tools[0])
        return Said([], thoughts, [{"name": tool["name"], "arguments": {"city": "Paris"}}])
    wanted = request.get("format") or request.get("response_format")
    if behaviour.answer is None and wanted and wanted != {"type": "text"}:
        return Said(['{"answer":', ' "echo"}'], thoughts)
    return Said(words, thoughts)


def _thinks(request: dict[str, Any], behaviour: Behaviour) -> bool:
    wanted = request.get("think")
    return behaviour.thinks and wanted is not False and request.get("reasoning_effort") != "none"


def refusal(request: dict[str, Any], behaviour: Behaviour) -> str:
    """Returns Ollama's message for a request that the model cannot serve; empty if it can."""
    contents = [turn.get("content") for turn in request.get("messages") or () if isinstance(turn, dict)]
    if any(isinstance(parts, list) and not all(isinstance(part, dict) for part in parts) for parts in contents):
        return "invalid message format"
    if wrong := _wrong_number(request):
        return wrong
    think = request.get("think")
    if think and not behaviour.thinks:
        return f'"{request.get("model")}" does not support thinking'
    if request.get("truncate") is False and len(str(request.get("messages"))) > 4 * 4096:
        return "the input length exceeds the context length"
    return ""


_INTEGERS = ("num_ctx", "num_predict", "seed", "top_k")


def _wrong_number(request: dict[str, Any]) -> str:
    """Returns Ollama's message for a number without a fraction that has one, or is none."""
    options = request.get("options") if isinstance(request.get("options"), dict) else {}
    assert isinstance(options, dict)
    for name in _INTEGERS:
        if name in options and not _is_integer(options[name]):
            return f'option "{name}" must be of type integer'
    for name in ("max_tokens", "seed"):
        if request.get(name) is not None and not _is_integer(request[name]):
            return f"json: cannot unmarshal {request[name]!r} into Go struct field .{name} of type int"
    return ""


def _is_integer(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**63
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def error(path: str, message: str) -> dict[str, Any]:
    """Returns an error in the form of the API that the path belongs to."""
    if path == "/v1/messages":
        return {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    if path.startswith("/v1/"):
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return {"error": message}


def loading(path: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the answer to a request without a question: it loads the model, or with `keep_alive: 0` unloads it."""
    if path not in {"/api/chat", "/api/generate"} or request.get("messages") or request.get("prompt"):
        return None
    part = {"message": {"role": "assistant", "content": ""}} if path == "/api/chat" else {"response": ""}
    reason = "unload" if request.get("keep_alive") in (0, "0", "0s", "0m") else "load"
    made = {"model": request.get("model"), "created_at": "2026-01-01T00:00:00Z"}
    return {**made, **part, "done": True, "done_reason": reason}


def ollama_parts(path: str, answer: Said, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the changing fields of each line of `/api/chat` and `/api/generate`, thoughts first."""
    chat = path == "/api/chat"
    if answer.thoughts:
        yield (
            {"message": _turn("", thinking=answer.thoughts)} if chat else {"response": "", "thinking": answer.thoughts}
        )
    if answer.calls:
        yield {"message": _turn("", tool_calls=[{"function": call} for call in answer.calls])}
    logprobs = bool(request.get("logprobs"))
    for word in answer.words:
        part: dict[str, Any] = {"message": _turn(word)} if chat else {"response": word}
        yield {**part, **({"logprobs": [{"token": word, "logprob": -0.5}]} if logprobs else {})}


def _turn(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def ollama_whole(path: str, answer: Said, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the changing fields of an answer that is not streamed."""
    text = "".join(answer.words)
    thoughts = {"thinking": answer.thoughts} if answer.thoughts else {}
    logprobs = {"logprobs": [{"token": word, "logprob": -0.5} for word in answer.words]}
    more = logprobs if request.get("logprobs") else {}
    if path == "/api/generate":
        return {"response": text, **thoughts, **more}
    calls = {"tool_calls": [{"function": call} for call in answer.calls]} if answer.calls else {}
    return {"message": _turn(text, **thoughts, **calls), **more}


def document(path: str, answer: Said, request: dict[str, Any]) -> dict[str, Any]:
    """Returns an answer of OpenAI's or Anthropic's API that is not streamed."""
    text, model = "".join(answer.words), request.get("model")
    usage = {"prompt_tokens": 3, "completion_tokens": len(answer.words), "total_tokens": 3 + len(answer.words)}
    match path:
        case "/v1/messages":
            blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
            blocks += [_tool_use(number, call) for number, call in enumerate(answer.calls)]
            reason = "tool_use" if answer.calls else "end_turn"
            return {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": model,
                "content": blocks,
                "stop_reason": reason,
                "stop_sequence": None,
                "usage": _anthropic_usage(answer),
            }
        case "/v1/responses":
            return _response(answer, request, "completed")
        case "/v1/completions":
            choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "stop"}
            return {**_openai(model, "text_completion"), "choices": [choice], "usage": usage}
        case _:
            message = {**_turn(text), **_openai_calls(answer), **_reasoning(answer)}
            choice = {"index": 0, "message": message, "finish_reason": _finish(answer)}
            return {**_openai(model, "chat.completion"), "choices": [choice], "usage": usage}


def events(path: str, answer: Said, request: dict[str, Any]) -> Iterator[bytes]:
    """Yields the events of a stream of OpenAI's or Anthropic's API."""
    if path == "/v1/messages":
        yield from map(_named, _anthropic_events(answer, request))
    elif path == "/v1/responses":
        yield from map(_named, _response_events(answer, request))
    else:
        for chunk in _chunks(path, answer, request):
            yield f"data: {json.dumps(chunk)}\n\n".encode()
        yield b"data: [DONE]\n\n"


def _chunks(path: str, answer: Said, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    model = request.get("model")
    if path == "/v1/completions":
        for word in answer.words:
            yield {**_openai(model, "text_completion"), "choices": [{"index": 0, "text": word, "finish_reason": None}]}
        yield {**_openai(model, "text_completion"), "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
        return
    head = _openai(model, "chat.completion.chunk")
    deltas: list[dict[str, Any]] = [{"reasoning": answer.thoughts, "content": ""}] if answer.thoughts else []
    deltas += [{"content": "", **_openai_calls(answer)}] if answer.calls else []
    deltas += [{"content": word} for word in answer.words]
    for delta in deltas:
        yield {**head, "choices": [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None}]}
    last = {"role": "assistant", "content": ""}
    yield {**head, "choices": [{"index": 0, "delta": last, "finish_reason": _finish(answer)}]}
    if (request.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 3, "completion_tokens": len(answer.words), "total_tokens": 3 + len(answer.words)}
        yield {**head, "choices": [], "usage": usage}


def _anthropic_events(answer: Said, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    empty = {**document("/v1/messages", Said([]), request), "content": [], "stop_reason": None}
    yield {"type": "message_start", "message": empty}
    index = 0
    if answer.words:
        yield {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}
        for word in answer.words:
            yield {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": word}}
        yield {"type": "content_block_stop", "index": index}
        index += 1
    for number, call in enumerate(answer.calls):
        block = {**_tool_use(number, call), "input": {}}
        said_input = {"type": "input_json_delta", "partial_json": json.dumps(call["arguments"])}
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "content_block_delta", "index": index, "delta": said_input}
        yield {"type": "content_block_stop", "index": index}
        index += 1
    reason = "tool_use" if answer.calls else "end_turn"
    delta = {"stop_reason": reason, "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": _anthropic_usage(answer)}
    yield {"type": "message_stop"}


def _response_events(answer: Said, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = _response(Said([]), request, "in_progress")
    yield {"type": "response.created", "sequence_number": 0, "response": begun}
    whole = _response(answer, request, "completed")
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    steps: list[dict[str, Any]] = []
    if answer.words:
        (message,) = (item for item in whole["output"] if item["type"] == "message")
        empty = {"type": "output_text", "text": "", "annotations": []}
        steps.append({"type": "response.output_item.added", "output_index": 0, "item": {**message, "content": []}})
        steps.append({"type": "response.content_part.added", **place, "part": empty})
        steps += [
            {"type": "response.output_text.delta", **place, "delta": word, "logprobs": []} for word in answer.words
        ]
        steps.append({"type": "response.output_item.done", "output_index": 0, "item": message})
    steps.append({"type": "response.completed", "response": whole})
    for number, step in enumerate(steps, start=1):
        yield {**step, "sequence_number": number}


def _response(answer: Said, request: dict[str, Any], status: str) -> dict[str, Any]:
    text = "".join(answer.words)
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": content}
    calls = [
        {
            "id": f"fc_{number}",
            "call_id": f"call_{number}",
            "type": "function_call",
            "name": call["name"],
            "arguments": json.dumps(call["arguments"]),
            "status": "completed",
        }
        for number, call in enumerate(answer.calls)
    ]
    words = len(answer.words)
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": request.get("model"),
        "status": status,
        "output": [*([message] if text else []), *calls],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 3,
            "output_tokens": words,
            "total_tokens": 3 + words,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


def _named(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _openai(model: Any, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": model, "system_fingerprint": "fp_ollama"}


def _openai_calls(answer: Said) -> dict[str, Any]:
    calls = [
        {
            "id": f"call_{number}",
            "index": number,
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
        }
        for number, call in enumerate(answer.calls)
    ]
    return {"tool_calls": calls} if calls else {}


def _reasoning(answer: Said) -> dict[str, Any]:
    return {"reasoning": answer.thoughts} if answer.thoughts else {}


def _finish(answer: Said) -> str:
    return "tool_calls" if answer.calls else "stop"


def _tool_use(number: int, call: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": call["name"], "input": call["arguments"]}


def _anthropic_usage(answer: Said) -> dict[str, int]:
    return {"input_tokens": 3, "output_tokens": len(answer.words)}
