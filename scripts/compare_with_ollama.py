"""Sends the documented requests to an Ollama and to Ragherd in front of it, and prints each field that differs.

    .venv/bin/python -m scripts.compare_with_ollama http://127.0.0.1:11434 http://127.0.0.1:8001 --model llama3.2

Temperature 0 and a seed make the answers comparable. Ragherd is asked with `Cache-Control: no-cache`. Times, ids and
durations are not compared. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx
import orjson

TIMEOUT: Final = 300.0
NO_CONTEXT: Final = "no `context`; send `context: []` to get one"
VOLATILE: Final = frozenset(
    {"created_at", "created", "id", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
    | {"modified_at", "expires_at", "request_id", "item_id", "call_id", "context"}
)
"""Fields that differ between two calls of the same Ollama."""
IMAGE: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
ONE_FORM: Final = frozenset({"/api/show", "/api/embed", "/api/embeddings", "/v1/embeddings"})
"""Paths that never stream."""
SILENCE: Final = (
    b"RIFF\x24\x7d\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\x3e\x00\x00\x00\x7d\x00\x00\x02\x00\x10\x00data"
    b"\x00\x7d\x00\x00"
) + bytes(32_000)
"""A second of silence: 16,000 samples of 16 bits."""
TURN: Final = {"role": "user", "content": "Name three colours."}
PARAMETERS: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Final = {"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": PARAMETERS}}
SCHEMA: Final = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


@dataclass(frozen=True, slots=True)
class Case:
    """A request. `streams`: it is also sent with `stream: true`. `file`: the body is a form with this file.

    `cached`: which later requests find the answer in Ragherd's cache: one that means the same, only the same to the
    letter, or none. `differs`: how Ragherd's answer differs, and why.
    """

    name: str
    path: str
    body: Mapping[str, Any] = field(default_factory=dict)
    method: str = "POST"
    streams: bool = False
    file: bytes | None = None
    cached: Literal["meaning", "letter", ""] = ""
    differs: str = ""


def cases(model: str, embedder: str) -> Iterator[Case]:
    """Yields the requests, for the model and the embedding model."""
    steady = {"temperature": 0, "seed": 7, "num_predict": 16}
    chat = {"model": model, "messages": [TURN], "options": steady}
    prompt = {"model": model, "prompt": "Name three colours.", "options": steady}
    openai = {"model": model, "messages": [TURN], "temperature": 0, "seed": 7, "max_tokens": 16}
    yield Case("the root", "/", method="GET")
    yield Case("the version", "/api/version", method="GET")
    yield Case("models", "/api/tags", method="GET")
    yield Case("a model", "/api/show", {"model": model})
    yield Case("an unknown model", "/api/chat", {**chat, "model": "no-such-model", "stream": False})
    yield Case("chat", "/api/chat", chat, streams=True, cached="meaning")
    yield Case(
        "a system message",
        "/api/chat",
        {**chat, "messages": [{"role": "system", "content": "Rhyme."}, TURN]},
        cached="meaning",
    )
    yield Case("tools", "/api/chat", {**chat, "tools": [TOOL]}, streams=True, cached="letter")
    yield Case("a schema", "/api/chat", {**chat, "format": SCHEMA}, streams=True, cached="letter")
    yield Case("an image", "/api/chat", {**chat, "messages": [{**TURN, "images": [IMAGE]}]}, cached="letter")
    yield Case("thinking", "/api/chat", {**chat, "think": True}, streams=True, cached="letter")
    yield Case("no thinking", "/api/chat", {**chat, "think": False}, cached="meaning")
    yield Case("log probabilities", "/api/chat", {**chat, "logprobs": True}, cached="letter")
    yield Case("a context length", "/api/chat", {**chat, "options": {**steady, "num_ctx": 2048}}, cached="meaning")
    yield Case(
        "a long prompt, uncut",
        "/api/chat",
        {**chat, "messages": [{**TURN, "content": "word " * 9000}], "truncate": False},
    )
    yield Case("generate", "/api/generate", prompt, streams=True, cached="meaning", differs=NO_CONTEXT)
    yield Case("a context", "/api/generate", {**prompt, "context": []}, streams=True, cached="letter")
    yield Case("raw", "/api/generate", {**prompt, "raw": True}, streams=True, cached="letter")
    yield Case("a suffix", "/api/generate", {**prompt, "suffix": "."}, cached="letter")
    yield Case("load", "/api/generate", {"model": model})
    yield Case("embed", "/api/embed", {"model": embedder, "input": ["one", "two"]})
    yield Case("embed nothing", "/api/embed", {"model": embedder, "input": ""})
    yield Case(
        "embed with options",
        "/api/embed",
        {"model": embedder, "input": "one", "truncate": False, "options": {"seed": 1}},
    )
    yield Case("embed the older way", "/api/embeddings", {"model": embedder, "prompt": "one"})
    yield Case("openai models", "/v1/models", method="GET")
    yield Case("openai chat", "/v1/chat/completions", openai, streams=True, cached="meaning")
    yield Case("openai tools", "/v1/chat/completions", {**openai, "tools": [TOOL]}, streams=True, cached="letter")
    yield Case(
        "openai json", "/v1/chat/completions", {**openai, "response_format": {"type": "json_object"}}, cached="letter"
    )
    yield Case(
        "openai completions",
        "/v1/completions",
        {"model": model, "prompt": "One, two,", "temperature": 0, "seed": 7},
        cached="letter",
    )
    yield Case(
        "openai responses",
        "/v1/responses",
        {"model": model, "input": "Hi.", "temperature": 0},
        streams=True,
        cached="letter",
    )
    yield Case("openai embeddings", "/v1/embeddings", {"model": embedder, "input": "one"})
    yield Case("openai embeddings of nothing", "/v1/embeddings", {"model": embedder, "input": []})
    yield Case("openai transcription", "/v1/audio/transcriptions", {"model": model}, file=SILENCE)
    yield Case("an unknown model to unload", "/api/generate", {"model": "no-such-model", "keep_alive": 0})
    yield Case(
        "anthropic",
        "/v1/messages",
        {"model": model, "messages": [TURN], "max_tokens": 16},
        streams=True,
        cached="letter",
    )


def variants(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the names and bodies with which a case is sent: whole, and as a stream."""
    if case.method == "GET" or case.file is not None or case.path in ONE_FORM:
        yield case.name, dict(case.body)
        return
    yield case.name, {**case.body, "stream": False}
    if case.streams:
        yield f"{case.name}, streamed", {**case.body, "stream": True}


