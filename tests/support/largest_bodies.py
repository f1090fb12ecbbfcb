"""The largest bodies that each endpoint accepts, hostile ones of the same size, and the expected responses."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

MIB = 1024 * 1024
JSON = "application/json"
MARKS = "\u0315\u0300"
FORM = "multipart/form-data; boundary=b"


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and the expected status."""

    path: str
    content: bytes = field(repr=False)
    status: int
    kind: str = JSON


def _filled(before: bytes, piece: bytes, after: bytes, size: int = MIB) -> bytes:
    """Returns as many pieces as fit."""
    return before + piece * ((size - len(before) - len(after)) // len(piece)) + after


def _chat(content: object) -> bytes:
    return orjson.dumps({"model": "llama3.2", "messages": [{"role": "user", "content": content}], "stream": False})


def _turns(count: int, length: int) -> list[dict[str, str]]:
    words = ("What does clause number seven of it say? " * (length // 40 + 1))[:length]
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": f"{number} {words}"} for number in range(count)]


def _conversation(count: int, length: int, **more: object) -> bytes:
    return orjson.dumps({"model": "llama3.2", "messages": [*_turns(count, length)], "stream": False, **more})


def _unknown(**fields: object) -> bytes:
    """880 kB of unknown fields."""
    return orjson.dumps({**fields, **{f"unknown-field-{number:06}": number for number in range(32_000)}})


def form(file: bytes, *, name: str = "long.txt", head: bytes = b"") -> bytes:
    disposition = f'Content-Disposition: form-data; name="file"; filename="{name}"'.encode()
    return b"--b\r\n" + head + disposition + b"\r\nContent-Type: text/plain\r\n\r\n" + file + b"\r\n--b--\r\n"


PROMPT = ("How long is the notice period of clause 12, and who must agree to it? " * 20_000)[: MIB - 500]
HISTORY = [{"role": turn["role"], "content": turn["content"]} for turn in _turns(99, 10_000)]
QUESTION = ("Is 12 of the 30 days' notice that Anna Miller's contract names not enough? " * 200)[:8000]
ONES = _filled(b'{"model":"m","messages":[{"role":"user","content":[', b"1,", b"1]}]}")
LISTS = _filled(b'{"model":"m","question":"q","title":"t","input":[', b"[],", b"1]}")
NESTED = _filled(b'{"model":"m","title":[', b"[" * 1000 + b"]" * 1000 + b",", b"1]}")

SMALL = (
    Sent("/query", orjson.dumps({"question": "Who?", "history": HISTORY[:2]}), 200),
    Sent("/api/semantic-cache/explain", orjson.dumps({"question": "Who?"}), 200),
    Sent("/api/chat", _chat("Who?"), 200),
    Sent("/v1/chat/completions", _chat("Who?"), 200),
    Sent("/api/embed", b'{"model": "nomic-embed-text", "input": "Who?"}', 200),
    Sent("/v1/embeddings", b'{"model": "nomic-embed-text", "input": "Who?"}', 200),
    Sent("/api/semantic-cache/warm", b'{"questions": ["Who?"]}', 202),
    Sent("/documents", b'{"title": "t", "text": "t"}', 0),
    Sent("/documents", form(b"text"), 0, FORM),
)
"""One body of each kind."""

ANSWERED = {
    "question with history": Sent("/query", orjson.dumps({"question": QUESTION, "history": HISTORY}), 200),
    "explain": Sent("/api/semantic-cache/explain", orjson.dumps({"question": QUESTION, "history": HISTORY}), 200),
    "prompt": Sent("/api/generate", orjson.dumps({"model": "llama3.2", "prompt": PROMPT, "stream": False}), 200),
    "chat": Sent("/api/chat", _chat(PROMPT), 200),
    "chat of marks": Sent("/api/chat", _chat("a" + MARKS * 250_000), 200),
    "chat of ligatures": Sent("/api/chat", _chat("\ufdfa" * 340_000), 200),
    "many turns": Sent("/api/chat", _conversation(999, 950), 200),
    "many turns, OpenAI": Sent("/v1/chat/completions", _conversation(999, 950), 200),
    "many parts": Sent("/v1/chat/completions", _chat([{"type": "text", "text": "word " * 1900}] * 100), 200),
    "inputs": Sent("/api/embed", orjson.dumps({"model": "nomic-embed-text", "input": ["word " * 190] * 1024}), 200),
    "inputs, OpenAI": Sent(
        "/v1/embeddings", orjson.dumps({"model": "nomic-embed-text", "input": ["word " * 190] * 1024}), 200
    ),
    "inputs, base64": Sent(
        "/v1/embeddings",
        orjson.dumps({"model": "nomic-embed-text", "input": ["word"] * 1024, "encoding_format": "base64"}),
        200,
    ),
    "warm-up": Sent(
        "/api/semantic-cache/warm",
        orjson.dumps({"questions": [{"question": f"Who is {n}?", "answer": "Nobody. " * 5} for n in range(10_000)]}),
        202,
    ),
    "warm-up by line": Sent(
        "/api/semantic-cache/warm",
        b"\n".join(b'"How much is %d and twenty times that, in euros?"' % n for n in range(10_000)),
        202,
        "application/jsonl",
    ),
}
"""Bodies that are accepted."""

REFUSED = {
    "wrong parts": Sent("/v1/chat/completions", ONES, 400),
    "wrong content": Sent("/api/chat", ONES, 400),
    "wrong inputs": Sent("/api/embed", _filled(b'{"model":"m","input":[', b"1,", b"1]}"), 400),
    "wrong inputs, OpenAI": Sent("/v1/embeddings", _filled(b'{"model":"m","input":[', b"1,", b"1]}"), 400),
    "wrong history": Sent("/query", _filled(b'{"question":"Who?","history":[', b"1,", b"1]}"), 422),
    "wrong explain": Sent(
        "/api/semantic-cache/explain", _filled(b'{"question":"Who?","history":[', b"{},", b"1]}"), 422
    ),
    "wrong questions": Sent("/api/semantic-cache/warm", _filled(b'{"questions":[', b"1,", b"1]}"), 422),
    "short lines": Sent("/api/semantic-cache/warm", b"1\n" * (MIB // 2), 422, "application/jsonl"),
    "wrong tags": Sent("/documents", _filled(b'{"title":"t","text":"t","tags":[', b"1,", b"1]}"), 422),
    **{
        f"unknown fields {path}": Sent(path, _unknown(), status)
        for path, status in {
            "/query": 422,
            "/documents": 422,
            "/api/semantic-cache/explain": 422,
            "/api/semantic-cache/warm": 422,
            "/api/chat": 400,
            "/api/generate": 400,
            "/api/embed": 400,
            "/api/show": 400,
            "/v1/chat/completions": 400,
            "/v1/embeddings": 400,
        }.items()
    },
    "unknown options": Sent("/query", orjson.dumps({"question": "Who?", "options": orjson.loads(_unknown())}), 422),
    **{
        f"{name} {path}": Sent(path, content, 400 if path in {"/api/embed", "/v1/embeddings", "/api/chat"} else 422)
        for path in ("/query", "/documents", "/api/semantic-cache/warm", "/api/embed", "/v1/embeddings", "/api/chat")
        for name, content in (("lists", LISTS), ("nested", NESTED))
    },
    "headers of a part": Sent(
        "/documents", form(b"x", head=b"".join(b"X-%d: y\r\n" % n for n in range(80_000))), 422, FORM
    ),
    "header without an end": Sent("/documents", form(b"x", head=b"X-Long: " + b"y" * MIB + b"\r\n"), 422, FORM),
    "fields of a form": Sent(
        "/documents", b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 20_000 + b"--b--\r\n", 422, FORM
    ),
    "no words": Sent("/documents", orjson.dumps({"title": "Dots", "text": "!. " * 340_000}), 422),
    "largest file": Sent("/documents", form("\u00e9 ".encode() * 6_900_000), 413, FORM),
}
"""Bodies that are refused, even with a key."""

DOCUMENTS = {
    "text": Sent("/documents", orjson.dumps({"title": "Long", "text": PROMPT}), 0),
    "marks": Sent("/documents", orjson.dumps({"title": "Marks", "text": "a" + MARKS * 250_000}), 0),
    "no spaces": Sent("/documents", orjson.dumps({"title": "CJK", "text": "\u5b57" * 340_000}), 0),
    "brackets": Sent("/documents", orjson.dumps({"title": "Brackets", "text": "[1, {2: [3]}], " * 65_000}), 0),
    "file": Sent("/documents", form(PROMPT.encode() * 2), 0, FORM),
    "largest text": Sent("/documents", form((b"w" * 199 + b" ") * 24_000), 0, FORM),
    "almost boundaries": Sent("/documents", form(b"\r\n--a" * 400_000), 0, FORM),
}
"""Documents, whose status depends on their progress."""
