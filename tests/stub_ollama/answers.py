"""The stub's answers. They are deterministic: the same request gets the same answer."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
import time
from typing import Any

from tests.stub_ollama.behaviour import Behaviour

MODELS = ("llama3.2:latest", "nomic-embed-text:latest")
DISK_SIZE = 1_000_000
_UNKNOWN = re.compile(r"[^\x00-\x7f]+|\w{101,}")


def words(text: str) -> list[str]:
    """Splits a text into tokens: words with their leading white space."""
    return re.findall(r"\s*\S+", text) or [""]


def chat_tokens(request: dict[str, Any], behaviour: Behaviour) -> list[str]:
    """Returns the tokens of the configured answer, or of "echo: " and the last user message or prompt."""
    if behaviour.answer is not None:
        return words(behaviour.answer)
    turns = [content(turn) for turn in request.get("messages", []) if turn["role"] == "user"]
    number = f" no.{next(_answers)}" if behaviour.numbered else ""
    return words(f"echo: {turns[-1] if turns else request.get('prompt') or request.get('input') or ''}{number}")


def content(turn: dict[str, Any]) -> str:
    """Returns the text of a turn. Parts are joined as Ollama joins them."""
    given = turn.get("content") or ""
    if isinstance(given, str):
        return given
    return "\n\n".join(part.get("text", "") for part in given if part.get("text"))


def token_line(path: str, model: str, text: str) -> dict[str, Any]:
    """Returns one line of a stream."""
    piece = {"message": {"role": "assistant", "content": text}} if path == "/api/chat" else {"response": text}
    return {"model": model, "created_at": "2026-01-01T00:00:00Z", **piece, "done": False}


def prompt_words(request: dict[str, Any]) -> int:
    """Returns the words of a prompt, which stand for its tokens."""
    turns = [content(turn) for turn in request.get("messages") or ()] or [str(request.get("prompt", ""))]
    return sum(len(turn.split()) for turn in turns)


def last_line(path: str, model: str, request: dict[str, Any], tokens: int, behaviour: Behaviour) -> dict[str, Any]:
    """Returns the final line with counts and durations in nanoseconds. Omits zeros, as Ollama does."""
    prompt = prompt_words(request)
    reading = prompt * behaviour.read_pace or 0.05
    figures = {
        "total_duration": int((0.2 + behaviour.load_duration) * 1e9),
        "load_duration": int(behaviour.load_duration * 1e9),
        "prompt_eval_count": prompt,
        "prompt_eval_duration": int(reading * 1e9),
        "eval_count": tokens,
        "eval_duration": 150_000_000,
    }
    line = {**token_line(path, model, ""), "done": True, "done_reason": behaviour.done_reason}
    if path == "/api/generate" and not request.get("raw"):
        line["context"] = [*(request.get("context") or []), 1, 2, 3]
    return {**line, **{name: value for name, value in figures.items() if value}}


def embed_answer(request: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    """Returns the answer of /api/embed."""
    vectors = [vector(_read(text, behaviour), behaviour.dimension, behaviour.scale) for text in texts(request)]
    answer = {"model": request["model"], "embeddings": vectors, "total_duration": 1_000_000}
    words = sum(len(text.split()) for text in texts(request))
    return {**answer, "prompt_eval_count": words} if words else answer


def texts(request: dict[str, Any]) -> list[str]:
    """Returns the texts of an /api/embed request. Like Ollama, the stub takes a single empty text for none."""
    given = request.get("input", [])
    return given if isinstance(given, list) else [given] if given else []


def _read(text: str, behaviour: Behaviour) -> str:
    return text if behaviour.vocabulary == "all" else _UNKNOWN.sub(" unk ", text)


def vector(text: str, dimension: int, scale: float = 1.0) -> list[float]:
    """Returns a vector of length `scale`. Texts with common words are close, regardless of word order and case."""
    parts = [_word_vector(word, dimension) for word in re.findall(r"\w+", text.casefold()) or [""]]
    summed = [math.fsum(column) for column in zip(*parts, strict=True)]
    length = math.sqrt(math.fsum(value * value for value in summed))
    return [scale * value / length for value in summed]


def _word_vector(word: str, dimension: int) -> list[float]:
    source = random.Random(hashlib.sha256(word.encode()).digest())
    return [source.gauss(0, 1) for _ in range(dimension)]


def tags_answer(behaviour: Behaviour) -> dict[str, Any]:
    """Returns the answer of /api/tags: `MODELS`, or the configured models."""
    names = MODELS if behaviour.models is None else behaviour.models
    rows = [{"name": name, "model": name, "size": DISK_SIZE, "digest": behaviour.digest} for name in names]
    return {"models": rows}


def openai_models(behaviour: Behaviour) -> dict[str, Any]:
    """Returns the answer of /v1/models."""
    names = [row["name"] for row in tags_answer(behaviour)["models"]]
    rows = [{"id": name, "object": "model", "created": 0, "owned_by": "library"} for name in names]
    return {"object": "list", "data": rows}


def openai_embeddings(request: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    """Returns the answer of /v1/embeddings."""
    answer = embed_answer(request, behaviour)
    rows = [
        {"object": "embedding", "index": number, "embedding": one} for number, one in enumerate(answer["embeddings"])
    ]
    read = answer.get("prompt_eval_count", 0)
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "data": rows, "model": request["model"], "usage": usage}


def show_answer(request: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    """Returns the answer of /api/show."""
    capabilities = ["completion", "tools", *(["thinking"] if behaviour.thinks else [])]
    info = {"general.architecture": "llama", "general.basename": request["model"]}
    return {"details": {"family": "llama"}, "model_info": info, "capabilities": capabilities}


def has_model(request: dict[str, Any], behaviour: Behaviour) -> bool:
    """Returns whether the stub has the model of a request."""
    name = str(request.get("model", ""))
    return behaviour.models is None or (name if ":" in name else f"{name}:latest") in behaviour.models


_moments = itertools.count()
_answers = itertools.count()


def ps_answer(behaviour: Behaviour) -> dict[str, Any]:
    """Returns the answer of /api/ps. The expiry of a loading model advances with each call."""
    if behaviour.resident == "no":
        return {"models": []}
    expires = "2026-01-01T00:05:00Z"
    if behaviour.resident == "loading":
        expires = f"{time.strftime('%Y-%m-%dT%H:%M:%S')}.{next(_moments):09d}Z"
    rows = tags_answer(behaviour)["models"]
    return {"models": [{**row, "expires_at": expires, "size_vram": 0} for row in rows]}


def encoded(answer: dict[str, Any]) -> bytes:
    """Encodes JSON for the wire."""
    return json.dumps(answer).encode()