def send(client: httpx.Client, case: Case, body: Mapping[str, Any]) -> httpx.Response:
    """Sends one request, past the cache."""
    content = orjson.dumps(body) if case.method != "GET" else None
    headers = {"Cache-Control": "no-cache", "Content-Type": "application/json"}
    if case.file is not None:
        files = {"file": ("speech.wav", case.file, "audio/wav")}
        return client.post(case.path, data=dict(body), files=files, headers={"Cache-Control": "no-cache"})
    return client.request(case.method, case.path, content=content, headers=headers)


def differences(theirs: httpx.Response, ours: httpx.Response) -> list[str]:
    """Returns the fields in which two responses differ, as `place: theirs, ours`."""
    found = []
    if theirs.status_code != ours.status_code:
        found.append(f"status: {theirs.status_code}, {ours.status_code}")
    kinds = [response.headers.get("content-type", "").partition(";")[0] for response in (theirs, ours)]
    if kinds[0] != kinds[1]:
        found.append(f"content-type: {kinds[0]}, {kinds[1]}")
    return found + list(_compared("", _content(theirs), _content(ours)))


def _content(response: httpx.Response) -> Any:
    """Returns the document, or the list of a stream's documents with their texts put together."""
    kind = response.headers.get("content-type", "")
    if "event-stream" not in kind and "ndjson" not in kind:
        return _parsed(response.text)
    lines = (line.removeprefix("data: ") for line in response.text.splitlines() if not line.startswith("event:"))
    return _merged([_parsed(line) for line in lines if line.strip()])


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _merged(parts: list[Any]) -> dict[str, Any]:
    """Puts the texts of a stream together, because two servers may cut them differently. Keeps every other field."""
    merged: dict[str, Any] = {}
    for part in parts:
        for place, value in _leaves("", part):
            text = isinstance(value, str) and isinstance(merged.get(place), str) and _is_text(place)
            merged[place] = merged[place] + value if text else value
    return merged


def _is_text(place: str) -> bool:
    return place.rpartition(".")[2] in {"content", "thinking", "response", "text", "reasoning", "delta", "arguments"}


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{place}.{name}" if place else name, inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(f"{place}[{number}]", inner)
    else:
        yield place, value


def _compared(place: str, theirs: Any, ours: Any) -> Iterator[str]:
    one, two = dict(_leaves(place, theirs)), dict(_leaves(place, ours))
    for name in sorted(one.keys() | two.keys()):
        if name.rpartition(".")[2] in VOLATILE:
            continue
        if name not in two:
            yield f"{name}: {_shown(one[name])}, missing"
        elif name not in one:
            yield f"{name}: missing, {_shown(two[name])}"
        elif not _same(one[name], two[name]):
            yield f"{name}: {_shown(one[name])}, {_shown(two[name])}"


def _same(one: Any, two: Any) -> bool:
    """Compares numbers as Ollama sends vectors: in single precision."""
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-7)
    return bool(one == two)


def _shown(value: Any) -> str:
    return repr(value)[:60]


def compare(ollama_url: str, ragherd_url: str, model: str, embedder: str, key: str = "") -> dict[str, list[str]]:
    """Returns the differences of each request."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    found: dict[str, list[str]] = {}
    with (
        httpx.Client(base_url=ollama_url, timeout=TIMEOUT) as ollama,
        httpx.Client(base_url=ragherd_url, timeout=TIMEOUT, headers=headers) as ragherd,
    ):
        for case in cases(model, embedder):
            for name, body in variants(case):
                found[name] = differences(send(ollama, case, body), send(ragherd, case, body))
    return found


def main() -> int:
    """Prints one line for each request, and its differences below it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ollama_url")
    parser.add_argument("ragherd_url")
    parser.add_argument("--model", default="llama3.2")
    parser.add_argument("--embedder", default="nomic-embed-text")
    parser.add_argument("--key", default="", help="an API key of Ragherd")
    asked = parser.parse_args()
    found = compare(asked.ollama_url, asked.ragherd_url, asked.model, asked.embedder, asked.key)
    for name, fields in found.items():
        print(f"{'differs' if fields else 'same':8} {name}")
        for one in fields:
            print(f"         {one}")
    same = sum(not fields for fields in found.values())
    print(f"{same} of {len(found)} requests have the same answer")
    return int(same < len(found))


if __name__ == "__main__":
    sys.exit(main())
