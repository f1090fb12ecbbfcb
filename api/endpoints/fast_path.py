"""Answers a request that equals an earlier one without parsing, validation and FastAPI's machinery.

Most hits repeat a request byte for byte. Who asks, whether the body is valid, and what it asks for follow from these
bytes and the settings. The endpoint found this out the first time and leaves it in the request's state (`Repeatable`).
An equal request later needs only the look-up and the response, which the endpoint's own function makes.

There are two ways in. `worker_config.client_connections` compares all bytes of a request, before they are parsed.
`FastPathMiddleware` is for the rest: other servers, and clients that send a head and its body separately. It compares
the body and the deciding parts of the head. It stands outside of all middleware but tracing, and counts and logs what
it answers as `HttpMetrics` does.

Everything else takes the full path: the first request, an answer that is no longer in the cache, a header that changes
how the cache is used, a stream, a slow or long body. If the cache no longer answers a request that was charged, its
charge goes along.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.endpoints.middleware import EndedRequest, RequestLog, RequestMetrics, given_id
from api.endpoints.streaming import cache_headers
from api.errors import StoreUnavailable
from api.ports.access import Caller
from api.ports.limits import CHARGED, Charge, LimitPlan
from api.ports.question import UNLIMITED, AnswerFinished, Query
from api.query.repeats import Repeat
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
PER_AGREED: Final = 8192
"""The same for an entry that answered by meaning, besides four for each character of its answer."""
FORMS: Final = 4
"""Ways to write the whole request that are remembered."""
PIECES: Final = 4
"""Messages in which a body may arrive."""
PATIENCE: Final = 0.05
"""Seconds in which a body must arrive. The full path has its own deadline for a slower one."""
PAUSE: Final = 1.0
"""Seconds for which the full path takes everything after the cache failed. Then one request tries the cache for all,
because a question that meets the fault waits for the cache twice: here and on the full path.
"""
IDS: Final = 64
"""Request ids that are made at once."""
WHOLE: Final = "ragherd.whole"
"""Key of the request's state: its bytes, if they arrived at once and nothing else did."""
Head = tuple[str | tuple[bytes, bytes], ...]
"""The path, the version of HTTP, and the deciding headers."""


# -- The memory --------------------------------------------------------------------------------------------------------


class Repeatable:
    """A request that was answered: its body and query, and how an answer with a request id becomes JSON."""

    __slots__ = ("body", "caller", "encoded", "forms", "place", "plan", "repeat", "until")

    def __init__(self, body: bytes, query: Query, encoded: Callable[[AnswerFinished, str], bytes]) -> None:
        self.body = body
        self.encoded = encoded
        self.repeat = Repeat(query)
        self.place: tuple[Head, bytes] = ((), body)
        self.forms: list[bytes] = []
        """All bytes of it, as clients wrote them."""
        self.until = 0.0
        self.caller: Caller | None = None
        """Whose key it has, if the key is in Redis."""
        self.plan: LimitPlan | None = None
        """What limits it, if an answer from the cache is charged. Then each repeat needs Redis."""

    @property
    def path(self) -> str:
        """The path, which is also its route's template."""
        return str(self.place[0][0])


