"""Answers a request that equals an earlier one from the exact tier, without FastAPI's machinery.

Most hits repeat a request byte for byte. Who asks, whether the body is valid, and what it asks for follow from these
bytes and the settings. The endpoint found this out the first time and leaves it in the request's state (`Repeatable`).
An equal request later needs only the look-up and the response, which the endpoint's own function makes. Everything else
takes the full path: the first request, an answer that is no longer in the exact tier, a header that changes how the
cache is used, a stream, a slow or long body.

`middleware.FastPath` is the middleware. It stands inside `RequestContext` and `HttpMetrics`, which treat both paths
alike. It reads a body only if a request with an equal head, and so with an equal key, was admitted before.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from starlette.responses import Response
from starlette.types import Message, Receive, Scope

from api.ports.question import AnswerFinished, Query
from api.values import CacheStatus

PATHS: Final = frozenset({"/query", "/api/chat", "/api/generate", "/v1/chat/completions"})
DECIDING: Final = frozenset({b"host", b"authorization", b"x-api-key", b"content-type", b"accept"})
"""Headers that decide who may ask and how the body and the answer are written. If one comes twice, the request takes
the full path: the memory of a head would have no bound.
"""
NEVER: Final = frozenset(
    {
        b"cache-control",
        b"content-encoding",
        b"expect",
        b"x-ragherd-client",
        b"x-ragherd-priority",
        b"x-request-timeout",
    }
)
"""Headers with which a request takes the full path."""
LONGEST: Final = 16 * 1024
"""Bytes of a request that is remembered."""
PER_REQUEST: Final = 2048
"""Estimated bytes of memory that a request takes besides what its length costs."""
PER_BYTE: Final = 12
"""The same for each byte of its body: short turns cost five, and text with an emoji four, in each of three copies."""
PIECES: Final = 4
"""Messages in which a body may arrive."""
PATIENCE: Final = 0.05
"""Seconds in which a body must arrive. The full path has its own deadline for a slower one."""
Head = tuple[str | tuple[bytes, bytes], ...]
"""The path, the version of HTTP, and the deciding headers."""


class Repeatable(NamedTuple):
    """A request that was answered: its body and query, and how an answer with a request id becomes a response."""

    body: bytes
    query: Query
    respond: Callable[[AnswerFinished, str], Response]


class Repeatables:
    """The requests that may be answered again. Forgets the least recently used, and each after `seconds`.

    `max_bytes`: the memory that they may take, as `estimated`.
    """

    def __init__(self, max_bytes: int = 16 * 1024 * 1024, max_entries: int = 4096, seconds: float = 60.0) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._seconds = seconds
        self._known: OrderedDict[tuple[Head, bytes], tuple[Repeatable, float]] = OrderedDict()
        self._heads: Counter[Head] = Counter()
        self._bytes = 0

    async def find(self, head: Head, receive: Receive) -> tuple[Repeatable | None, list[Message]]:
        """The known request with this head and body, and the messages that were received to see the body.

        Receives nothing if no request with this head is known: its key may not be valid.
        """
        if head not in self._heads:
            return None, []
        body, messages = await _arrived(receive)
        return (None if body is None else self._found(head, body)), messages

    def _found(self, head: Head, body: bytes) -> Repeatable | None:
        found = self._known.get((head, body))
        if found is None:
            return None
        if found[1] < time.monotonic():
            self.forget(head, body)
            return None
        self._known.move_to_end((head, body))
        return found[0]

    def add(self, head: Head, repeatable: Repeatable, answered: AnswerFinished) -> None:
        """Remembers a request, if it is short and an equal one will probably find its answer in the exact tier."""
        match, body = answered.match, repeatable.body
        was_exact = match is not None and match.kind == "exact" and answered.status is CacheStatus.HIT
        if _length(head, body) > LONGEST:  # not even compared: hashing a long body takes time
            return
        self.forget(head, body)
        if not (was_exact or answered.stored):
            return
        self._known[head, body] = repeatable, time.monotonic() + self._seconds
        self._heads[head] += 1
        self._bytes += estimated(head, body)
        while self._bytes > self._max_bytes or len(self._known) > self._max_entries:
            self.forget(*next(iter(self._known)))

    def forget(self, head: Head, body: bytes) -> None:
        """Forgets a request, if it is known."""
        if self._known.pop((head, body), None) is None:
            return
        self._bytes -= estimated(head, body)
        self._heads[head] -= 1
        if not self._heads[head]:
            del self._heads[head]


def estimated(head: Head, body: bytes) -> int:
    """The bytes of memory that a known request takes at most: its head, its body, and the query made of it."""
    return PER_REQUEST + _length(head, b"") + PER_BYTE * len(body)


def _length(head: Head, body: bytes) -> int:
    return len(body) + sum(len(part) if isinstance(part, str) else len(part[1]) for part in head)


def head_of(scope: Scope) -> Head | None:
    """What of a request's head decides about its answer, or None if it takes the full path in any case."""
    if scope["type"] != "http" or scope["path"] not in PATHS or scope["method"] != "POST" or scope["query_string"]:
        return None
    deciding: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in DECIDING:
            if name in deciding:
                return None
            deciding[name] = value
        elif name in NEVER:
            return None
    return scope["path"], scope["http_version"], *deciding.items()


async def _arrived(receive: Receive) -> tuple[bytes | None, list[Message]]:
    """The body, if it is short and has arrived, and the messages received."""
    messages: list[Message] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not messages or (messages[-1].get("more_body") and len(messages) < PIECES):
                messages.append(await receive())
    if not messages or messages[-1]["type"] != "http.request" or messages[-1].get("more_body"):
        return None, messages
    parts = [message.get("body", b"") for message in messages]
    return (b"".join(parts) if sum(map(len, parts)) <= LONGEST else None), messages
