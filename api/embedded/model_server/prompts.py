"""From a body to what llama.cpp is asked: a chat under the model's own template, or a finished prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from api.embedded.model_server.bodies import ChatBody, GenerateBody
from api.embedded.model_server.faults import OllamaFault
from api.embedded.model_server.options import sampling

PLACEHOLDER: Final = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Task:
    """One generation. `fields` is the body of llama.cpp's chat completion, or of its completion."""

    is_chat: bool
    fields: dict[str, Any]


def chat_task(body: ChatBody) -> Task | None:
    """None when there is nothing to answer: the caller only wants the model loaded. Raises `OllamaFault`."""
    if body.tools:
        raise OllamaFault(400, f'"{body.model}" does not support tools')
    if any(message.images for message in body.messages):
        raise OllamaFault(400, f'"{body.model}" does not support images')
    if not body.messages:
        return None
    turns = [{"role": message.role, "content": message.content} for message in body.messages]
    return Task(True, {"messages": turns, **sampling(body.options), **_answer_format(body.format)})


def generate_task(body: GenerateBody) -> Task | None:
    """None when there is no prompt: the caller only wants the model loaded. Raises `OllamaFault`."""
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
    """Of Ollama's template language the two placeholders that templates of one turn are made of."""
    values = {".Prompt": prompt, ".System": system, ".Response": ""}

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise OllamaFault(400, f"template: only {{{{ .System }}}} and {{{{ .Prompt }}}} are known, not {match[0]}")
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
