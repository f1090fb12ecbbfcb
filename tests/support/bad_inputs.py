"""Generates bad requests at random from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes

LONG = 5000
DEPTH = 600


def _nested(depth: int, kind: str) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 2.0, 1e308, -1e308, 2**31, 2**63, 2**64, -(2**70), 10**400),
    *(float("nan"), float("inf"), "", " ", "\x00", "\n\r\t", "null", "0", "-1", "1e999", "true", "../../etc/passwd"),
    *("ä" * 300, "\u200b\ufeff", "\u202eevil\u202c", "e\u0301" + "\u0315\u0300" * 400, "\ufdfa" * 300, "👩‍👩‍👧‍👦🇩🇪"),
    *("\ud800", "a\udfffb", "{{question}}", "<|im_start|>system", "' OR 1=1 --", "@tag:{*}", "$(id)", "x" * LONG),
    *([], {}, [None], [[]], {"": ""}, ["x"] * 200, {str(number): number for number in range(100)}),
    *(_nested(20, "list"), _nested(20, "dict"), [True, 1, "1", None, {}], {"$ref": "#"}, {"__proto__": {"a": 1}}),
)
TEXTS: tuple[bytes, ...] = (
    *(
        b"",
        b" ",
        b"0",
        b"-1",
        b"0.5",
        b"1e999",
        b"nan",
        b"null",
        b"true",
        b"[]",
        b"..",
        b"../..",
        b"a" * 2000,
        b"*",
        b"%",
    ),
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\n",
        b"\r\n",
        "ü".encode(),
        "👩‍👩‍👧‍👦".encode(),
        b"{document}",
        b"a/b",
        b"a?b#c",
        b"0001-01-01",
    ),
    *(
        b"2026-13-45T99:99:99Z",
        b"9999-12-31T23:59:59-23:59",
        b"1795647910363-zz",
        b"99999999999999999999-0",
        b"'\"<>\\",
    ),
)
TYPES: tuple[bytes | None, ...] = (
    *(b"application/json", b"application/json", b"application/json", None, b"", b"text/plain", b"application/jsonl"),
    *(b"application/json; charset=utf-16", b"multipart/form-data", b"multipart/form-data; boundary=x", b"image/png"),
    *(
        b"application/x-www-form-urlencoded",
        b"\xff/\xff",
        b"application/x-ndjson",
        b"a" * 500,
        b"application/problem+json",
    ),
)
HEADERS: dict[bytes, tuple[bytes, ...]] = {
    b"cache-control": (
        b"no-cache",
        b"max-age=-1",
        b"max-age=99999999999999999999",
        b"only-if-cached, no-store",
        b"=,=;\xff",
    ),
    b"x-request-timeout": (b"0", b"-1", b"nan", b"inf", b"1e-300", b"1e999", b"0.05", b"soon", b"\xff"),
    b"x-request-id": (b"", b"a" * 5000, b"\xff\xfe", b"ok-1", b"a b", b"<script>"),
    b"accept": (b"text/event-stream", b"text/event-stream;q=0", b"*/*;q=x", b"\xff", b"a" * 3000, b"application/xml"),
    b"authorization": (b"Bearer", b"Bearer \xff", b"Basic eDp5", b"bearer  x  y", b"B" * 3000, b""),
    b"content-encoding": (b"gzip", b"br", b"identity", b"\xff"),
    b"origin": (b"null", b"http://evil.example", b"\xff"),
    b"range": (b"bytes=0-1", b"bytes=-", b"x"),
    b"if-none-match": (b"*", b'"x"'),
    b"x-forwarded-for": (b"127.0.0.1", b"\xff", b"a, b, c", b"1.2.3.4:99999"),
    b"x-forwarded-proto": (b"gopher", b"\xff"),
    b"traceparent": (b"00-0-0-0", b"\xff"),
    b"host": (b"evil.example", b"[::1", b"a b", b"", b"127.0.0.1:99999"),
}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD")
FILES = ("a.pdf", "a.docx", "a.html", "a.md", "a.txt", "a", "..%2f.txt", "a\u202e.pdf")


@dataclass(frozen=True)
class BadInput:
    """One request."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class BadInputs:
    """Requests to every endpoint of `description`, an OpenAPI document, and to some unknown paths."""

    def __init__(self, description: dict[str, Any], seed: int) -> None:
        self._random = random.Random(seed)
        self._operations = [
            (path, method.upper(), operation, _example(description, operation))
            for path, methods in description["paths"].items()
            for method, operation in methods.items()
        ]
        others = (
            "/",
            "/docs",
            "/docs/start.js",
            "/docs/{asset}",
            "/openapi.json",
            "/nowhere",
            "//evil/",
            "/api/pull",
            "/v1/",
        )
        self._operations += [(path, "GET", {}, {}) for path in others]

    def take(self, number: int) -> Iterator[BadInput]:
        for _ in range(number):
            yield self._one()

    def _one(self) -> BadInput:
        choice = self._random
        path, method, operation, example = choice.choice(self._operations)
        if choice.random() < 0.1:
            method = choice.choice(METHODS)
        headers = self._headers()
        body = b""
        if method not in {"GET", "HEAD"} or choice.random() < 0.05:
            kind = choice.choice(TYPES)
            body = self._form() if kind == b"multipart/form-data; boundary=x" else self._body(example)
            headers += [] if kind is None else [(b"content-type", kind)]
        return BadInput(method, self._target(path, operation), headers, body)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        names = [name for name in HEADERS if self._random.random() < 0.06]
        return [(name, self._random.choice(HEADERS[name])) for name in names]

    def _target(self, path: str, operation: dict[str, Any]) -> bytes:
        choice = self._random
        while "{" in path:
            before, _, rest = path.partition("{")
            path = before + quote_from_bytes(choice.choice(TEXTS), safe="") + rest.partition("}")[2]
        if choice.random() < 0.05:
            path += choice.choice(("/", "//", "/..", "%00", "%ff", ";a=b", "/%2e%2e/"))
        known = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
        names = [*choice.sample(known, choice.randint(0, len(known))), *(["x"] if choice.random() < 0.1 else [])]
        names += names[:1] if choice.random() < 0.05 else []
        query = "&".join(f"{name}={quote_from_bytes(choice.choice(TEXTS))}" for name in names)
        if choice.random() < 0.03:
            query += choice.choice(("&&&", "=", "%", "%zz=%zz", "a" * LONG, "&a" * 70))
        return f"{path}?{query}".encode() if query else path.encode()

    def _body(self, example: Any) -> bytes:
        choice = self._random
        value = json.loads(json.dumps(example))
        for _ in range(choice.randint(0, 3)):
            value = self._changed(value)
        body = json.dumps(value, ensure_ascii=choice.random() < 0.7).encode("utf-8", "surrogatepass")
        damage = choice.random()
        if damage < 0.05:
            body = body[: choice.randrange(len(body) + 1)]
        elif damage < 0.1:
            body = choice.randbytes(choice.randint(0, 200))
        elif damage < 0.13:
            position = choice.randrange(len(body) + 1)
            body = body[:position] + choice.randbytes(3) + body[position:]
        elif damage < 0.16:
            body = choice.choice((b"\xef\xbb\xbf", b"\x00", b"[" * DEPTH, b'{"a":' * DEPTH, b"\xff\xfe")) + body
        elif damage < 0.18:
            body = body + b"\n" + body
        return body

    def _changed(self, value: Any) -> Any:
        """Returns `value` with one place, at any depth, replaced, removed, duplicated or extended."""
        choice = self._random
        if isinstance(value, dict) and value and choice.random() < 0.85:
            name = choice.choice(list(value))
            what = choice.random()
            if what < 0.6:
                return {**value, name: self._changed(value[name])}
            if what < 0.75:
                return {key: held for key, held in value.items() if key != name}
            return {
                **value,
                choice.choice(("x", "", "model", "options", "stream", "é", name.upper())): choice.choice(VALUES),
            }
        if isinstance(value, list) and value and choice.random() < 0.7:
            place = choice.randrange(len(value))
            return [*value[:place], self._changed(value[place]), *value[place + choice.randint(0, 1) :]]
        return choice.choice(VALUES)

    def _form(self) -> bytes:
        choice = self._random
        parts = []
        for name in choice.sample(("file", "title", "tags", "tags", "tenant", "source", "x"), choice.randint(0, 4)):
            file = f'; filename="{choice.choice(FILES)}"'.encode() if name == "file" and choice.random() < 0.3 else b""
            content = choice.choice((b"%PDF-1.4 ", b"PK\x03\x04", b"<html>", b"# a\n", b"")) + choice.randbytes(40)
            parts.append(
                b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), file, content)
            )
        return b"".join(parts) + choice.choice((b"--x--\r\n", b"--x", b""))


def _example(description: dict[str, Any], operation: dict[str, Any]) -> Any:
    """Returns a valid body."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = body.get("schema", {})
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return body.get("example") or schema.get("example") or {}
