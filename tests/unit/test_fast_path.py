"""The memory of repeated requests is bounded, and belongs to a head."""

from __future__ import annotations

import time
import tracemalloc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.endpoints.fast_path import (
    LONGEST,
    PAUSE,
    PER_REQUEST,
    FastPath,
    FastPathMiddleware,
    Head,
    Repeatable,
    Repeatables,
    Repetition,
    estimated,
    head_of,
)
from api.endpoints.middleware import given_id
from api.endpoints.ollama_wire import ChatBody
from api.errors import StoreUnavailable
from api.observability.metrics import Metrics
from api.ports.question import AnswerFinished, Query, Timings
from api.values import CacheStatus

HEAD: Head = ("/query", "1.1", (b"host", b"ragherd"))
STORED = AnswerFinished("Yes.", "llama3.2", CacheStatus.MISS, Timings(), stored=True)
PASSED_ON = AnswerFinished("Yes.", "llama3.2", CacheStatus.COALESCED, Timings())


def repeatable(body: bytes) -> Repeatable:
    return Repeatable(body, Query("Why?", "default", "llama3.2"), lambda *_: b"{}")


class Body:
    """A `receive` that counts its calls."""

    def __init__(self, *parts: bytes) -> None:
        self._messages: Iterator[Message] = iter(
            {"type": "http.request", "body": part, "more_body": number < len(parts)}
            for number, part in enumerate(parts, 1)
        )
        self.calls = 0

    async def __call__(self) -> Message:
        self.calls += 1
        return next(self._messages)


async def test_finds_a_request_by_head_and_body() -> None:
    known = Repeatables()
    known.add(HEAD, repeatable(b"{}"), STORED)
    found, messages = await known.find(HEAD, Body(b"{", b"}"))
    assert found is not None
    assert [message["body"] for message in messages] == [b"{", b"}"]
    assert (await known.find(HEAD, Body(b"[]")))[0] is None


async def test_reads_no_body_of_an_unknown_head() -> None:
    known, body = Repeatables(), Body(b"{}")
    known.add(HEAD, repeatable(b"{}"), STORED)
    assert await known.find(("/query", "1.1", (b"host", b"other")), body) == (None, [])
    assert body.calls == 0
    known.forget(HEAD, b"{}")
    assert await known.find(HEAD, body) == (None, [])
    assert body.calls == 0


async def test_stops_at_a_body_in_many_parts() -> None:
    known, body = Repeatables(), Body(*[b"x"] * 100)
    known.add(HEAD, repeatable(b"x" * 100), STORED)
    found, messages = await known.find(HEAD, body)
    assert (found, body.calls) == (None, len(messages))
    assert body.calls < 10


@pytest.mark.parametrize("limits", [{"max_entries": 5}, {"max_bytes": 5 * estimated(HEAD, bytes(100))}])
async def test_forgets_the_least_recently_used(limits: dict[str, int]) -> None:
    known = Repeatables(**limits)
    for number in range(4):
        known.add(HEAD, repeatable(b"%0100d" % number), STORED)
    await known.find(HEAD, Body(b"%0100d" % 0))
    for number in range(4, 7):
        known.add(HEAD, repeatable(b"%0100d" % number), STORED)
    kept = [number for number in range(7) if (await known.find(HEAD, Body(b"%0100d" % number)))[0] is not None]
    assert 0 in kept
    assert 1 not in kept
    assert 6 in kept
    assert len(kept) <= 5


async def test_a_long_head_counts_too() -> None:
    known = Repeatables()
    long: Head = (*HEAD, (b"authorization", b"x" * LONGEST))
    known.add(long, repeatable(b"{}"), STORED)
    assert (await known.find(long, Body(b"{}")))[0] is None


async def test_a_long_body_is_not_compared() -> None:
    class Unhashable(bytes):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

    known, long = Repeatables(), Unhashable(b"x" * (LONGEST + 1))
    known.add(HEAD, repeatable(b"{}"), STORED)
    known.add(HEAD, repeatable(long), STORED)
    assert (await known.find(HEAD, Body(long)))[0] is None


