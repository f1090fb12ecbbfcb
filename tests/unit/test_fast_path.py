"""The memory of repeated requests is bounded, and belongs to a head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message

from api.endpoints.fast_path import LONGEST, Head, Repeatable, Repeatables, head_of
from api.ports.question import AnswerFinished, Query, Timings
from api.values import CacheStatus

HEAD: Head = ("/query", "1.1", (b"host", b"ragherd"))
STORED = AnswerFinished("Yes.", "llama3.2", CacheStatus.MISS, Timings(), stored=True)
PASSED_ON = AnswerFinished("Yes.", "llama3.2", CacheStatus.COALESCED, Timings())


def repeatable(body: bytes) -> Repeatable:
    return Repeatable(body, Query("Why?", "default", "llama3.2"), lambda *_: Response())


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


@pytest.mark.parametrize("limits", [{"max_entries": 5}, {"max_bytes": 5 * 120}])
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
    ],
    ids=str,
)
def test_other_requests_have_no_such_head(changes: dict[str, Any]) -> None:
    assert head_of(scope(**changes)) is None


def test_only_deciding_headers_count() -> None:
    assert head_of(scope()) == HEAD
    assert head_of(scope(headers=[(b"host", b"ragherd"), (b"authorization", b"Bearer x")])) != HEAD
    assert head_of(scope(http_version="1.0")) != HEAD