class Repeatables:
    """The requests that may be answered again. Forgets the least recently used, and each after `seconds`.

    `max_bytes`: the memory that they may take, as `estimated`.
    """

    def __init__(self, max_bytes: int = 16 * 1024 * 1024, max_entries: int = 4096, seconds: float = 60.0) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._seconds = seconds
        self._known: OrderedDict[tuple[Head, bytes], Repeatable] = OrderedDict()
        self._whole: dict[bytes, Repeatable] = {}
        self._heads: Counter[Head] = Counter()
        self._bytes = 0

    async def find(self, head: Head, receive: Receive) -> tuple[Repeatable | None, list[Message]]:
        """The known request with this head and body, and the messages that were received to see the body.

        Receives nothing if no request with this head is known: its key may not be valid.
        """
        if head not in self._heads:
            return None, []
        body, messages = await _arrived(receive)
        return (None if body is None else self._fresh(self._known.get((head, body)))), messages

    def whole(self, request: bytes) -> Repeatable | None:
        """The known request that consists of these bytes."""
        return self._fresh(self._whole.get(request))

    def _fresh(self, found: Repeatable | None) -> Repeatable | None:
        if found is None:
            return None
        if found.until < time.monotonic() or (found.caller is not None and not found.caller.use()):
            self.forget(*found.place)
            return None
        self._known.move_to_end(found.place)
        return found

    def add(self, head: Head, repeatable: Repeatable, answered: AnswerFinished, whole: bytes = b"") -> None:
        """Remembers a request, if it is short and the cache will probably answer an equal one again.

        `whole`: all its bytes, if they arrived at once.
        """
        match, body = answered.match, repeatable.body
        is_kept = answered.agreed is not None or (match is not None and match.kind == "exact")
        if _length(head, body) > LONGEST:  # not even compared: hashing a long body takes time
            return
        before = self._known.get((head, body))
        self.forget(head, body)
        if not (answered.stored or (is_kept and answered.status is CacheStatus.HIT)):
            return
        repeatable.place, repeatable.until = (head, body), time.monotonic() + self._seconds
        repeatable.repeat.agreed = answered.agreed
        self._known[head, body] = repeatable
        self._heads[head] += 1
        self._bytes += _taken(repeatable)
        self.also(repeatable, whole)
        for form in before.forms if before is not None else ():
            self.also(repeatable, form)
        while self._bytes > self._max_bytes or len(self._known) > self._max_entries:
            self.forget(*next(iter(self._known)))

    def also(self, repeatable: Repeatable, whole: bytes) -> None:
        """Remembers another form of a known request, unless it was forgotten meanwhile or `begin` would refuse it."""
        if repeatable.plan is not None or self._known.get(repeatable.place) is not repeatable:
            return
        if whole and whole not in self._whole and len(repeatable.forms) < FORMS and len(whole) <= 2 * LONGEST:
            repeatable.forms.append(whole)
            self._whole[whole] = repeatable
            self._bytes += PER_REQUEST + len(whole)

    def forget(self, head: Head, body: bytes) -> None:
        """Forgets a request, if it is known."""
        if (gone := self._known.pop((head, body), None)) is None:
            return
        self._bytes -= _taken(gone) + sum(PER_REQUEST + len(form) for form in gone.forms)
        for form in gone.forms:
            del self._whole[form]
        self._heads[head] -= 1
        if not self._heads[head]:
            del self._heads[head]


def _taken(repeatable: Repeatable) -> int:
    agreed = repeatable.repeat.agreed
    similar = 0 if agreed is None else PER_AGREED + 4 * len(agreed.match.answer.answer)
    return estimated(*repeatable.place) + similar


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


# -- The answer --------------------------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """A response with status 200."""

    headers: list[tuple[bytes, bytes]]
    body: bytes


class Repetition:
    """A request that is answered again: its id, when it began, and its state, as the full path leaves it."""

    __slots__ = ("began", "found", "request_id", "state")

    def __init__(self, found: Repeatable, request_id: str, state: MutableMapping[str, Any]) -> None:
        self.began = time.perf_counter()
        self.found = found
        self.request_id = state["request_id"] = request_id
        self.state = state