@pytest.mark.slow
def test_the_estimate_covers_what_is_made_of_a_body() -> None:
    def made(number: int) -> Repeatable:
        turns = [{"role": "user", "content": f"é{number}{turn}"} for turn in range(300)]
        body = orjson.dumps({"model": "llama3.2", "messages": turns})
        parsed = ChatBody.model_validate(orjson.loads(body)).turns()
        query = Query(parsed[-1].content, "default", "llama3.2", history=tuple(parsed[:-1]))
        return Repeatable(bytes(bytearray(body)), query, lambda *_: b"{}")

    made(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = [made(number) for number in range(10)]
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert sum(estimated(HEAD, one.body) for one in kept) > taken > sum(len(one.body) for one in kept)


def test_a_request_that_was_forgotten_meanwhile_is_not_found_by_all_its_bytes() -> None:
    known = Repeatables()
    for later in (None, repeatable(b"{}")):
        one = repeatable(b"{}")
        known.add(HEAD, one, STORED)
        known.forget(HEAD, b"{}")
        if later is not None:
            known.add(HEAD, later, STORED)
        known.also(one, b"POST / HTTP/1.1")
        assert known.whole(b"POST / HTTP/1.1") is None


def test_finds_a_request_by_all_its_bytes() -> None:
    known, one = Repeatables(max_entries=2), repeatable(b"{}")
    known.add(HEAD, one, STORED, b"POST /query 1")
    known.also(one, b"POST /query 2")
    assert known.whole(b"POST /query 1") is known.whole(b"POST /query 2") is one
    assert known.whole(b"POST /query 3") is None
    again = repeatable(b"{}")
    known.add(HEAD, again, STORED)
    assert known.whole(b"POST /query 1") is again
    for number in range(2):
        known.add(HEAD, repeatable(b"%d" % number), STORED)
    assert known.whole(b"POST /query 1") is None


def test_the_forms_of_a_request_are_few_and_count() -> None:
    size = estimated(HEAD, b"{}") + 4 * (PER_REQUEST + 100)
    known, one = Repeatables(max_bytes=size), repeatable(b"{}")
    known.add(HEAD, one, STORED)
    for number in range(10):
        known.also(one, b"%0100d" % number)
    found = [number for number in range(10) if known.whole(b"%0100d" % number) is not None]
    assert found == [0, 1, 2, 3]
    known.add(HEAD, repeatable(b"another"), STORED)
    assert known.whole(b"%0100d" % 0) is None


@pytest.mark.parametrize(
    ("headers", "given"),
    [([(b"x-request-id", b"mine-1")], "mine-1"), ([(b"x-request-id", b"a\xe9")], ""), ([(b"host", b"x")], "")],
)
def test_takes_a_valid_request_id(headers: list[tuple[bytes, bytes]], given: str) -> None:
    assert given_id(headers) == given


def test_request_ids_do_not_recur() -> None:
    fast = FastPath("worker-1", Metrics(), None)
    ids = {fast.new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in ids)


async def test_forgets_after_a_while() -> None:
    known = Repeatables(seconds=-1.0)
    known.add(HEAD, repeatable(b"{}"), STORED)
    assert (await known.find(HEAD, Body(b"{}")))[0] is None


async def test_keeps_only_what_the_exact_tier_has() -> None:
    known = Repeatables()
    known.add(HEAD, repeatable(b"{}"), PASSED_ON)
    assert (await known.find(HEAD, Body(b"{}")))[0] is None


def scope(**changes: Any) -> dict[str, Any]:
    made = {"type": "http", "method": "POST", "path": "/query", "http_version": "1.1", "query_string": b""}
    return {**made, "headers": [(b"host", b"ragherd"), (b"user-agent", b"x")], **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "lifespan"},
        {"method": "GET"},
        {"path": "/documents"},
        {"query_string": b"a=1"},
        {"headers": [(b"cache-control", b"no-cache")]},
        {"headers": [(b"host", b"ragherd"), (b"accept", b"a"), (b"accept", b"b")]},
        {"headers": [(b"accept", b"")] * 7000},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_other_requests_have_no_such_head(changes: dict[str, Any]) -> None:
    assert head_of(scope(**changes)) is None


def test_only_deciding_headers_count() -> None:
    assert head_of(scope()) == HEAD
    assert head_of(scope(headers=[(b"host", b"ragherd"), (b"authorization", b"Bearer x")])) != HEAD
    assert head_of(scope(http_version="1.0")) != HEAD


class Queries:
    """A flow whose cache fails. Counts the look-ups."""

    def __init__(self) -> None:
        self.asked = 0

    def near(self, *_: Any) -> None:
        return None

    async def again(self, *_: Any) -> AnswerFinished | None:
        self.asked += 1
        raise StoreUnavailable("slow")


async def sent(_: Message) -> None:
    pass


def state_of(queries: Queries) -> dict[str, Any]:
    return {"request_id": "1", "worker": SimpleNamespace(queries=queries)}


def middleware(app: ASGIApp, known: Repeatables) -> FastPathMiddleware:
    fast = FastPath("worker-1", Metrics(), None)
    fast.known = known
    return FastPathMiddleware(app, fast)


async def test_after_a_failure_one_request_tries_the_cache_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    known, queries, now = Repeatables(seconds=1e9), Queries(), time.monotonic()
    served = 0

    async def full(_: Scope, receive: Receive, __: Send) -> None:
        nonlocal served
        assert (await receive())["body"] == b"{}"
        served += 1

    path = middleware(full, known)
    monkeypatch.setattr(time, "monotonic", lambda: now)

    async def ask() -> None:
        known.add(HEAD, repeatable(b"{}"), STORED)
        await path(scope(state=state_of(queries)), Body(b"{}"), sent)

    await ask()
    await ask()
    assert queries.asked == 1
    now += PAUSE
    looked_up = Queries.again

    async def slow(self: Queries, *asked: Any) -> AnswerFinished | None:
        monkeypatch.setattr(Queries, "again", looked_up)
        await ask()  # another request, while this one waits
        return await looked_up(self, *asked)

    monkeypatch.setattr(Queries, "again", slow)
    await ask()
    assert (queries.asked, served) == (2, 4)


async def test_the_parts_of_a_body_are_not_kept_while_its_request_runs() -> None:
    class Part(dict[str, Any]):
        pass

    parts = [Part(type="http.request", body=b"[", more_body=True), Part(type="http.request", body=b"]")]
    alive = [weakref.ref(part) for part in parts]
    known = Repeatables()
    known.add(HEAD, repeatable(b"{}"), STORED)
    seen: list[Part | None] = []

    async def receive() -> Message:
        return parts.pop(0)

    async def full(_: Scope, received: Receive, __: Send) -> None:
        for _part in range(2):
            await received()
        seen.extend(ref() for ref in alive)

    await middleware(full, known)(scope(state=state_of(Queries())), receive, sent)
    assert seen == [None, None]


def test_a_bug_in_the_short_way_leaves_the_request_to_the_full_path() -> None:
    def near(*_: Any) -> None:
        raise RuntimeError("a bug")

    found: Any = SimpleNamespace(path="/query", repeat=None, plan=None)
    state = {"worker": SimpleNamespace(queries=SimpleNamespace(near=near))}
    assert FastPath("worker-1", Metrics(), None).near(Repetition(found, "id", state)) is None