class FastPath:
    """Answers the repeated requests of one worker, counts them, and logs them."""

    def __init__(self, worker: str, metrics: RequestMetrics, log: RequestLog | None) -> None:
        self.known = Repeatables()
        self._worker = (b"x-worker", worker.encode("latin-1"))
        self._metrics = metrics
        self._log = log
        self._ids: list[str] = []
        self._paused_until = 0.0

    def new_id(self) -> str:
        """A random request id."""
        if not self._ids:
            random = os.urandom(16 * IDS).hex()
            self._ids = [random[start : start + 32] for start in range(0, len(random), 32)]
        return self._ids.pop()

    def begin(self, whole: bytes, state: Mapping[str, Any]) -> Repetition | None:
        """The repetition of a known request, by all its bytes. `state` is that of the lifespan.

        A charged request must be read first: the full path has to know that it was charged.
        """
        found = self.known.whole(whole)
        return Repetition(found, self.new_id(), {**state}) if found is not None and found.plan is None else None

    def note(self, scope: Scope, whole: bytes) -> None:
        """Learns all bytes of a request that has just arrived. It is remembered when it was answered."""
        if scope["path"] in PATHS and len(whole) <= 2 * LONGEST:
            scope["state"][WHOLE] = whole

    def near(self, asked: Repetition) -> Reply | None:
        """The response from this worker's copies, without I/O."""
        if asked.found.plan is not None:
            return None
        try:
            answered = asked.state["worker"].queries.near(asked.found.repeat, asked.request_id)
            return self._reply(asked, answered) if answered is not None else None
        except Exception:  # noqa: BLE001 - a bug, which the full path need not have
            structlog.get_logger("ragherd").exception("fast_path_failed", path=asked.found.path)
            return None

    async def again(self, asked: Repetition) -> Reply | None:
        """The response from the cache, or None: the full path must answer, and the request is forgotten."""
        reply, charge = None, None
        if self._may_look_up():
            self._metrics.running += 1
            if (plan := asked.found.plan) is not None:
                charge = asked.state[CHARGED] = Charge(plan, counts_hits=True)
            try:
                answered = await asked.state["worker"].queries.again(asked.found.repeat, asked.request_id, charge)
                self._paused_until = 0.0
                reply = self._reply(asked, answered, charge) if answered is not None else None
            except StoreUnavailable:  # the full path meets it too, and reports it
                self._paused_until = time.monotonic() + PAUSE
            except Exception:  # noqa: BLE001 - a bug, which the full path need not have
                structlog.get_logger("ragherd").exception("fast_path_failed", path=asked.found.path)
            finally:
                self._metrics.running -= 1
        if reply is None and not (charge is not None and charge.is_refused):
            self.known.forget(*asked.found.place)
        return reply

    def _may_look_up(self) -> bool:
        if not self._paused_until:
            return True
        now = time.monotonic()
        if now < self._paused_until:
            return False
        self._paused_until = now + PAUSE
        return True

    def _reply(self, asked: Repetition, answered: AnswerFinished, charge: Charge | None = None) -> Reply:
        """The response, with the headers that the full path sends, in the same order."""
        query = asked.found.repeat.query
        asked.state["tenant"], asked.state["query"], asked.state["answered"] = query.tenant, query, answered
        body = asked.found.encoded(answered, asked.request_id)
        of_cache = cache_headers(answered, UNLIMITED).items()
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in of_cache]
        headers += (b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")
        headers += (b"x-request-id", asked.request_id.encode("latin-1")), self._worker
        if charge is not None:
            headers += charge.headers
        return Reply(headers, body)

    def ended(self, asked: Repetition, reply: Reply) -> None:
        """Counts and logs an answered request."""
        seconds, path = time.perf_counter() - asked.began, asked.found.path
        self._metrics.running += 1
        self._metrics.request_ended("POST", path, 200, seconds)
        if self._log is not None:
            self._log(EndedRequest("POST", path, 200, seconds, len(reply.body)), asked.state)


class FastPathMiddleware:
    """Answers repeated requests at the ASGI interface, and remembers those that the full path has answered."""

    def __init__(self, app: ASGIApp, fast: FastPath) -> None:
        self._app = app
        self._fast = fast

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers from the cache, or hands the request on."""
        head = head_of(scope)
        if head is None:
            await self._app(scope, receive, send)
            return
        fast, state = self._fast, scope.setdefault("state", {})
        found, messages = await fast.known.find(head, receive)
        if found is not None:
            asked = Repetition(found, given_id(scope["headers"]) or fast.new_id(), state)
            reply = fast.near(asked) or await fast.again(asked)
            if reply is not None:
                scope["route"] = _RouteName(found.path)
                fast.known.also(found, _whole_of(scope))
                await send({"type": "http.response.start", "status": 200, "headers": reply.headers})
                await send({"type": "http.response.body", "body": reply.body})
                fast.ended(asked, reply)
                return
        del found
        await self._app(scope, _replayed(messages, receive) if messages else receive, send)
        repeatable: Repeatable | None = state.get("repeatable")
        charge: Charge | None = state.get("charge")
        if repeatable is not None:
            repeatable.caller = state.get("caller")
            repeatable.plan = charge.plan if charge is not None and charge.charges_hits else None
            fast.known.add(head, repeatable, state["answered"], _whole_of(scope))


def _whole_of(scope: Scope) -> bytes:
    """All bytes of a request. Empty if it has an id, which differs in each repeat."""
    whole: bytes = scope["state"].get(WHOLE, b"")
    return b"" if whole and given_id(scope["headers"]) else whole


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that returns these messages first, and keeps none that it has returned."""

    async def replayed() -> Message:
        return messages.pop(0) if messages else await receive()

    return replayed


class _RouteName(NamedTuple):
    """Names the route for metrics, logs and traces, as FastAPI's routes do."""

    path: str
